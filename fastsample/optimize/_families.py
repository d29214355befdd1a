"""The rows that `fit` may put into a plan: any weights, weights that stay on the schedule, or those
of a solver.

A row from node i to node j weighs Q = 1 + h operands, x and the last h predictions as x0, the
newest last:

    x' = w_0 x + sum_l w_l m_l        w = base_j + free v

with v left to the fit. Nodes are counted from the data end.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import solvers
from ..model import Model
from ..plan.consistency import over_predictions


class Family(NamedTuple):
    """base [Q,J]: a row for every target 0..J-1 below a node; free [Q,F]: the directions in which
    the fit may leave it.
    """

    base: np.ndarray
    free: np.ndarray


ROWS = ("free", "consistent")  # families that leave something to the fit
# (nodes of the path so far, the last of which is left; h) -> Family
Rows = Callable[[Sequence[int], int], Family]


def rows_of(name: str, model: Model, t: np.ndarray) -> Rows:
    """The family of a name of `fit`'s argument `rows`; t [N+1]: the nodes' times."""
    if name == "free":
        return lambda nodes, h: Family(np.zeros((1 + h, nodes[-1])), np.eye(1 + h))
    if name == "consistent":
        return _consistent(model, t)
    return _of_solver(name, model, t)


def _consistent(model: Model, t: np.ndarray) -> Rows:
    """Euler's row, and any multiple of the differences between the newest prediction and the
    others: where every prediction is the same, and exact, x' is alpha_j x0 + sigma_j noise.
    """

    def family(nodes: Sequence[int], h: int) -> Family:
        a, b = solvers.jump(model.schedule, t[nodes[-1]], t[: nodes[-1]])
        base, free = np.zeros((1 + h, nodes[-1])), np.eye(1 + h)[:, 1:-1]
        base[0], base[-1], free[-1] = a, b, -1.0
        return Family(base, free)

    return family


def _of_solver(name: str, model: Model, t: np.ndarray) -> Rows:
    """The last row of the solver's plan on the path and the target, over x and what the model
    said: whatever the plan keeps in slots is a sum of these.
    """
    words = words_of(name)

    def row(nodes: Sequence[int], h: int) -> np.ndarray:
        x = over_predictions(solvers.SOLVERS[name](model, t[list(nodes)], **words))
        if x.shape != (len(nodes), len(nodes)):
            raise ValueError(
                f"fit: rows={name!r} asks the model {x.shape[1] - 1} times in {len(nodes) - 1} "
                "steps; a solver that asks once a step and draws no noise is accepted"
            )
        kept = x[-1, -1] / x[-2, -1]
        return np.append(kept, (x[-1] - kept * x[-2])[len(nodes) - 1 - h : -1])

    def family(nodes: Sequence[int], h: int) -> Family:
        base = np.stack([row([*nodes, j], h) for j in range(nodes[-1])], 1)
        return Family(base, np.zeros((1 + h, 0)))

    return family


def words_of(solver: str) -> dict[str, Any]:
    """What a solver is told so that a row does not depend on how many are still to come."""
    taken = inspect.signature(solvers.SOLVERS[solver]).parameters
    return {"lower_order_final": False} if "lower_order_final" in taken else {}
