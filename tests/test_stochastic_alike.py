"""One row under several names: stochastic solvers whose options make them another one."""

from __future__ import annotations

import numpy as np
import pytest
from oracle.cases import SCHEDULES, grid, schedule_id
from oracle.linear import EPS
from oracle.probe import states

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
