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
        exact = np.zeros(plan.rows, int), np.array([plan.alpha[1], plan.sigma[1]])
        states = _states(plan, *exact)
        spread = np.sqrt((states[:, 1:] ** 2).sum(1))
        off = np.maximum(np.abs(states[:, 0] - alpha), np.abs(spread - sigma)) / (alpha + sigma)
    return float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))


def over_predictions(plan: Plan) -> np.ndarray:
    """x at every row from 1 on [R - 1, nfe + 1 + noises], over what the model says at each call, as
    x0, then the state at row 1, then every drawn noise. Branches are taken to agree.
    """
    start = np.zeros(plan.nfe + 1)
    start[-1] = 1.0
    return _states(plan, np.maximum(np.cumsum(plan.call >= 0) - 1, 0), start)


def rows(plan: Plan) -> np.ndarray:
    """w [R - 2, 1 + nfe] of every row from 1 on, x' = w_0 x + sum_l w_l x0_l + noise, over what the
    model says at every call, as x0; w_0 is what is left of the noise of the start.
    """
    x, n = over_predictions(plan), plan.nfe
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.nan_to_num(x[1:, n] / x[:-1, n], posinf=0.0, neginf=0.0)[:, None]
    return np.concatenate([kept, x[1:, :n] - kept * x[:-1, :n]], 1)


def weights(plan: Plan) -> np.ndarray:
    """sum_l |w_l| [R - 2] of every row from 1 on, as `rows` has them."""
    return np.abs(rows(plan)[:, 1:]).sum(1)


def heaviest(plan: Plan) -> float:
    """The largest of `weights`: by how much a row may enlarge what the model says otherwise."""
    return float(weights(plan).max(initial=0.0))


def _states(plan: Plan, answer: np.ndarray, start: np.ndarray) -> np.ndarray:
    """x at every row from 1 on, over n predictions x0, of which row i is given number answer[i],
    the noise of the start, and every drawn noise; it is start [n+1] at row 1.
    """
    at, ids, dst, n = plan.layout, plan.ids.tolist(), plan.dst.tolist(), len(start) - 1
    drawn_ids = sorted({k for row in ids for k in row if k >= 0})
    noises = {k: n + 1 + i for i, k in enumerate(drawn_ids)}
    states, drawn = np.zeros((plan.rows, n + 1 + len(noises))), at.noise(0)
    x0 = np.eye(n, states.shape[1])[answer]
    read = plan.M * ((plan.reads[:, None] >> np.arange(at.W)) & 1)[:, None]
    q = plan.q * (plan.reads >> at.f & (2 << at.G) - 1 != 0)  # 0 where no output is read
    # an answer that nothing reads is not looked for: at sigma = 0 there may be none
    call = np.where(plan.reads >> at.m & (4 << at.G) - 1, plan.call, -1)
    words = (call, plan.alpha, plan.sigma, plan.p, q)
    rows = zip(*(v[:-1].tolist() for v in words), strict=True)  # the last one holds
    operands = np.zeros((at.W, states.shape[1]))  # of the row at hand
    for i, row in enumerate(rows):
        operands[0] = states[i]
        operands[at.m], operands[at.f : drawn] = _prediction(plan.stored, states[i], x0[i], *row)
        operands[drawn:] = 0.0
        for k, noise in enumerate(ids[i]):
            if noise >= 0:
                operands[drawn + k, noises[noise]] = 1.0
        states[i + 1], *kept = read[i] @ operands
        if i == 0:  # the run starts there, whatever label its noise was given
            states[1] = 0.0
            states[1, : n + 1] = start
        for slot, value in zip(dst[i], kept, strict=True):
            if slot >= 0:
                operands[at.slot(slot)] = value
    return states[1:]


def _prediction(
    stored: str, x: np.ndarray, x0: np.ndarray, call: int, a: float, s: float, p: float, q: float
) -> tuple[np.ndarray, np.ndarray | float]:
    """m, and the output f that gives it, m = p x + q f; 0 where q is 0."""
    if call < 0:
        return p * x, 0.0
    m = x0 if stored == "x0" else (x - (a + s if stored == "flow" else a) * x0) / s
    return m, (m - p * x) / q if q else 0.0
