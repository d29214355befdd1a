"""FsScheduler against the diffusers classes it stands in for, by superposition and in a pipeline;
its contract with pipelines.

A scheduler's step is linear in the sample, the model outputs and the noises, so a run on basis
vectors is its table of coefficients. Peers are probed in float64 and in float32: their own
rounding, float32 against float64, is the unit of every bound here.
"""

import contextlib
import inspect
from unittest import mock

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle import peers

diffusers = pytest.importorskip("diffusers")
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
diffusers.utils.logging.set_verbosity_error()
FsScheduler = fastsample.FsScheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
PLMS = {"skip_prk_steps": True, "steps_offset": 1}
TRAILING = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ZERO_SNR = TRAILING | {"prediction_type": "v_prediction"}
SDE, TO_SIGMA_MIN = {"algorithm_type": "sde-dpmsolver++"}, {"final_sigmas_type": "sigma_min"}
KARRAS = {"use_karras_sigmas": True}
FINER = 2.0**-29  # float64 rounding, in units of float32 rounding
MODULES = {
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "EulerDiscrete": "euler_discrete",
    "DEISMultistep": "deis_multistep",
    "LMSDiscrete": "lms_discrete",
    "SASolver": "sasolver",
    "TCD": "tcd",
    "EDMEuler": "edm_euler",
    "EDMDPMSolverMultistep": "edm_dpmsolver_multistep",
    "CMStochasticIterative": "consistency_models",
    "FlowMatchHeunDiscrete": "flow_match_heun_discrete",
    "KDPM2Discrete": "k_dpm_2_discrete",
    "KDPM2AncestralDiscrete": "k_dpm_2_ancestral_discrete",
    "EulerAncestralDiscrete": "euler_ancestral_discrete",
    "HeunDiscrete": "heun_discrete",
    "DPMSolverMultistep": "dpmsolver_multistep",
    "DPMSolverSinglestep": "dpmsolver_singlestep",
    "UniPCMultistep": "unipc_multistep",
    "LCM": "lcm",
    "FlowMatchEulerDiscrete": "flow_match_euler_discrete",
    "FlowMatchLCM": "flow_match_lcm",
    "IPNDM": "ipndm",
    "DDIMInverse": "ddim_inverse",
    "DPMSolverMultistepInverse": "dpmsolver_multistep_inverse",
    "LTXEulerAncestralRF": "ltx_euler_ancestral_rf",
    "PNDM": "pndm",
}
NO_CLIP = ("DDIM", "DDPM", "DDIMInverse")  # clipping is not linear; it has a test of its own
OF_EVERY_KIND = """DDIM DDPM EulerDiscrete HeunDiscrete DPMSolverMultistep DPMSolverSinglestep
    UniPCMultistep LCM"""
