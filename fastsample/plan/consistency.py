"""How far a plan's rows stay on its schedule when every prediction is exact."""

from __future__ import annotations

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
    alpha, sigma = plan.alpha[1:], plan.sigma[1:]
    # a foreign table may hold any finite number; its defect is then inf
    with np.errstate(all="ignore"):
        states = _exact_states(plan)
        spread = np.sqrt((states[:, 1:] ** 2).sum(1))
        off = np.maximum(np.abs(states[:, 0] - alpha), np.abs(spread - sigma)) / (alpha + sigma)
    return float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))


def _exact_states(plan: Plan) -> np.ndarray:
    """x at every row from 1 on where each prediction is exact [R - 1, n], over x0, the noise it
    starts from, and every drawn noise.
    """
    at, ids, dst = plan.layout, plan.ids.tolist(), plan.dst.tolist()
    noises = {k: 2 + n for n, k in enumerate(sorted({k for row in ids for k in row if k >= 0}))}
    states, drawn = np.zeros((plan.rows, 2 + len(noises))), at.noise(0)
    x0 = np.eye(1, states.shape[1])[0]
    read = plan.M * ((plan.reads[:, None] >> np.arange(at.W)) & 1)[:, None]
    q = plan.q * (plan.reads >> at.f & (2 << at.G) - 1 != 0)  # 0 where no output is read
    words = (plan.call, plan.alpha, plan.sigma, plan.p, q)
    rows = zip(*(v[:-1].tolist() for v in words), strict=True)  # the last one holds
    operands = np.zeros((at.W, len(x0)))  # of the row at hand
    for i, row in enumerate(rows):
        operands[0] = states[i]
        operands[at.m], operands[at.f : drawn] = _exact_prediction(plan.stored, states[i], x0, *row)
        operands[drawn:] = 0.0
        for k, noise in enumerate(ids[i]):
            if noise >= 0:
                operands[drawn + k, noises[noise]] = 1.0
        states[i + 1], *kept = read[i] @ operands
        if i == 0:  # the run starts there, whatever label its noise was given
            states[1] = 0.0
            states[1, :2] = plan.alpha[1], plan.sigma[1]
        for slot, value in zip(dst[i], kept, strict=True):
            if slot >= 0:
                operands[at.slot(slot)] = value
    return states[1:]


def _exact_prediction(
    stored: str, x: np.ndarray, x0: np.ndarray, call: int, a: float, s: float, p: float, q: float
) -> tuple[np.ndarray, np.ndarray | float]:
    """m, and the output f that gives it, m = p x + q f; 0 where q is 0."""
    if call < 0:
        return p * x, 0.0
    m = x0 if stored == "x0" else (x - (a + s if stored == "flow" else a) * x0) / s
    return m, (m - p * x) / q if q else 0.0
