"""How far a plan's rows stay on its schedule when every prediction is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .plan import Plan

# A defect above CONSISTENT is a wrong formula, not rounding (sound rows show about 1e-15, at
# N = 1000 1e-12), unless rows enlarge rounding as much: a Heun step over many decades, whose
# weights are huge, or stages one after the other from where sigma/alpha is 1e5. What rounding does
# is tried out: MARGIN times the most that up to two units in the last place of every coefficient
# move in DRAWS draws.
CONSISTENT = 1e-9
DRAWS, MARGIN = 4, 4


def accepted(plan: Plan) -> float:
    """The largest defect that rounding explains. Takes DRAWS times as long as `defect`."""
    moved, draw, own = 0.0, np.random.default_rng(0), _landed(plan)
    for _ in range(DRAWS):
        # towards 0, so that every number stays finite
        smaller = np.finfo(np.float64).eps * draw.integers(0, 3, plan.M.shape)
        smaller[-1] = 0.0  # which holds
        moved = max(moved, _off(plan, _landed(replace(plan, M=plan.M * (1.0 - smaller))), own))
    return max(CONSISTENT, MARGIN * moved) if moved < np.inf else CONSISTENT


def is_sound(plan: Plan) -> bool:
    """Do its rows stay on the schedule, to rounding?"""
    found = defect(plan)
    return found <= CONSISTENT or found <= accepted(plan)


def defect(plan: Plan) -> float:
    """Largest deviation of (alpha, sigma) from the plan's, relative to alpha + sigma."""
    return _off(plan, _landed(plan), np.stack([plan.alpha, plan.sigma])[:, 1:])


def _off(plan: Plan, found: np.ndarray, levels: np.ndarray) -> float:
    """The largest difference of two [2, R-1], relative to the plan's alpha + sigma."""
    with np.errstate(all="ignore"):
        worst = float((np.abs(found - levels).max(0) / (plan.alpha + plan.sigma)[1:]).max())
    return worst if worst == worst else np.inf


def _landed(plan: Plan) -> np.ndarray:
    """(alpha, sigma) [2, R-1] of x at every row from 1 on, where every prediction is exact."""
    parts = _Directions(plan)
    data, noise = parts.unit(0), parts.unit(1)
    # a foreign table may hold any finite number; its defect is then inf
    with np.errstate(all="ignore"):
        start, answers = plan.alpha[1] * data + plan.sigma[1] * noise, [data] * plan.rows
        x = np.array([*_states(plan, start, answers, parts.drawn, noise, parts.fold)])
        return np.stack([x[:, 0], np.sqrt((x[:, 1:] ** 2).sum(1))])


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


class _Directions:
    """The data, the noise of the start and every drawn noise as unit vectors [width], orthogonal to
    each other. Where the columns run out they are used again: of noises that no later row reads
    nothing counts but lengths and angles of what is held.
    """

    BLOCK = 32  # columns that are filled between two times that they run out

    def __init__(self, plan: Plan) -> None:
        rows, columns = np.nonzero(plan.ids >= 0)
        names, rows = plan.ids[rows, columns].tolist(), rows.tolist()
        self.last = dict(zip(names, rows, strict=True))  # row that reads it
        begins = dict(zip(names[::-1], rows[::-1], strict=True))
        counts = [np.bincount([*at.values()], minlength=plan.rows) for at in (begins, self.last)]
        kept = plan.W + int(np.cumsum(counts[0] - counts[1]).max(initial=0)) if names else 0
        self.width = 2 + kept + (max(self.BLOCK, plan.layout.L) if names else 0)
        self.full, self.free = self.width - plan.layout.L, 2
        self.known: dict[int, np.ndarray] = {}

    def unit(self, k: int) -> np.ndarray:
        """The data (0), the noise of the start (1) or what column k stands for."""
        out = np.zeros(self.width)
        out[k] = 1.0
        return out

    def drawn(self, name: int) -> np.ndarray:
        """The noise of this id."""
        if name not in self.known:
            self.known[name], self.free = self.unit(self.free), self.free + 1
        return self.known[name]

    def fold(self, i: int, held: np.ndarray) -> None:
        """After row i, what is held [W, width] in columns anew, if they have run out."""
        if self.free <= self.full:
            return
        self.known = {name: v for name, v in self.known.items() if self.last[name] > i}
        every = np.array([*held, *self.known.values()])
        lower = np.linalg.qr(every[:, 2:].T, mode="r").T  # its rows have the lengths and angles
        self.free = 2 + lower.shape[1]
        every[:, 2 : self.free], every[:, self.free :] = lower, 0.0
        held[:] = every[: len(held)]
        self.known = dict(zip(self.known, every[len(held) :], strict=True))


def _states(
    plan: Plan,
    start: np.ndarray,
    answers: Sequence,
    noise: Callable[[int], Any] | None = None,
    eps: Any = None,
    fold: Callable[[int, np.ndarray], None] | None = None,
) -> Iterator[np.ndarray]:
    """x [...] at every row from 1 on, where it is `start` [...], over what the model says at row i,
    answers[i] as x0, and noise(id). eps: what it says where the run begins at sigma = 0, where x
    and x0 do not tell. fold(row, held [W, ...]) may write the operands in other coordinates.
    """
    at, W = plan.layout, plan.W
    reads = plan.reads[:, None] >> np.arange(W) & 1
    part = plan.alpha + plan.sigma if plan.stored == "flow" else plan.alpha
    asks, answered = reads[:, at.m] != 0, reads[:, at.f : at.noise(0)].any(1)
    with np.errstate(divide="ignore"):
        share, per_sigma = np.where(answered & (plan.q != 0.0), 1.0 / plan.q, 0.0), 1.0 / plan.sigma
    words = plan.call, part, per_sigma, plan.p, share, plan.ids, plan.dst, asks, answered
    rows = zip(plan.M * reads[:, None], *(v.tolist() for v in words), strict=True)
    held = np.zeros((W, *start.shape))  # operands of the row at hand
    flat, x = held.reshape(W, -1), held[0]
    x[...] = start
    for i, (lines, call, a, per_s, p, per_q, ids, (u, v), asked, told) in enumerate(rows):
        if i == plan.rows - 1:
            return
        if asked or told:
            if call < 0:
                m = p * x
            elif plan.stored == "x0":
                m = answers[i]
            elif i == 1 and eps is not None and per_s == np.inf:
                m = eps - answers[i] if plan.stored == "flow" else eps
            else:
                m = (x - a * answers[i]) * per_s
            held[at.m] = m if asked else 0.0
            if told:
                held[at.f : at.noise(0)] = (m - p * x) * per_q if call >= 0 else 0.0
        for k, name in enumerate(ids, at.noise(0)):
            held[k] = noise(name) if name >= 0 else 0.0
        made = (lines @ flat).reshape(3, *start.shape)
        if i:  # the run starts at row 1, whatever label its noise was given
            x[...] = made[0]
        if u >= 0:
            held[at.slot(u)] = made[1]
        if v >= 0:
            held[at.slot(v)] = made[2]
        if fold is not None:
            fold(i, held)
        yield x.copy()
