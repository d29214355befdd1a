"""A Plan run on basis vectors, and a direct loop following it call by call.

`states(plan)` feeds the NumPy interpreter e_0 as start noise, e_1, e_2, .. as predictions (in the
plan's stored kind) or as raw model outputs, and the next basis vectors as noises: every state of
the run becomes its row of coefficients. `follow` runs a direct loop (oracle.loops) beside it, hands
the loop the plan's own state at every call, and measures each step alone, coefficient by
coefficient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import interpreter
import numpy as np

from .linear import EPS, Lin, extended, mp
from .marginals import Point, point, points


@dataclass
class Run:
    """states [calls+1, D]: x before each call, then the end; row [calls]: each call's row."""

    states: np.ndarray
    row: list[int]
    calls: int
    draws: int


def noise_ids(plan) -> list[int]:
    """Ids of the noises drawn after the start, in the order they are read."""
    read = plan.reads[:, None] >> (plan.layout.noise(0) + np.arange(plan.L)) & 1  # [R, L]
    return [n for n in dict.fromkeys(plan.ids[read == 1].tolist()) if n != 0]


def states(plan, *, raw: bool = False, scale: tuple = ()) -> Run:
    """Run the plan on basis vectors; raw: the vectors stand for model outputs, else predictions. Of
    a plan with branches every branch has one of its own, and scale is that of the run.
    """
    if not raw:
        asked = plan.call >= 0
        p, q = np.where(asked, 0.0, plan.p), np.where(asked, 1.0, plan.q)
        plan = replace(plan, p=p, q=q, clip=np.zeros(plan.rows))
    ids = noise_ids(plan)
    unit = np.eye(1 + plan.G * plan.nfe + len(ids))
    rows = [i for i in range(plan.rows) if plan.call[i] >= 0]
    at = {row: 1 + plan.G * k for k, row in enumerate(rows)}
    noise = {n: unit[1 + plan.G * plan.nfe + k] for k, n in enumerate(ids)}
    trace: list = []
    model = lambda x, t, i, call: list(unit[at[i] : at[i] + plan.G])
    interpreter.run(plan, unit[0], model, noise.__getitem__, trace=trace, scale=scale)
    return Run(np.array([trace[i - 1][0] for i in rows] + [trace[-1][0]]), rows, plan.nfe, len(ids))


def x0_from(stored: str, x: Lin, m: Lin, p: Point) -> Lin:
    """The x0 a stored prediction stands for: m itself, or from eps, or from the velocity of
    (alpha x0 + sigma eps)/(alpha + sigma).
    """
    if stored == "x0":
        return m
    if stored == "flow":
        return (1 / (p.alpha + p.sigma)) * x - (p.sigma / (p.alpha + p.sigma)) * m
    return (1 / p.alpha) * x - (p.sigma / p.alpha) * m


def x0_of_output(prediction: str, x: Lin, f: Lin, p: Point, sigma_data: float = 1.0) -> Lin:
    """x0 from a raw model output, by the definition of each prediction, solved for x0 beside
    x = alpha x0 + sigma eps.
    """
    if prediction in ("x0", "eps", "flow"):
        return x0_from(prediction, x, f, p)
    if prediction == "v":  # v = alpha eps - sigma x0
        norm = p.alpha**2 + p.sigma**2
        return (p.alpha / norm) * x - (p.sigma / norm) * f
    sd = mp.mpf(sigma_data)
    if prediction == "edm":  # x0 = c_skip x/alpha + c_out F, at rho = sigma/alpha
        norm = p.sigma**2 + (p.alpha * sd) ** 2
        return (p.alpha * sd**2 / norm) * x + (p.sigma * sd / mp.sqrt(norm)) * f
    s = p.sigma / sd  # trigflow: x/n = cos x0 + sin z, F sd = dx/dt, n^2 = alpha^2 + s^2
    norm = p.alpha**2 + s**2
    return (p.alpha / norm) * x - (p.sigma / mp.sqrt(norm)) * f


@dataclass
class Comparison:
    """defect [calls+1]: largest |plan - derived| / mag over the coefficients of each state (before
    each call, then the end); room [calls+1]: what float64 leaves of the difference, from `floor`
    up.
    """

    defect: np.ndarray
    room: np.ndarray

    def agrees(self) -> bool:
        return bool((self.defect <= self.room).all())

    def __str__(self) -> str:
        k, last = int(np.argmax(self.defect / self.room)), len(self.defect) - 1
        return f"state {k} of {last}: defect {self.defect[k]:.2e}, room {self.room[k]:.2e}"


