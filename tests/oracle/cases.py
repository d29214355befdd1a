"""Which direct loop says what each solver's plan must be, with what options, and the schedules and
grids they are compared on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow
from fastsample.solvers import SOLVERS

from . import loops
from .linear import mp
from .marginals import point


@dataclass(frozen=True)
class Case:
    """A solver with options, the loop it must equal, and the loop's options (`loop_options` adds
    what depends on schedule and grid).
    """

    name: str
    loop: object
    options: dict = field(default_factory=dict)
    expect: dict = field(default_factory=dict)

    @property
    def id(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])

    def plan(self, schedule, grid, prediction: str = "x0", **more):
        return SOLVERS[self.name](schedule, grid, prediction=prediction, **self.options, **more)

    def loop_options(self, schedule, grid) -> dict:
        kind, more = type(schedule).__name__, {}
        if self.loop in (loops.heun, loops.dpmpp_2s):
            more["stage"] = "of the plan"
        if self.loop is loops.heun:
            on_line = kind in ("Flow", "TrigFlow") or schedule.alpha(grid[0]) == 0
            more["frame"] = "line" if on_line and "space" not in self.options else "rho"
            more["end"] = -mp.inf if kind == "EDM" else point(schedule, schedule.t_max).lam
        if self.loop is loops.euler_ancestral:
            more["form"] = "rf" if kind == "Flow" else "ve"
        if self.loop is loops.lcm and kind == "DiscreteVP":
            more["scaling"] = 10.0
        return more | self.expect


def _unipc(order: int, variant: str, corrector: bool = True) -> Case:
    options = {"order": order, "variant": variant} | ({} if corrector else {"corrector": False})
    return Case("unipc", loops.unipc, options, {"fall": True, **options})


CASES = [
    Case("ddim", loops.ddim),
    Case("ddim", loops.ddim, {"eta": 1.0}, {"eta": 1.0}),
    Case("ddim", loops.ddim, {"eta": 0.3}, {"eta": 0.3}),
    Case("euler", loops.euler),
    Case("euler_ancestral", loops.euler_ancestral),
    Case("euler_ancestral", loops.euler_ancestral, {"eta": 0.6}, {"eta": 0.6}),
    Case("heun", loops.heun),
    Case(
        "heun",
        loops.heun,
        {"space": "rho", "s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 30.0},
        {"churn": 2.0, "low": 0.05, "high": 30.0},
    ),
    Case("dpmpp_2s", loops.dpmpp_2s),
    Case("dpmpp_2s", loops.dpmpp_2s, {"r": 0.3}, {"r": 0.3}),
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
    Case("lcm", loops.lcm),
    Case("lcm", loops.lcm, {"boundary": False}, {"scaling": None}),
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
