"""Solvers that go back up: churn beyond Karras et al.'s bound, AlphaFold 3's step, Restart."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import stochastic_loops
from oracle.cases import SCHEDULES, grid, schedule_id
from oracle.linear import EPS, mp
from oracle.loops import heun
from oracle.marginals import points
from oracle.probe import follow
from oracle.stochastic import frame

from fastsample import grids
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS

FINITE = [s for s in SCHEDULES if s.alpha(s.t_max) > 0]
ALPHAFOLD = {"s_noise": 1.003, "max_gamma": 0.8, "step_scale": 1.5}


@pytest.mark.parametrize("schedule", FINITE, ids=schedule_id)
def test_alphafold_3_is_euler_with_its_scales(schedule):
    for n in (3, 10):
        t = grid(schedule, n, whole=False)[1:]  # room above for gamma
        rho = schedule.sigma(t) / schedule.alpha(t)
        low = rho[:-1][rho[1:] > 1.0].min(initial=np.inf)
        words = ALPHAFOLD | {"s_churn": 0.8 * (len(t) - 1), "s_tmin": min(low, 1e300)}
        plan = SOLVERS["euler"](schedule, t, prediction="x0", **words)
        found = follow(plan, schedule, stochastic_loops.alphafold, {"stage": "of the plan"})
        assert found.agrees(), str(found)
        assert plan.note["consistent"] is False and plan.remake() == plan


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_the_bound_of_churn_is_lifted(name):
    """From 4 by gamma = 2 to 12, where the bound stops at 4 sqrt(2): sqrt(144 - 16) of noise."""
    words = {"s_churn": 4.0, "s_tmin": 3.0}
    levels = grids.from_sigmas(EDM(), [4, 2, 1])
    for bound, level in (({}, 4 * np.sqrt(2)), ({"max_gamma": 2.0}, 12.0), ({"max_gamma": 0}, 4.0)):
        plan = SOLVERS[name](EDM(), levels, prediction="x0", **words, **bound)
        assert plan.sigma[1] == pytest.approx(level, rel=4 * EPS)
        added = plan.M[0, 0, plan.layout.noise(0)] if plan.L else 0.0
        assert added == pytest.approx(np.sqrt(level**2 - 16), abs=1e-14 * 12)
        assert plan.consistency() < 1e-15


def test_churn_of_heun_beyond_the_bound_equals_its_loop(monkeypatch):
    t = grid(VP(), 6, whole=False)
    options = {"s_churn": 6.0, "max_gamma": 0.9, "s_tmin": 0.05, "s_tmax": 30.0}
    plan = SOLVERS["heun"](VP(), t, prediction="x0", **options)
    # the loop's own bound is Karras et al.'s
    monkeypatch.setattr("oracle.loops.churned", lambda p, n, stage, *words: _lifted(p, stage))
    found = follow(plan, VP(), heun, {"stage": "of the plan"})
    assert found.agrees(), str(found)


def _lifted(p, stage):
    return stage(p.lam - mp.log(1 + mp.mpf(0.9))) if 0.05 <= p.rho <= 30.0 else p


INTERVALS = [(2, 2, 0.3, 2.0), (3, 1, 0.05, 0.4)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=schedule_id)
def test_restart_equals_its_loop(schedule):
    """The levels of an interval stand on Karras et al.'s curve from the grid's nearest point."""
    for whole in (False, True):
        t, places = grid(schedule, 10, whole=whole), {}
        path = points(schedule, t)
        for steps, times, low, high in INTERVALS:
            inner = [i for i in range(1, 11) if path[i].sigma]
            i = min(inner, key=lambda i, low=low: abs(path[i].rho - low))
            top, end = mp.mpf(high) ** (mp.mpf(1) / 7), path[i].rho ** (mp.mpf(1) / 7)
            lams = [-7 * mp.log(top + k * (end - top) / steps) for k in range(steps)]
            places.setdefault(i, []).append((lams, times))
        plan = SOLVERS["restart"](schedule, t, prediction="x0", intervals=INTERVALS)
        words = {"stage": "of the plan", "frame": frame(schedule, t), "places": places}
        found = follow(plan, schedule, stochastic_loops.restart, words)
        assert found.agrees(), str(found)


def test_restart_counts_and_begins_anywhere():
    """2n - 1 evaluations and 2 a step of every interval; what it draws after a start is what the
    whole plan draws there; without intervals it is Heun.
    """
    t = grids.karras(EDM(), 8)
    plan = SOLVERS["restart"](EDM(), t, prediction="x0", intervals=INTERVALS)
    assert plan.nfe == 15 + 2 * (2 * 2 + 3) and plan.note["orders"] == [2] * 7 + [1]
    assert plan.consistency() < 1e-14 and plan.note["consistent"]
    rho = t[1:-1]
    first, second = (1 + int(np.argmin(np.abs(rho - low))) for low in (0.3, 0.05))
    for start, ids in ((first - 1, [1, 2, 3]), (first, [3]), (second, [])):
        part = plan.remake(start)
        assert sorted(part.ids[part.ids > 0].tolist()) == ids
        assert part.remake() == plan
    loud = SOLVERS["restart"](EDM(), t, prediction="x0", intervals=INTERVALS, s_noise=1.1)
    assert loud.note["consistent"] is False and loud.consistency() > 1e-3
    for schedule in (EDM(), Flow(3.0)):
        t = grids.karras(schedule, 5)
        none, heun = (SOLVERS[n](schedule, t, prediction="v") for n in ("restart", "heun"))
        assert np.array_equal(none.M, heun.M) and np.array_equal(none.t, heun.t)


BAD = [
    ("restart", {"intervals": 3}, "intervals = 3; a list of"),
    ("restart", {"intervals": [(1, 1, 0.5)]}, "steps, times, low, high. is accepted"),
    ("restart", {"intervals": [(0, 1, 0.5, 1.0)]}, "steps = 0, times = 1; whole numbers from 1"),
    ("restart", {"intervals": [(1, 1.5, 0.5, 1.0)]}, "times = 1.5; whole numbers from 1"),
    ("restart", {"intervals": [(1, 1, 2.0, 1.0)]}, "low = 2, high = 1; 0 < low < high"),
    ("restart", {"intervals": [(1, 1, 0.1, 1.0)]}, "1 nearest to it; low < high, with a point"),
    ("restart", {"intervals": [(1, 1, 1.0, "2")]}, "high = '2'; a number from 0 up"),
    ("restart", {"s_noise": -1.0}, "restart: s_noise = -1.0"),
    ("euler", {"step_scale": 0.0}, "step_scale = 0 never moves; a number above 0"),
    ("euler", {"max_gamma": -1.0}, "euler: max_gamma = -1.0; a number from 0 up"),
    ("heun", {"max_gamma": "x"}, "heun: max_gamma = 'x'"),
]


@pytest.mark.parametrize(("name", "options", "sentence"), BAD)
def test_bad_input_is_refused(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        SOLVERS[name](EDM(), [4.0, 2.0, 1.0, 0.0], prediction="x0", **options)


def test_refused_where_there_is_no_such_level():
    with pytest.raises(ValueError, match="high = 1000 above the schedule's 152"):
        SOLVERS["restart"](VP(), [0.9, 0.5, 0.1], prediction="x0", intervals=[(1, 1, 0.9, 1e3)])
    with pytest.raises(ValueError, match="with no point between its ends"):
        SOLVERS["restart"](VP(), [0.9, 0.0], prediction="x0", intervals=[(1, 1, 0.9, 2.0)])
    for words in ({"s_churn": 1.0}, {"step_scale": 1.5}):
        with pytest.raises(ValueError, match="starts at alpha = 0, where rho is infinite; 0 and 1"):
            SOLVERS["euler"](Flow(), [1.0, 0.5, 0.0], prediction="flow", **words)
    SOLVERS["euler"](Flow(), [0.9, 0.5, 0.0], prediction="flow", s_churn=1.0)
