"""How far a plan's rows stay on its schedule when every prediction is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

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
    places = {name: k for k, name in enumerate(drawn(plan), 2)}

    def unit(k: int) -> np.ndarray:
        """One part of x alone: the data, the noise of the start, or a drawn noise."""
        part = np.zeros(2 + len(places))
        part[k] = 1.0
        return part

    # a foreign table may hold any finite number; its defect is then inf
    with np.errstate(all="ignore"):
        if places:
            start = alpha[0] * unit(0) + sigma[0] * unit(1)
            noise = lambda name: unit(places[name])
            states = _states(plan, start, [unit(0)] * plan.rows, noise, unit(1))
            parts = np.array([(x[0], np.sqrt((x[1:] ** 2).sum())) for x in states])
        else:  # as complex numbers, which Python adds up sooner than NumPy does short arrays
            start = complex(alpha[0], sigma[0])
            states = np.array([*_states(plan, start, [1.0] * plan.rows, eps=1.0j)], complex)
            parts = np.stack([states.real, np.abs(states.imag)], axis=1)
        off = np.abs(parts - np.stack([alpha, sigma], axis=1)).max(1) / (alpha + sigma)
        worst = float(off.max())
    return worst if worst == worst else np.inf


def over_predictions(plan: Plan) -> np.ndarray:
    """x at every row from 1 on [R - 1, nfe + 1 + noises], over what the model says at each call, as
    x0, then the state at row 1, then every drawn noise. Branches are taken to agree.
    """
    n, ids = plan.nfe, drawn(plan)
    units = np.eye(n + 1 + len(ids))
    answers = units[np.maximum(np.cumsum(plan.call >= 0) - 1, 0)]
    noises = dict(zip(ids, units[n + 1 :], strict=True))
    return np.array([*_states(plan, units[n], answers, noises.get)])


def over_law(plan: Plan, start: np.ndarray, denoise: Callable, noise: Callable) -> np.ndarray:
    """x after the last row of a run that stands at `start` at row 1: the model says
    denoise(x, alpha, sigma) = E[x0|x], a row draws noise(id). Guidance is left out.
    """
    asked = _Asked(plan, denoise)
    for x in _states(plan, start, asked, noise):
        asked.x = x
    return asked.x


class _Asked:
    """What the model says at row i, of the x that was handed out last."""

    def __init__(self, plan: Plan, denoise: Callable) -> None:
        self.plan, self.denoise, self.x = plan, denoise, None

    def __getitem__(self, i: int) -> np.ndarray:
        return self.denoise(self.x, self.plan.alpha[i], self.plan.sigma[i])


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


def drawn(plan: Plan) -> list[int]:
    """Ids of the noises that rows draw."""
    return sorted({*plan.ids.ravel().tolist()} - {-1})


def _states(
    plan: Plan,
    start: Any,
    answers: Sequence,
    noise: Callable[[int], Any] | None = None,
    eps: Any = None,
) -> Iterator[Any]:
    """x at every row from 1 on, where it is `start`, over what the model says at row i, answers[i]
    as x0, and noise(id): numbers or arrays, whatever can be added and multiplied by a number.
    eps: what it says where the run begins at sigma = 0, where x and x0 do not tell.
    """
    at = plan.layout
    x = zero = 0.0 * start
    part = plan.alpha + plan.sigma if plan.stored == "flow" else plan.alpha
    answered = plan.reads >> at.f & (2 << at.G) - 1 != 0  # 0 where no output is read
    with np.errstate(divide="ignore"):
        share, per_sigma = np.where(answered & (plan.q != 0.0), 1.0 / plan.q, 0.0), 1.0 / plan.sigma
    words = plan.call, part, per_sigma, plan.p, share, plan.ids, plan.dst
    rows = zip(_terms(plan), *(v.tolist() for v in words), strict=True)
    held = [zero] * at.W  # operands of the row at hand
    for i, (terms, call, a, per_s, p, per_q, ids, slots) in enumerate(islice(rows, plan.rows - 1)):
        if call < 0:
            m, f = p * x, zero
        else:
            m = answers[i] if plan.stored == "x0" else (x - a * answers[i]) * per_s
            if i == 1 and eps is not None and per_s == np.inf and plan.stored != "x0":
                m = eps - answers[i] if plan.stored == "flow" else eps
            f = (m - p * x) * per_q
        held[0], held[at.m] = x, m
        held[at.f : at.noise(0)] = [f] * (1 + at.G)
        held[at.noise(0) :] = [noise(name) if name >= 0 else zero for name in ids]
        x, *kept = [sum([c * held[k] for k, c in line], zero) for line in terms]
        x = x if i else start  # the run starts there, whatever label its noise was given
        for slot, value in zip(slots, kept, strict=True):
            if slot >= 0:
                held[at.slot(slot)] = value
        yield x


def _terms(plan: Plan) -> Iterator[list[list[tuple[int, float]]]]:
    """(column, number) of what is read for x', u and v of every row."""
    read = plan.M * ((plan.reads[:, None] >> np.arange(plan.W)) & 1)[:, None]
    where, ends = np.nonzero(read), np.cumsum(np.count_nonzero(read, axis=2)).tolist()
    pairs = list(zip(where[2].tolist(), read[where].tolist(), strict=True))
    lines = [pairs[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return (lines[i : i + 3] for i in range(0, len(lines), 3))
