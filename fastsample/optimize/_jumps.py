"""The jumps of OSS: what a solver weighs from one node to another.

    x' = w_0 x + sum_l w_l m_l

x is the state at node i and m_l the last predictions of its own path, as x0, the newest last. A
one-step solver reads the newest alone, by weights of the two nodes; a multistep one several, by
weights of the path. Nodes are counted from the data end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import solvers
from ..model import Model
from ._families import row_of

OPERANDS = 4  # of one launch of the kernels
STEADY = 9  # steps after which a solver reads as many predictions as ever
ROUNDING = 1e-9  # of the largest weight: what is left of one that cancels


def table_of(model: Model, solver: str, grid: np.ndarray) -> np.ndarray:
    """a, b [2,N+1,N+1] float64 of a one-step solver's jumps x' = a x + b x0 from node i to every
    node j < i.
    """
    t, table = grid[::-1], np.zeros((2, len(grid), len(grid)))
    for i in range(1, len(t)):
        table[:, i, :i] = solvers.JUMPS[solver](model.schedule, t[i], t[:i])
    return table


@dataclass(frozen=True)
class Jumps:
    """table [2,N+1,N+1] of a one-step solver, or None; row: (nodes, h) -> w [1+h], the last jump of
    a path, over the last h predictions; reads: the predictions that a jump reads at most.
    """

    table: np.ndarray | None
    row: Callable[[tuple[int, ...], int], np.ndarray] | None
    reads: int

    @classmethod
    def of(cls, model: Model, solver: str, grid: np.ndarray) -> Jumps:
        """Raises ValueError for a solver whose steps are no such jumps."""
        t = grid[::-1]
        if solver in solvers.JUMPS:
            return cls(table_of(model, solver, grid), None, 1)
        row = row_of("oss: solver", solver, model, t)
        jumps = cls(None, row, _reads(row, len(t)))
        if jumps.reads >= OPERANDS:  # of all jumps that follow a path through every node
            path = np.arange(len(t))[::-1][: jumps.reads, None]
            try:
                folded(jumps.weights(path, np.arange(path[-1, 0])))
            except ValueError as error:
                raise ValueError(f"oss: solver={solver!r}: {error}") from None
        return jumps

    def weights(self, paths: np.ndarray, to: np.ndarray, each: bool = False) -> np.ndarray:
        """w [1+h,I,J] from paths [k,I] to nodes `to` [J] below their last, 0 elsewhere; h = k, or
        `reads` where that is less. each: path i to node i alone.
        """
        h = min(len(paths), self.reads)
        c = np.zeros((1 + h, paths.shape[1], len(to)))
        wanted = np.eye(len(to), dtype=bool) if each else paths[-1][:, None] > to
        for i, j in np.argwhere(wanted):
            c[:, i, j] = self.row((*paths[:, i].tolist(), int(to[j])), h)
        return c


def _reads(row: Callable[[tuple[int, ...], int], np.ndarray], nodes: int) -> int:
    """The most predictions that the first steps read, where every node is visited."""
    path, most = tuple(range(nodes))[::-1], 1
    for n in range(1, min(nodes, STEADY)):
        w = np.abs(row(path[: n + 1], n)[1:])
        most = max(most, n - int(np.argmax(w > ROUNDING * w.max())))
    return most


def folded(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """c [Q,I,J] as weights [4,I,J], and ratio [Q-4,I]: the oldest predictions that every jump of a
    source weighs in one ratio to x, as UniPC does what x is corrected by, are added to x in it.
    """
    ratio = np.zeros((max(len(c) - OPERANDS, 0), c.shape[1]))
    for q in range(len(ratio)):
        old = c[1 + q]
        ratio[q] = (c[0] * old).sum(1) / np.maximum((c[0] ** 2).sum(1), 1e-300)
        if (np.abs(old - ratio[q, :, None] * c[0]) > ROUNDING * np.abs(c).max(0)).any():
            raise ValueError(
                f"a step reads {len(c) - 1} predictions; at most {OPERANDS - 1} are accepted, and "
                "older ones that every step weighs in one ratio to x"
            )
    return np.concatenate([c[:1], c[1 + len(ratio) :]]), ratio