def follow(
    plan, schedule, loop: Callable, options: dict, *, raw: bool = False, reset: bool = True
) -> Comparison:
    """Run the direct loop beside the plan and compare every state.

    reset: the loop continues from the plan's state, so that each number is the defect of one row;
    else of all rows so far. An option stage="of the plan" becomes the point at the float time the
    plan asks at, once that time is found to be lambda's to rounding.
    """
    run, kind = states(plan, raw=raw), plan.note["prediction"]
    grid = points(schedule, plan.note["times"])
    unit = np.eye(1 + run.calls + run.draws)
    defects, asked, draws = [], [], 0

    def compare(x: Lin) -> Lin:
        defects.append(x.defect(run.states[len(defects)]))
        return Lin.of(run.states[len(defects) - 1]) if reset else x

    def ask(x: Lin, p: Point):
        x = compare(x)
        asked.append(p)
        same_point(plan, run.row[len(asked) - 1], p)
        value = Lin.of(unit[len(asked)])
        if not raw:
            return x, x0_from(plan.stored, x, value, p)
        x0 = x0_of_output(kind, x, value, p, plan.note["model"]["sigma_data"])
        # x - sigma d and its like cancel x
        return x, x0 if plan.stored == "x0" else x0.through((1 / (p.alpha + p.sigma)) * x)

    def draw() -> Lin:
        nonlocal draws
        draws += 1
        return Lin.of(unit[run.calls + draws])

    def stage(lam):
        return plan_point(plan, schedule, run.row[len(asked)], lam)

    options = options | ({"stage": stage} if "stage" in options else {})
    compare(loop(grid, extended_start(grid[0], unit[0]), ask, draw, **options))
    if (len(asked), draws) != (run.calls, run.draws):
        raise AssertionError(
            f"the loop made {len(asked)} calls and {draws} draws, the plan {run.calls} and "
            f"{run.draws}"
        )
    stages = {id(p) for p in asked} - {id(p) for p in grid}
    return Comparison(np.array(defects), room([*asked, grid[-1]], stages, schedule))


def room(visited: list[Point], stages: set[int], schedule, floor: float = 1e-12) -> np.ndarray:
    """Per state: `floor`, or what float64 can know of the spacings its row depends on, where steps
    are short.

    A weight is a function of differences of lambda. lambda is known to a few eps (1 + |lambda|),
    and between grid points to what the rounding of the time makes of it; over the difference, that
    is the relative accuracy of the weight. A row looks back at most four points.
    """
    known = [0.0]
    for a, b in zip(visited, visited[1:], strict=False):
        lam = max((abs(p.lam) for p in (a, b) if mp.isfinite(p.lam)), default=0)
        gap = abs(b.lam - a.lam)
        blur = 8 * EPS * (1 + lam) + sum(reach(schedule, p) for p in (a, b) if id(p) in stages)
        known.append(float(blur / gap) if gap else 0.0)
    return np.array([max([floor, *known[max(0, k - 3) : k + 1]]) for k in range(len(visited))])


def reach(schedule, p: Point, ulps: int = 4):
    """How far lambda moves when the time moves by a few units in the last place."""
    step = ulps * np.spacing(p.t)
    return max(abs(point(schedule, t).lam - p.lam) for t in (p.t - step, p.t + step))


def extended_start(p: Point, unit: np.ndarray) -> Lin:
    """sigma_0 times unit noise: where a run starts."""
    sigma = abs(extended(p.sigma))
    return Lin(sigma * np.asarray(unit, np.longdouble), sigma * np.asarray(unit, np.longdouble))


def plan_point(plan, schedule, row: int, lam) -> Point:
    """The point at the time row `row` asks its model, which must be lambda's time to rounding (the
    plan's model is told the schedule's time).
    """
    p = replace(point(schedule, float(plan.t[row - 1, 0])))  # a stage, though a grid has its time
    if abs(p.lam - lam) > reach(schedule, p) + 4 * EPS * (1 + abs(lam)):
        raise AssertionError(
            f"row {row} asks at t = {p.t!r}, lambda = {mp.nstr(p.lam, 17)}; lambda = "
            f"{mp.nstr(lam, 17)} is due"
        )
    return p


def same_point(plan, row: int, p: Point) -> None:
    """The row asks its model where the loop does: the same time, the same alpha and sigma to
    rounding.
    """
    plain = plan.note["prediction"] in ("x0", "eps", "v", "flow")
    told_t = plain and plan.note["model"]["time"] is None
    if p.t is not None and told_t and plan.t[row - 1, 0] != p.t:
        raise AssertionError(f"row {row}: t = {plan.t[row - 1, 0]!r}; {p.t!r} is due")
    for name in ("alpha", "sigma"):
        want, have = float(getattr(p, name)), float(getattr(plan, name)[row])
        room = 64 * EPS * (1 + (abs(float(p.lam)) if mp.isfinite(p.lam) else 0)) * max(want, have)
        if abs(want - have) > room:
            raise AssertionError(
                f"row {row}: {name} = {have!r}, derived {want!r}; {room:.1e} apart is rounding"
            )