DPM, UNIPC = "DPMSolverMultistep", "UniPCMultistep"
CASES = [
    *(
        (name, {"prediction_type": kind})
        for kind in ("epsilon", "v_prediction", "sample")
        for name in OF_EVERY_KIND.split()
    ),
    ("EulerAncestralDiscrete", {}),
    ("EulerAncestralDiscrete", {"prediction_type": "v_prediction"}),
    *((DPM, {"solver_order": p} | KARRAS) for p in (1, 2, 3)),
    *((DPM, {"solver_order": p} | TO_SIGMA_MIN) for p in (1, 2, 3)),
    *((DPM, {"solver_order": p, "solver_type": "heun"}) for p in (2, 3)),
    *((DPM, {"solver_order": p} | SDE) for p in (1, 2)),
    *((UNIPC, {"solver_order": p, "solver_type": "bh1"} | TO_SIGMA_MIN) for p in (1, 2, 3)),
    *((UNIPC, {"solver_order": p} | KARRAS) for p in (1, 3)),
    *((name, FLOW | {"solver_order": p}) for name in (DPM, UNIPC) for p in (2, 3)),
    (DPM, {"solver_type": "heun"} | SDE | {"use_lu_lambdas": True}),
    (DPM, {"euler_at_final": True} | TO_SIGMA_MIN),
    ("DPMSolverSinglestep", {"solver_type": "heun"}),
    (DPM, ZERO_SNR),
    (UNIPC, {"use_exponential_sigmas": True}),
    ("EulerDiscrete", {"use_beta_sigmas": True, "timestep_spacing": "trailing"}),
    ("EulerDiscrete", {"timestep_spacing": "leading"} | TO_SIGMA_MIN | {"steps_offset": 1}),
    ("DDIM", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    *(("PNDM", PLMS | {"prediction_type": kind}) for kind in ("epsilon", "v_prediction")),
    ("DEISMultistep", {}),
    ("DEISMultistep", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("LMSDiscrete", {"timestep_spacing": "trailing"}),
    ("LMSDiscrete", {"prediction_type": "v_prediction"} | KARRAS),
    ("SASolver", {}),
    ("SASolver", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("SASolver", {"predictor_order": 3, "corrector_order": 4}),
    ("SASolver", {"predictor_order": 2, "corrector_order": 1}),
    ("TCD", {}),
    ("TCD", {"prediction_type": "v_prediction"}),
    ("EDMEuler", {}),
    ("EDMEuler", {"prediction_type": "v_prediction", "sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistep", {"rho": 5.0}),
    ("EDMDPMSolverMultistep", {"solver_order": 3, "prediction_type": "v_prediction"}),
    ("EDMDPMSolverMultistep", SDE | {"solver_type": "heun"}),
    ("CMStochasticIterative", {"clip_denoised": False}),
    (
        "CMStochasticIterative",
        {"clip_denoised": False, "rho": 5.0, "s_noise": 1.1, "sigma_data": 1},
    ),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}),
    ("FlowMatchLCM", {"shift": 3.0}),
    ("LTXEulerAncestralRF", {}),
    ("IPNDM", {}),
    ("LTXEulerAncestralRF", {"eta": 0.5, "s_noise": 1.2}),
    *((f"KDPM2{kind}Discrete", {}) for kind in ("", "Ancestral")),
    *(
        (f"KDPM2{kind}Discrete", {"prediction_type": "v_prediction"} | KARRAS)
        for kind in ("", "Ancestral")
    ),
]
THIRD, FULL = {"solver_order": 3} | TO_SIGMA_MIN, {"lower_order_final": False}
# grids that only the class itself has: steps off the next timestep, or of length 0; orders that
# follow the whole run
PEERS_OWN = [
    *(
        (name, more | {"timestep_spacing": kind, "prediction_type": "v_prediction"})
        for name, more in (("DDIM", {}), ("PNDM", PLMS))
        for kind in ("linspace", "trailing")
    ),
    ("DDIM", {"set_alpha_to_one": False}),
    ("DDIM", ZERO_SNR),
    ("PNDM", {"skip_prk_steps": True}),
    ("PNDM", PLMS | {"set_alpha_to_one": True}),
    *((name, KARRAS | TO_SIGMA_MIN) for name in (DPM, UNIPC, "EulerDiscrete")),
    (DPM, SDE | TO_SIGMA_MIN),
    (DPM, SDE | TO_SIGMA_MIN | {"euler_at_final": True}),
    (DPM, THIRD | FULL),
    (DPM, THIRD | FULL | {"solver_type": "heun"}),
    (DPM, THIRD | {"euler_at_final": True}),
    (UNIPC, {"solver_order": 4}),
    (UNIPC, {"solver_order": 4, "solver_type": "bh1"} | TO_SIGMA_MIN | FULL),
    ("DDIMInverse", {}),
    ("DDIMInverse", ZERO_SNR),
    ("DDIMInverse", {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "sample"}),
    (f"{DPM}Inverse", {}),
    (f"{DPM}Inverse", {"solver_order": 3}),
    (f"{DPM}Inverse", {"algorithm_type": "dpmsolver", "prediction_type": "v_prediction"} | KARRAS),
    ("DEISMultistep", {"solver_order": 3} | FULL | KARRAS),
    ("DEISMultistep", {"solver_order": 3} | FLOW),
    ("SASolver", {"algorithm_type": "noise_prediction"}),
    ("SASolver", {"algorithm_type": "noise_prediction", "corrector_order": 1}),
    ("SASolver", {"algorithm_type": "noise_prediction", "predictor_order": 3} | KARRAS),
    ("SASolver", {"predictor_order": 4, "corrector_order": 3} | FULL | FLOW),
]


def ids(cases):
    return [f"{name}-{'-'.join(map(str, config.values()))}" for name, config in cases]


def made(name, config):
    """The peer, and its config with what makes it linear."""
    config = config if name.startswith(("FlowMatch", "EDM", "LTX", "IPNDM", "CM")) else SD | config
    return config | ({"clip_sample": False} if name in NO_CLIP else {})


def in_double(name):
    """The peer's module reads float64 where it says float32, or says nothing, as long as this
    lasts.
    """
    code = __import__(f"diffusers.schedulers.scheduling_{MODULES[name]}", fromlist=["x"])
    return peers._replaced(code, **peers._in_double())


def table(scheduler, steps, dtype, begin=0):
    """States [calls+1, size] of a run on basis vectors: start 0, model outputs, then a noise each
    step.
    """
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps[begin:]
    basis = torch.eye(1 + 2 * len(times), dtype=dtype)
    noise = iter(basis[1 + len(times) :])
    takes = inspect.signature(scheduler.step).parameters
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x, states, ours = basis[:1], [], isinstance(scheduler, FsScheduler)
    where = "fastsample.interop.diffusers.scheduler" if ours else type(scheduler).__module__
    code = __import__(where, fromlist=["x"])
    drawn = mock.patch.object(code, "randn_tensor", lambda *a, **k: next(noise)[None])
    with drawn if hasattr(code, "randn_tensor") else contextlib.nullcontext():
        for k, t in enumerate(times):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            states.append(x)
            given = {"return_dict": False}
            if ours and "variance_noise" in takes:
                given["variance_noise"] = basis[1 + len(times) + k][None]
            x = scheduler.step(basis[1 + k][None], t, x, **given)[0]
    return torch.cat([*states, x]).double().numpy()


def both(name, config, steps, begin=0):
    """(ours in float64, peer in float64, peer in float32): coefficient tables of equal size."""
    make = getattr(diffusers, f"{name}Scheduler")
    with in_double(name):
        peer = make(**config)
        exact = table(peer, steps, torch.float64, begin)
        ours = FsScheduler.from_config(peer, compat="diffusers")
        ours = table(ours, steps, torch.float64, begin)
    return ours, exact, table(make(**config), steps, torch.float32, begin)


def assert_equal_to_rounding(ours, exact, rounded):
    """To float64: within 32 times what the peer's own rounding becomes there."""
    bound = 32 * (FINER * np.abs(rounded - exact).max() + np.finfo(float).eps * np.abs(exact).max())
    assert np.abs(ours - exact).max() <= bound


LAST = {"euler_at_final", "lower_order_final", "final_sigmas_type"}


def in_steps(cases):
    """Each in 6 steps; in 17 too the first of its class, what has words for the last steps, which
    below 15 are others, and every third; in a soak all.
    """
    first = {name: number for number, (name, _) in reversed([*enumerate(cases)])}
    for number, ((name, config), label) in enumerate(zip(cases, ids(cases), strict=True)):
        yield pytest.param(name, config, 6, id=f"{label}-6")
        kept = number % 3 == 0 or first[name] == number or not LAST.isdisjoint(config)
        rest = [] if kept else [pytest.mark.soak]
        yield pytest.param(name, config, 17, id=f"{label}-17", marks=rest)


@pytest.mark.parametrize(("name", "config", "steps"), in_steps(CASES + PEERS_OWN))
def test_coefficients_are_the_peers(name, config, steps):
    """compat reproduces every coefficient."""
    assert_equal_to_rounding(*both(name, made(name, config), steps))


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("DPMSolverMultistep", 3),
        ("UniPCMultistep", 3),
        ("HeunDiscrete", 6),
        ("EulerDiscrete", 3),
        ("DPMSolverSinglestep", 3),
        ("DPMSolverSinglestep", 4),
        ("LCM", 2),
        ("DDIM", 3),
        ("PNDM", 1),
        ("PNDM", 2),
        ("PNDM", 5),
        ("DEISMultistep", 3),
        ("LMSDiscrete", 3),
        ("SASolver", 3),
        ("IPNDM", 3),
        ("KDPM2Discrete", 6),
        ("KDPM2AncestralDiscrete", 6),
    ],
)
def test_a_run_from_the_middle_is_the_peers(name, begin):
    """img2img: the plan is compiled from the begin index; orders ramp up again and the last steps
    count from the whole run.
    """
    config = made(name, PLMS if name == "PNDM" else {})
    assert_equal_to_rounding(*both(name, config, 8, begin))


