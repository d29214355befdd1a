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
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from .. import solvers
from ..model import Model
from ..plan.consistency import rows


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
    row = row_of("fit: rows", name, model, t)

    def family(nodes: Sequence[int], h: int) -> Family:
        base = np.stack([row((*nodes, j), h) for j in range(nodes[-1])], 1)
        return Family(base, np.zeros((1 + h, 0)))

    return family


def row_of(
    where: str, name: str, model: Model, t: np.ndarray
) -> Callable[[tuple[int, ...], int], np.ndarray]:
    """(nodes, h) -> w [1+h], the last row of the solver's plan on a path, over x and the last h of
    what the model said: whatever the plan keeps in slots is a sum of these. Each is made once; a
    solver of solvers.STEPS makes it without the plan, in a thirtieth of the time.
    """
    schedule = model.schedule
    levels = np.stack([schedule.alpha(t), schedule.sigma(t), schedule.half_log_snr(t)])

    def stepped(nodes: tuple[int, ...]) -> np.ndarray:
        x, _ = solvers.STEPS[name](solvers.Levels(*levels[:, nodes].tolist()), len(nodes) - 2)
        kept = [x.get(("r", f"m{k}"), 0.0) for k in range(len(nodes) - 2)]
        return np.array([x.get("x", 0.0), *kept, x["m"]])

    def planned(nodes: tuple[int, ...]) -> np.ndarray:
        plan = solvers.SOLVERS[name](model, t[list(nodes)], **words_of(name))
        w = rows(plan)
        if w.shape != (len(nodes) - 1, len(nodes)) or (plan.ids >= 0).any():
            raise ValueError(
                f"{where}={name!r} asks the model {plan.nfe} times in {len(nodes) - 1} "
                "steps; a solver that asks once a step and draws no noise is accepted"
            )
        return w[-1]

    whole = cache(stepped if name in solvers.STEPS else planned)
    return lambda nodes, h: np.append(whole(nodes)[0], whole(nodes)[len(nodes) - h :])


def words_of(solver: str) -> dict[str, Any]:
    """What a solver is told so that a row does not depend on how many are still to come."""
    taken = inspect.signature(solvers.SOLVERS[solver]).parameters
    return {"lower_order_final": False} if "lower_order_final" in taken else {}
