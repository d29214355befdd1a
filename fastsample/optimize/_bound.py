"""The bound of `model_free` and its gradient, in float64.

    bound = sum_{i < alone} sqrt(sum_k (e_k J_ik)^2) + sum_k e_k |sum_{i >= alone} J_ik|

over n steps i and the outputs k at their n first knots, in the terms of `model_free`. Knots [n+1]
are the lambda of the plan's times, lambda_0 < ... < lambda_n, all finite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

NARROWEST = 1e-3  # gap of two knots, as a share of the mean gap
# Gauss-Legendre on [0, 1]: to rounding for e^(20 u) times a cubic.
POINTS, SHARES = np.polynomial.legendre.leggauss(24)
POINTS, SHARES = (POINTS + 1.0) / 2.0, SHARES / 2.0
EXACT, MIDPOINT, HALVES = "exact", "midpoint", "halves"


class Step(NamedTuple):
    """How step i weighs the outputs at `nodes`: EXACT: it integrates their polynomial; MIDPOINT: of
    two, m + (m - m_1) h/(2 h_1) held over the step; HALVES: the mean of both.
    """

    nodes: tuple[int, ...]
    kind: str = EXACT


def _back(i: int, order: int) -> tuple[int, ...]:
    """The newest outputs at knot i, at most `order`."""
    return tuple(range(i, max(-1, i - order), -1))


def _euler(n: int) -> list[Step]:
    return [Step((i,)) for i in range(n)]


def _dpmpp_2m(n: int) -> list[Step]:
    seen = [_back(i, 1 if i == n - 1 else 2) for i in range(n)]
    return [Step(nodes, MIDPOINT if len(nodes) == 2 else EXACT) for nodes in seen]


def _dpmpp_3m(n: int) -> list[Step]:
    return [Step(_back(i, 1 if i == n - 1 else 3)) for i in range(n)]


def _unipc(n: int) -> list[Step]:
    """Every step as corrected at its end; the last has no output there."""
    steps = [Step((*_back(i, min(3, n - i)), i + 1)) for i in range(n - 1)]
    return [step._replace(kind=HALVES) for step in steps[:1]] + steps[1:] + [Step((n - 1,))]


STEPS: dict[str, Callable[[int], list[Step]]] = {
    "ddim": _euler,
    "euler": _euler,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_3m": _dpmpp_3m,
    "unipc": _unipc,
}


# what is pulled on the weights [S,K] -> [(knots, what that pulls on them)]
Back = Callable[[np.ndarray], Sequence[tuple[np.ndarray, np.ndarray]]]


class Bound:
    """The bound of a solver's n steps as a function of its knots.

    power: p of e = sigma^p / alpha, where alpha^2 + sigma^2 = 1 at this lambda; alone: how many
    steps do not cancel, at most n.
    """

    def __init__(self, n: int, solver: str, power: float, alone: int):
        self.n, self.power, self.alone = n, power, alone
        kinds: dict[tuple[str, int], list[int]] = {}
        steps = STEPS[solver](n)
        for i, step in enumerate(steps):
            kinds.setdefault((step.kind, len(step.nodes)), []).append(i)
        # (kind, steps [S], their nodes [S,K])
        self._groups = [
            (kind, np.array(at), np.array([steps[i].nodes for i in at]))
            for (kind, _), at in kinds.items()
        ]

    def weights(self, knots: np.ndarray) -> tuple[np.ndarray, list[Back]]:
        """J [n,n] of step i, of the output at knot k; how a pull on each group's weights pulls on
        the knots.
        """
        J, backs = np.zeros((self.n, self.n)), []
        for kind, at, nodes in self._groups:
            J[at[:, None], nodes], back = _weigh(kind, knots, at, nodes)
            backs.append(back)
        return J, backs

    def __call__(self, knots: np.ndarray) -> tuple[float, np.ndarray]:
        """(bound, its gradient [n+1])."""
        J, backs = self.weights(knots)
        noise = 1.0 / (1.0 + np.exp(2.0 * knots[:-1]))  # sigma^2
        e = np.exp(-knots[:-1]) * noise ** ((self.power - 1.0) / 2.0)
        terms = e * J
        early = np.sqrt((terms[: self.alone] ** 2).sum(1))
        late = terms[self.alone :].sum(0)
        pull = np.empty_like(terms)  # d bound / d terms
        pull[: self.alone] = terms[: self.alone] / early[:, None]
        pull[self.alone :] = np.sign(late)
        slope = (1.0 - self.power) * (1.0 - noise) - 1.0  # d ln e / d lambda
        gradient = np.append((pull * terms).sum(0) * slope, 0.0)
        pull *= e
        for (_, at, nodes), back in zip(self._groups, backs, strict=True):
            for places, moved in back(pull[at[:, None], nodes]):
                np.add.at(gradient, places, moved)
        return float(early.sum() + np.abs(late).sum()), gradient

    def least(self, knots: np.ndarray) -> tuple[float, np.ndarray]:
        """(bound, knots) of the least bound that L-BFGS comes to from these knots, ends kept."""
        try:
            from scipy.optimize import minimize
        except ImportError:
            why = "model_free: the optimum needs scipy; pip install 'fastsample[optimize]'"
            raise ImportError(why) from None
        span, least = knots[-1] - knots[0], NARROWEST / self.n

        def grid(free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            w = np.exp(free - free.max())
            w *= (1.0 - NARROWEST) / w.sum()
            inner = knots[0] + span * np.cumsum(w + least)[:-1]
            return np.concatenate([knots[:1], inner, knots[-1:]]), w

        def objective(free: np.ndarray) -> tuple[float, np.ndarray]:
            at, w = grid(free)
            value, slope = self(at)
            later = span * np.append(np.cumsum(slope[-2:0:-1])[::-1], 0.0)  # d bound / d w
            return np.log(value), w * (later - later @ w / w.sum()) / value

        begin = np.log(np.maximum(np.diff(knots) / span - least, least))
        found = minimize(objective, begin, jac=True, method="L-BFGS-B")
        return float(np.exp(found.fun)), grid(found.x)[0]


def _weigh(
    kind: str, knots: np.ndarray, at: np.ndarray, nodes: np.ndarray
) -> tuple[np.ndarray, Back]:
    """The weights [S,K] of steps of one kind, and how a pull on them pulls on the knots."""
    start, end = np.exp(knots[at]), np.exp(knots[at + 1])
    whole = end - start

    def held(share: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(at + 1, end * share), (at, -start * share)]

    if kind == HALVES or nodes.shape[1] == 1:
        count = nodes.shape[1]
        each = np.repeat(whole[:, None] / count, count, 1)
        return each, lambda pull: held(pull.mean(1))
    if kind == MIDPOINT:
        h, back = knots[at + 1] - knots[at], knots[at] - knots[nodes[:, 1]]
        ahead = h / (2.0 * back)

        def midpoint(pull: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
            change = pull[:, 0] - pull[:, 1]
            by_h, by_back = whole * change / (2.0 * back), -whole * change * ahead / back
            moved = [(at + 1, by_h), (at, by_back - by_h), (nodes[:, 1], -by_back)]
            return held(pull[:, 0] + ahead * change) + moved

        return np.stack([whole * (1.0 + ahead), -whole * ahead], 1), midpoint
    return _exact(knots, at, nodes, start, end)


def _exact(
    knots: np.ndarray, at: np.ndarray, nodes: np.ndarray, start: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, Back]:
    """int e^lambda L_k dlambda over each step, L_k the Lagrange basis of its nodes x.

    A node moved under fixed values moves their polynomial P by -P'(x_j) L_j, so that
    dJ_k/dx_j = -L_k'(x_j) J_j; the ends add e^lambda L_k there.
    """
    x, h = knots[nodes], knots[at + 1] - knots[at]
    apart = x[:, :, None] - x[:, None, :] + np.eye(nodes.shape[1])
    below = apart.prod(2)  # [S,K]: of L_k
    y = knots[at][:, None] + h[:, None] * np.concatenate([POINTS, [0.0, 1.0]])
    factors = np.repeat((y[:, :, None] - x[:, None, :])[:, :, None, :], nodes.shape[1], 2)
    every = np.arange(nodes.shape[1])
    factors[:, :, every, every] = 1.0
    basis = factors.prod(3) / below[:, None, :]  # [S,points,K]
    J = np.einsum("sy,syk->sk", SHARES * h[:, None] * np.exp(y[:, :-2]), basis[:, :-2])

    def back(pull: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        slopes = below[:, :, None] / below[:, None, :] / apart  # [S,j,k]: L_k'(x_j)
        slopes[:, every, every] = 0.0
        slopes[:, every, every] = -slopes.sum(2)
        on_ends = (basis[:, -2:] * pull[:, None, :]).sum(2)
        moved = -J * (slopes * pull[:, None, :]).sum(2)
        return [(at + 1, end * on_ends[:, 1]), (at, -start * on_ends[:, 0]), (nodes, moved)]

    return J, back