@pytest.mark.parametrize(("name", "begin"), [("HeunDiscrete", 6), ("EulerDiscrete", 3)])
def test_a_first_timestep_says_where_a_run_begins(name, begin):
    """Without a begin index: the timestep itself, as a tensor, a view or a number; of Heun's two
    equal ones the one that starts a step.
    """
    ends = []
    for given in (lambda v: v, torch.clone, float):
        ours = FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")(**SD), compat=None)
        ours.set_timesteps(8)
        x = torch.ones(1, 4)
        for t in ours.timesteps[begin:]:
            x = ours.step(0.1 * ours.scale_model_input(x, given(t)), given(t), x).prev_sample
        ends.append(x)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2])
    assert torch.isfinite(x).all()


@pytest.mark.parametrize(("name", "config"), CASES, ids=ids(CASES))
def test_grid_and_labels_are_the_peers(name, config):
    """compat: the very timesteps, dtype and sigmas. Exact: the same where nothing is rounded, else
    within the rounding of a label.
    """
    peer = getattr(diffusers, f"{name}Scheduler")(**made(name, config))
    ours, exact = (FsScheduler.from_config(peer, compat=c) for c in ("diffusers", None))
    for scheduler in (peer, ours, exact):
        scheduler.set_timesteps(12)
    assert torch.equal(peer.timesteps, ours.timesteps)
    assert peer.timesteps.dtype == ours.timesteps.dtype
    assert len(peer.timesteps) == len(exact.timesteps)
    assert (peer.timesteps - exact.timesteps).abs().max() <= 1.0
    if hasattr(peer, "sigmas"):
        assert torch.allclose(peer.sigmas[: len(ours.sigmas)], ours.sigmas, rtol=4e-7, atol=0)
    if hasattr(peer, "init_noise_sigma"):
        assert ours.init_noise_sigma == pytest.approx(float(peer.init_noise_sigma), rel=1e-6)
    assert ours.order == peer.order
