"""Does a plan's order pay on its grid? A polynomial through outputs that stand far apart, or a
stage far ahead, can end further from the flow than first-order steps do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .consistency import over_law

if TYPE_CHECKING:
    from .plan import Plan

# standard deviations of the directions of Gaussian data, as those of images of unit range fall off
STDS = np.geomspace(0.02, 1.0, 12)
# no plan above it that was measured on a network ended nearer (docs/solvers.md)
WORSE = 2.0


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
