"""Which direct loop says what each solver's plan must be, with what options, and the schedules and
grids they are compared on.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow
from fastsample.solvers import SOLVERS

from . import loops, multistep, refined, singlestep, stabilised, stochastic
from .case import Case
from .linear import mp
from .marginals import point

STAGED = {"stage": "of the plan"}
_on_line = lambda schedule, grid: (
    type(schedule).__name__ in ("Flow", "TrigFlow") or schedule.alpha(grid[0]) == 0
)
_end = lambda s: -mp.inf if type(s).__name__ == "EDM" else point(s, s.t_max).lam
_staged = partial(Case, adds=lambda schedule, grid: STAGED)
_ancestral = partial(
    Case,
    adds=lambda schedule, grid: {"form": "rf" if type(schedule).__name__ == "Flow" else "ve"},
)
_lcm = partial(
    Case,
    adds=lambda schedule, grid: (
        {"scaling": 10.0} if type(schedule).__name__ == "DiscreteVP" else {}
    ),
    marginal=False,
)


def _heun(options: dict, expect: dict) -> Case:
    def adds(schedule, grid):
        line = _on_line(schedule, grid) and "space" not in options
        return STAGED | {"frame": "line" if line else "rho", "end": _end(schedule)}

    return Case("heun", loops.heun, options, expect, adds)


def _unipc(order: int, variant: str, corrector: bool = True) -> Case:
    options = {"order": order, "variant": variant} | ({} if corrector else {"corrector": False})
    return Case("unipc", loops.unipc, options, {"fall": True, **options})


CASES = [
    Case("ddim", loops.ddim),
    Case("ddim", loops.ddim, {"eta": 1.0}, {"eta": 1.0}),
    Case("ddim", loops.ddim, {"eta": 0.3}, {"eta": 0.3}),
    Case("euler", loops.euler),
    _ancestral("euler_ancestral", loops.euler_ancestral),
    _ancestral("euler_ancestral", loops.euler_ancestral, {"eta": 0.6}, {"eta": 0.6}),
    _heun({}, {}),
    _heun(
        {"space": "rho", "s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 30.0},
        {"churn": 2.0, "low": 0.05, "high": 30.0},
    ),
    _staged("dpmpp_2s", loops.dpmpp_2s),
    _staged("dpmpp_2s", loops.dpmpp_2s, {"r": 0.3}, {"r": 0.3}),
    Case("dpmpp_2m", loops.dpmpp_2m),
    Case("dpmpp_2m", loops.dpmpp_2m, {"variant": "heun"}, {"kind": "heun"}),
    Case("dpmpp_2m", loops.dpmpp_2m, {"lower_order_final": True}, {"fall_below": 10**6}),
    Case("dpmpp_3m", loops.dpmpp_3m),
    Case("dpmpp_3m", loops.dpmpp_3m, {"lower_order_final": True}, {"fall_below": 10**6}),
    Case("dpmpp_3m", loops.dpmpp_3m, {"compat": "k-diffusion"}, {"half": True}),
    Case(
        "dpmpp_3m",
        loops.dpmpp_3m,
        {"compat": "diffusers"},
        {"half": True, "second": "midpoint", "fall_below": 15},
    ),
    Case("dpmpp_2m_sde", loops.dpmpp_2m, {}, {"eta": 1.0}),
    Case(
        "dpmpp_2m_sde",
        loops.dpmpp_2m,
        {"eta": 0.4, "variant": "heun"},
        {"eta": 0.4, "kind": "heun"},
    ),
    Case("dpmpp_2m_sde", loops.dpmpp_2m, {"eta": 1.3}, {"eta": 1.3}),
    _unipc(1, "bh1"),
    _unipc(1, "bh2"),
    _unipc(2, "bh1"),
    _unipc(2, "bh2"),
    _unipc(3, "bh1"),
    _unipc(3, "bh2"),
    _unipc(3, "vary"),
    _unipc(2, "vary"),
    _unipc(3, "bh2", corrector=False),
    _unipc(2, "bh2", corrector=False),
    Case("unipc", loops.unipc, {"lower_order_final": False}, {"order": 3}),
    _lcm("lcm", loops.lcm),
    _lcm("lcm", loops.lcm, {"boundary": False}, {"scaling": None}),
    *multistep.CASES,
    *singlestep.CASES,
    *stochastic.CASES,
    *refined.CASES,
    *stabilised.CASES,
]

# what a registry has beside them: held to everything that needs no second derivation
UNLISTED = [Case(name, None) for name in SOLVERS if name not in {case.name for case in CASES}]

SCHEDULES = [
    VP(),
    DiscreteVP.scaled_linear(),
    VE(),
    EDM(),
    Flow(3.0),
    TrigFlow(0.5),
    DiscreteVP.cosine().zero_terminal_snr(),
]


def schedule_id(schedule) -> str:
    name = type(schedule).__name__
    return f"{name}-zero" if name == "DiscreteVP" and schedule.alpha(schedule.t_max) == 0 else name


def grid(schedule, n: int, *, whole: bool) -> np.ndarray:
    """An uneven grid of n steps. whole: from t_max (alpha = 0 where the schedule has it) to
    sigma = 0, else between two finite levels.
    """
    top, low = schedule.half_log_snr(schedule.t_finite), schedule.half_log_snr(schedule.t_min)
    k = np.arange(n + 1)
    share = np.cumsum(1 + 0.45 * np.sin(2.1 * k + 0.4))
    share = (share - share[0]) / (share[-1] - share[0])
    levels = top + (low - top) * (0.03 + 0.94 * share)
    t = schedule.time(levels)
    if whole:
        t[0], t[-1] = schedule.t_max, schedule.t_zero
    return t
