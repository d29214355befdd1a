"""One row under several names: solvers whose options make them another one."""

from __future__ import annotations

import numpy as np
import pytest
from oracle.cases import SCHEDULES, grid, schedule_id
from oracle.linear import EPS
from oracle.probe import states

from fastsample.schedules import Flow
from fastsample.solvers import SOLVERS

QUIET = {"eta": 0.0}
ALIKE = [
    (("dpmpp_sde", {"r": 0.3}), ("seeds_2", {"r": 0.3})),
    (("dpmpp_sde", {"r": 0.3} | QUIET), ("dpmpp_2s", {"r": 0.3})),
    (("dpmpp_2s_ancestral", QUIET), ("dpmpp_2s", {})),
    (("seeds_2", {"variant": "phi_2", "r": 0.5} | QUIET), ("rk", {"tableau": "res_2s"})),
    (("ddpm", {}), ("ddim", {"eta": 1.0})),
    (("er_sde", {"order": 1, "eta": 1.0}), ("ddpm", {})),
    (("er_sde", {"order": 1} | QUIET), ("ddim", {})),
    (("tcd", {"gamma": 0.0}), ("ddim", {})),
    (("flow_sde", {"a": 0.0}), ("ddim", {})),
    (("euler_cfgpp", {"eta": 1.0}), ("ddpm", {})),
    (("dpmpp_2m_cfgpp", {}), ("dpmpp_2m", {})),
    (("cm", {"sigma_min": 0.0}), ("lcm", {"boundary": False})),
    (("res_multistep", {}), ("dpmpp_2m", {"variant": "heun"})),
    (("res_multistep_ancestral", QUIET), ("res_multistep", {})),
    (("res_multistep_cfgpp", {"eta": 1.0}), ("dpmpp_2m_sde", {"variant": "heun"})),
]


ALONE = {"corrector": False, "lower_order_final": False}
VARY = ALONE | {"variant": "vary"}
ODE = {"corrector_order": 0, "tau": 0.0}
FEW = [SCHEDULES[k] for k in (0, 3, 4, 6)]  # VP, EDM, Flow, zero terminal SNR
ON_RHO = FEW[:2]
ONCE = [  # the ODE's, asked once a step: the same whatever is carried
    (("euler", {}), ("ddim", {}), FEW),
    (("dpm_solver", {"order": 1}), ("ddim", {}), FEW),
    (("unipc", ALONE | {"order": 1}), ("ddim", {}), FEW),
    (("sa_solver", ODE | {"predictor_order": 1}), ("ddim", {}), FEW),
    (("lms", {"order": 1}), ("euler", {}), FEW),
    (("gradient_estimation", {"gamma": 1.0}), ("euler", {}), FEW),
    (("unipc", VARY | {"order": 2}), ("dpmpp_2m", {"variant": "heun"}), FEW),
    (("sa_solver", ODE | {"predictor_order": 2}), ("dpmpp_2m", {"variant": "heun"}), FEW),
    (("dpmpp_2m_sde", {"variant": "heun"} | QUIET), ("dpmpp_2m", {"variant": "heun"}), FEW),
    (("unipc", ALONE | {"order": 2, "variant": "bh2"}), ("dpmpp_2m", {}), FEW),
    (("dpmpp_2m_sde", QUIET), ("dpmpp_2m", {}), FEW),
    (("unipc", VARY | {"order": 3}), ("dpmpp_3m", {}), FEW),
    (("sa_solver", ODE | {"predictor_order": 3}), ("dpmpp_3m", {}), FEW),
    (("dpmpp_3m_sde", QUIET), ("dpmpp_3m", {}), FEW),
    (("unipc", VARY | {"order": 2, "carry": "eps"}), ("deis", {"order": 2}), ON_RHO),
    (("unipc", VARY | {"order": 3, "carry": "eps"}), ("deis", {"order": 3}), ON_RHO),
    (("dpm_solver", {"order": 2, "variant": "heun"}), ("deis", {"order": 2}), ON_RHO),
    (("dpm_solver", {"order": 3, "variant": "heun"}), ("deis", {"order": 3}), ON_RHO),
    (("ipndm_v", {}), ("lms", {}), FEW),
    (("deis", {"variant": "rhoab", "order": 4}), ("lms", {}), ON_RHO),
    (("deis", {"variant": "tab"}), ("adams_bashforth", {}), ON_RHO),
    (("adams_bashforth", {"order": 4}), ("lms", {}), [Flow()]),
]


def ends(name, options, schedule, t):
    """[calls + 1, D] of the states over what the model says, as v."""
    return states(SOLVERS[name](schedule, t, prediction="v", **options), raw=True).states


@pytest.mark.parametrize("case", ONCE, ids=[f"{a[0]}-{b[0]}" for a, b, _ in ONCE])
def test_multistep_solvers_under_two_names_are_one_row(case):
    *pair, schedules = case
    for schedule in schedules:
        for whole in (False, True):
            t = grid(schedule, 6, whole=whole)
            ours, theirs = (ends(*each, schedule, t) for each in pair)
            lam = schedule.half_log_snr(t[np.isfinite(schedule.half_log_snr(t))])
            room = 64 * EPS * len(t) * (1 + np.abs(lam).max()) / np.diff(lam).min()
            scale = np.abs(theirs).max()
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=room * scale, err_msg=schedule)


def test_even_steps_make_ipndm_lms():
    t = np.linspace(0.9, 0.0, 9)
    ours, theirs = (ends(name, {}, Flow(), t) for name in ("ipndm", "lms"))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e3 * EPS)


def test_of_third_order_unipc_has_no_bh1_and_bh2():
    """B cancels where the weights are solved for: from the third step on, and in its correctors."""
    t = grid(SCHEDULES[0], 7, whole=False)
    words = {"prediction": "x0", "order": 3, "lower_order_final": False}
    plans = [SOLVERS["unipc"](SCHEDULES[0], t, variant=v, **words) for v in ("bh1", "bh2", "vary")]
    for plan in plans[:2]:
        assert np.abs(plan.M[2] - plans[2].M[2]).max() > 1e-3
        np.testing.assert_allclose(plan.M[4:], plans[2].M[4:], rtol=0, atol=1e3 * EPS)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
@pytest.mark.parametrize("pair", ALIKE, ids=[f"{a[0]}-{b[0]}" for a, b in ALIKE])
def test_two_names_are_one_row(pair, schedule):
    for whole in (False, True):
        t = grid(schedule, 5, whole=whole)
        ours, theirs = (
            states(SOLVERS[name](schedule, t, prediction="x0", **options)).states
            for name, options in pair
        )
        lam = schedule.half_log_snr(t[np.isfinite(schedule.half_log_snr(t))])
        room = 64 * EPS * len(t) * (1 + np.abs(lam).max()) / np.diff(lam).min()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=room * np.abs(theirs).max())


def test_what_is_not_alike_is_told_apart():
    t = grid(SCHEDULES[2], 5, whole=False)
    rows = [
        states(SOLVERS["seeds_2"](SCHEDULES[2], t, prediction="x0", variant=variant)).states
        for variant in ("phi_1", "phi_2")
    ]
    assert np.abs(rows[0] - rows[1]).max() > 1e-2
