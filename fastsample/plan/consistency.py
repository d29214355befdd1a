"""How far a plan's rows stay on its schedule when every prediction is exact."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .plan import Plan

# A defect above CONSISTENT is a wrong formula, not rounding (sound rows show about 1e-15, at
# N = 1000 1e-12), unless weights are huge (a Heun step over many decades): rounding grows with the
# sum of their sizes.
CONSISTENT, ROUNDING = 1e-9, 1e-14


def accepted(plan: Plan) -> float:
    """The largest defect that rounding explains."""
    return max(CONSISTENT, ROUNDING * float(np.abs(plan.M).sum(2).max()))


def defect(plan: Plan) -> float:
    """Largest deviation of (alpha, sigma) from the plan's, relative to alpha + sigma."""
    # a foreign table may hold any finite number; its defect is then inf
    with np.errstate(all="ignore"):
        defects = [
            max(abs(a - alpha), abs(s - sigma)) / (alpha + sigma)
            for a, s, alpha, sigma in _exact_levels(plan)
        ]
    return float(max(np.nan_to_num(defects, nan=np.inf), default=0.0))


def _exact_levels(plan: Plan) -> Iterator[tuple[float, ...]]:
    """(alpha, sigma) of x with exact predictions, then as the plan has them, row by row.

    The rows are run on coefficient vectors over (x0, start noise, every drawn noise).
    """
    at, ids = plan.layout, sorted({int(k) for k in plan.ids.ravel() if k >= 0})
    noises = {k: 2 + n for n, k in enumerate(ids)}
    width, drawn = 2 + len(noises), at.noise(0)
    x0 = np.zeros(width)
    x0[0] = 1.0
    read = plan.M * ((plan.reads[:, None] >> np.arange(at.W)) & 1)[:, None]
    operands = np.zeros((at.W, width))  # of the row at hand
    for i in range(plan.rows):
        if i == 1:  # where the run starts, whatever label its noise was given
            operands[0] = 0.0
            operands[0, :2] = plan.alpha[1], plan.sigma[1]
        if i >= 1:
            spread = float(np.sqrt((operands[0, 1:] ** 2).sum()))
            yield operands[0, 0], spread, plan.alpha[i], plan.sigma[i]
        operands[at.m], operands[at.f : drawn] = _exact_prediction(plan, i, operands[0], x0)
        operands[drawn:] = 0.0
        for k, noise in enumerate(plan.ids[i]):
            if noise >= 0:
                operands[drawn + k, noises[int(noise)]] = 1.0
        x, *kept = read[i] @ operands
        for slot, value in zip(plan.dst[i], kept, strict=True):
            if slot >= 0:
                operands[at.slot(slot)] = value
        operands[0] = x


def _exact_prediction(
    plan: Plan, i: int, x: np.ndarray, x0: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    a, s = plan.alpha[i], plan.sigma[i]
    if plan.call[i] < 0:
        return plan.p[i] * x, np.zeros_like(x)
    m = x0 if plan.stored == "x0" else (x - (a + s if plan.stored == "flow" else a) * x0) / s
    f = (m - plan.p[i] * x) / plan.q[i] if plan.q[i] else np.zeros_like(x)
    return m, f
