"""Does a plan's order pay on its grid? A polynomial through outputs that stand far apart, or a
stage far ahead, can end further from the flow than first-order steps do.

Two answers: of Gaussian data, whose flow is known, for any plan; and, for a solver with its default
arguments on a grid of a kind that docs/solvers.md measures, what was measured there on a network,
whose outputs are less smooth. Laws with modes, or with errors of the outputs, do not foretell that
(of 440 plans measured the best of two dozen tried had 23 on the wrong side).
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from pkgutil import get_data
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .consistency import over_law
from .steps import begins

if TYPE_CHECKING:
    from .plan import Plan

# standard deviations of the directions of Gaussian data, as those of images of unit range fall off
STDS = np.geomspace(0.02, 1.0, 12)
# no plan above it that was measured on a network ended nearer (docs/solvers.md)
WORSE = 2.0
# dB below first order from which a measured plan is warned of
FURTHER = 1.0
# written by tools/solvers_page.py: {grid: {solver: {arguments, dB: [[evaluations, its, ddim's]]}}}
MEASURED = Path(__file__).with_name("measured.json")
# what s = sigma/(alpha + sigma) goes evenly in, back and forth; in sigma/alpha, s/(1 - s)
KINDS = {
    "Karras": (lambda s: (s / (1 - s)) ** (1 / 7), lambda w: w**7 / (1 + w**7)),
    "log-uniform": (lambda s: np.log(s / (1 - s)), lambda w: 1 / (1 + np.exp(-w))),
    "uniform flow time": (lambda s: s, lambda w: w),
}
LIKE = 0.25  # of a mean step in log(sigma/alpha): how near the levels of a kind of grid are to it


class Known(NamedTuple):
    """A plan's end on the embedded model, measured as PSNR to the teacher's, and that of ddim."""

    evaluations: int
    grid: str
    dB: float
    first: float


def warning(plan: Plan) -> str:
    """One sentence for a plan whose order does not pay, with the figure; empty for any other."""
    if (known := measured(plan)) is not None:
        return (
            f"on the embedded model its solver ended at {known.dB:.1f} dB, where first-order steps "
            f"(ddim) ended at {known.first:.1f}, with {known.evaluations} evaluations on such a "
            f"grid ({known.grid})"
        )
    if (beside := beside_first_order(plan)) > WORSE:
        return (
            f"its end is {beside:.2g} times as far off as that of first-order steps at the same "
            "levels (on Gaussian data)"
        )
    return ""


def measured(plan: Plan) -> Known | None:
    """What was measured of the plan's solver, with as many evaluations or with the next fewer and
    more, if that was FURTHER off than ddim; None where it was not, or nothing was measured.
    """
    note = plan.note
    other = note.get("found") or note.get("analytic") or note.get("start") is not None
    kind = None if other else kind_of(plan)
    of = _figures().get(kind, {}).get(str(note.get("solver")))
    if of is None or of["arguments"] != note.get("arguments"):
        return None
    n, cells = plan.nfe, sorted(of["dB"])
    near = [c for c in cells if c[0] == n] or [
        *[c for c in cells if c[0] < n][-1:],
        *[c for c in cells if c[0] > n][:1],
    ]
    exact = any(c[0] == n for c in near)
    if len(near) < 2 - exact or not all(first - dB > FURTHER for _, dB, first in near):
        return None
    return Known(near[0][0], kind, *near[0][1:])


def kind_of(plan: Plan) -> str | None:
    """Which of the measured kinds the plan's grid is of, by the levels at which its steps begin
    (Karras' where two fit any); None for another.
    """
    rows = [*begins(plan), *([plan.rows - 1] if plan.sigma[-1] else [])]
    s = plan.sigma[rows] / (plan.alpha[rows] + plan.sigma[rows])
    if len(s) < 2 or not s[0] > s[-1] > 0:
        return None
    log = lambda s: np.log(s[1:]) - np.log1p(-s[1:])
    with np.errstate(all="ignore"):
        levels = {
            name: back(np.linspace(*warp(s[[0, -1]]), len(s)))
            for name, (warp, back) in KINDS.items()
        }
        off = {name: np.abs(log(like) - log(s)).max() for name, like in levels.items()}
        room = LIKE * (log(s)[0] - log(s)[-1]) / max(len(s) - 2, 1)
    off = {name: far for name, far in off.items() if far == far}
    kind = min(off, key=off.__getitem__)
    name = f"{kind}, not to zero" if plan.sigma[-1] else kind
    return name if off[kind] <= max(room, 1e-6) and name in _figures() else None


@lru_cache
def _figures() -> dict:
    return json.loads(get_data(__package__, MEASURED.name))  # also from a zip


def beside_first_order(plan: Plan) -> float:
    """The error of the plan's end over that of first-order steps through the levels at which it
    asks the model, root mean squares over Gaussian data of standard deviations STDS, whose flow is
    known: x goes as sqrt(alpha² std² + sigma²). nan for plans that draw noise, leave the schedule
    by design, follow guidance of their own or were judged by a search on a model, and where
    first-order steps are exact.
    """
    note = plan.note
    if plan.L or note.get("consistent") is False or note.get("direction") or note.get("found"):
        return np.nan
    own = lambda a, s: np.hypot(a * STDS, s)
    denoise = lambda x, a, s: a * (STDS / own(a, s)) ** 2 * x
    asked = np.flatnonzero(plan.call >= 0)
    points = [*zip(plan.alpha[asked], plan.sigma[asked], strict=True)]
    points.append((plan.alpha[-1], plan.sigma[-1]))
    x, (a, s) = own(*points[0]), points[0]
    for to_a, to_s in points[1:]:
        if to_s * a < s * to_a:  # forward: a level asked at twice, or gone back to, is one
            x0 = denoise(x, a, s)
            x, a, s = to_a * x0 + to_s / s * (x - a * x0), to_a, to_s
    exact = own(a, s)
    with np.errstate(all="ignore"):
        end = over_law(plan, own(plan.alpha[1], plan.sigma[1]), denoise, None)
        found, first = (float(np.sqrt(np.mean((v - exact) ** 2))) for v in (end, x))
    return found / first if first > 1e-9 else np.nan
