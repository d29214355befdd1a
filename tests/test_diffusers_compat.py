"""compat="diffusers" beyond the usual configs: every coefficient of what a class does in the rare
ones, against the class itself in float64 (see test_diffusers), and what is no table of coefficients
in whole loops beside it.
"""

import numpy as np
import pytest
import test_diffusers

import fastsample

diffusers = pytest.importorskip("diffusers")
# diffusers' own; it divides by 0 where a level repeats
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)
FsScheduler = fastsample.FsScheduler
both, made = test_diffusers.both, test_diffusers.made
MULTI, SINGLE, UNIPC = "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
NOISE = TO_SIGMA_MIN | {"algorithm_type": "dpmsolver"}
SDE_NOISE = TO_SIGMA_MIN | {"algorithm_type": "sde-dpmsolver"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
HEUN, FULL = {"solver_type": "heun"}, {"lower_order_final": False}
KARRAS, LU = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}
BETA = {"use_beta_sigmas": True}
ZERO_SNR = {"rescale_betas_zero_snr": True, "beta_schedule": "linear"}
V, DATA = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}


def order(p, *parts):
    config = {"solver_order": p}
    for part in parts:
        config |= part
    return config


FORMS = [
    *((MULTI, order(p, form)) for p in (1, 2) for form in (NOISE, SDE_NOISE)),
    *((MULTI, order(2, form, HEUN)) for form in (NOISE, SDE_NOISE)),
    *((MULTI, order(3, form, FULL)) for form in (NOISE, SDE)),
    *((MULTI, order(2, form, kind)) for form, kind in ((NOISE, V), (SDE_NOISE, DATA))),
    (MULTI, order(3, SDE)),
    *((SINGLE, order(p, form)) for p in (1, 3) for form in (NOISE, SDE)),
    *((SINGLE, order(p, form, HEUN, FULL)) for p in (2, 3) for form in (NOISE, SDE)),
    (SINGLE, order(3, HEUN)),
    (SINGLE, order(3, TO_SIGMA_MIN, FULL, V)),
    *((UNIPC, order(p, TO_SIGMA_MIN, {"predict_x0": False})) for p in (1, 3)),
    (UNIPC, order(2, TO_SIGMA_MIN, {"predict_x0": False, "solver_type": "bh1"}, DATA)),
    (UNIPC, order(3, {"disable_corrector": [0, 2]})),
    (UNIPC, {"solver_type": "logrho"}),
]
STILL = [  # the grid ends in a step of length 0
    *((MULTI, order(p, part, TO_SIGMA_MIN)) for p, part in ((1, LU), (2, KARRAS), (3, LU))),
    (MULTI, order(2, KARRAS, NOISE)),
    (MULTI, order(2, BETA, SDE, TO_SIGMA_MIN)),  # whose last two levels have the same bits
    *((SINGLE, order(p, KARRAS, TO_SIGMA_MIN, FULL)) for p in (2, 3)),
    *((UNIPC, order(p, KARRAS, TO_SIGMA_MIN)) for p in (2, 3)),
    (UNIPC, order(2, TO_SIGMA_MIN, {"use_exponential_sigmas": True, "predict_x0": False})),
    ("EulerDiscrete", TO_SIGMA_MIN | BETA),
]
TABLES = [
    *((name, ZERO_SNR | V | {"timestep_spacing": "trailing"}) for name in (MULTI, UNIPC, "DDPM")),
    ("EulerDiscrete", ZERO_SNR | {"timestep_spacing": "trailing"}),
    ("HeunDiscrete", {"beta_schedule": "exp"}),
    ("DDPM", {"beta_schedule": "laplace"}),
    *((name, {"num_train_timesteps": 1}) for name in ("DDIM", "DDPM", "EulerDiscrete", MULTI)),
    *(
        ("DDPM", {"variance_type": kind, "timestep_spacing": spacing, "steps_offset": 1})
        for kind, spacing in (("fixed_small_log", "trailing"), ("fixed_large", "leading"))
    ),
    ("DDPM", {"variance_type": None}),
]


@pytest.mark.parametrize(
    ("name", "config"), FORMS + STILL + TABLES, ids=test_diffusers.ids(FORMS + STILL + TABLES)
)
def test_every_coefficient_is_the_class_s_own(name, config):
    steps = 1 if "num_train_timesteps" in config else 7
    ours, exact, rounded = both(name, made(name, config), steps)
    rounding = test_diffusers.FINER * np.abs(rounded - exact).max()
    bound = 32 * (rounding + np.finfo(float).eps * np.abs(exact).max())
    assert np.isfinite(exact).all() and np.abs(ours - exact).max() <= bound


@pytest.mark.parametrize("steps", [2, 6, 8, 13, 30])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_ddim_steps_by_its_stride(spacing, steps):
    """Wherever the next timestep lies."""
    config = made("DDIM", {"timestep_spacing": spacing, "set_alpha_to_one": steps != 8})
    test_diffusers.assert_equal_to_rounding(*both("DDIM", config, steps))
