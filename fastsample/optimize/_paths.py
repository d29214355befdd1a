"""The dynamic program of `fit`: layer k holds, for every node of the grid, the best paths of k
evaluations that stand there, each with the state it really reaches and all that the model said.

Nodes are counted from the data end: 0 = data, N = noise. The formula is that of `optimize.fit`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..trajectories import Denoiser
from ._families import Family, Rows

RIDGE = 1e-9  # beside the unit diagonal that the normal equations are scaled to
BLOCK = 16  # samples in one product, whatever the number of all: its sums never change
AGAIN = 3  # times that the weights of samples follow their errors
HEAVIEST = 20.0  # sum of a row's weights of predictions in magnitude
LEAST = 1e-12  # of a target's square: an error below it is rounding


class Path(NamedTuple):
    """A plan so far. nodes: where it asked the model, and where it stands now; x [B,D]: its state;
    amplitude: what the noise was scaled by; rows: of each evaluation, weights over x and the last
    predictions, the newest last; said: the predictions [B,D] that rows may read.
    """

    nodes: tuple[int, ...]
    x: Tensor
    amplitude: float
    rows: tuple[np.ndarray, ...] = ()
    said: tuple[Tensor, ...] = ()

    @property
    def at(self) -> int:
        return self.nodes[-1]


class Products(NamedTuple):
    """Dot products in every sample, float64: own [B,Q,Q] of the operands, cross [B,Q,J] of them and
    the targets, square [B,J] of each target and itself.
    """

    own: np.ndarray
    cross: np.ndarray
    square: np.ndarray

    def errors(self, w: np.ndarray) -> np.ndarray:
        """|sum_q w_q operand_q - X_j|^2 of every sample [B,J], for rows w [Q,J]."""
        least = LEAST * self.square
        cross = np.einsum("qj,bqj->bj", w, self.cross)
        own = np.einsum("bqj,qj->bj", self.own @ w, w)
        return np.maximum(self.square - 2 * cross + own, least)

    def fitted(self, family: Family, weight: np.ndarray) -> np.ndarray:
        """Rows w [Q,J] of the family, of least sum_b weight[b,j] |sum_q w_q operand_q - X_j|^2; a
        target whose row is too heavy has a larger ridge, until it is not.
        """
        base, free = family
        if not free.size:
            return base
        own = np.einsum("bj,bqr->jqr", weight, self.own, optimize=True)
        gap = np.einsum("bj,bqj->jq", weight, self.cross) - np.einsum("jqr,rj->jq", own, base)
        own, gap = free.T @ own @ free, gap @ free
        size = np.sqrt(np.maximum(np.diagonal(own, axis1=1, axis2=2), np.finfo(float).tiny))
        own, gap = own / size[:, :, None] / size[:, None], gap / size
        w, ridge = base.copy(), RIDGE
        again = np.ones(len(gap), bool)
        while again.any() and ridge < 1e3:
            damped = own[again] + ridge * np.eye(free.shape[1])
            v = np.linalg.solve(damped, gap[again][..., None])[..., 0] / size[again]
            w[:, again] = base[:, again] + free @ v.T
            again, ridge = np.abs(w[1:]).sum(0) > HEAVIEST, 100 * ridge
        return w


def products(operands: Sequence[Tensor], X: Tensor, root: Tensor | None = None) -> Tensor:
    """The dot products in every sample of operands, Q of [B,D], with themselves and with each of
    X [B,J,D]: [B,Q,Q+J], float64. root [B,D]: square roots of the elements' weights.
    """
    parts = []
    for begin in range(0, len(X), BLOCK):
        samples = slice(begin, begin + BLOCK)
        every = torch.stack([t[samples] for t in operands], 1).double()
        every = torch.cat([every, X[samples].double()], 1)
        if root is not None:
            every *= root[samples, None]
        parts.append(every[:, : len(operands)] @ every.mT)
    return torch.cat(parts)


@dataclass(frozen=True)
class Options:
    """What is searched for, under the names of `fit`'s arguments; judged: the last so many samples
    are left out of the least squares, and choose.
    """

    budgets: Sequence[int]
    start: str
    amplitudes: Sequence[float]
    history: int
    beam: int
    aggregate: str
    judged: int

    def evaluations(self, N: int) -> int:
        """Evaluations per sample on N steps beside the teacher's, where no jump overflows."""
        M, every, asked = max(self.budgets), len(self.budgets) > 1, 0
        at = np.zeros(N + 1, np.int64)  # paths at every node
        at[(1 if every else M) if self.start == "free" else N :] = len(self.amplitudes)
        for k in range(1, M + 1):
            asked += int(at.sum())
            at = np.minimum(at.sum() - np.cumsum(at), self.beam)
            at[: 1 if every else max(M - k, 1)] = 0
        return asked

    def states(self, N: int) -> int:
        """States [B,D] that are kept at most, the teacher's N + 1 among them."""
        return (N + 1) + self.beam * N * (min(self.history, max(self.budgets)) + 3)


@dataclass
class Paths:
    """X [B,N+1,D]: teacher states from the data end; rows: what a path may go on with; root [B,D]:
    square roots of the elements' weights, or None. ends[k]: the best path of k evaluations that has
    come to the data end, and its cost.

    States lie in X's dtype and on its device, those of 16 bits rounded once.
    """

    options: Options
    ask: Denoiser
    rows: Rows
    z: Tensor
    X: Tensor
    root: Tensor | None = None
    ends: dict[int, tuple[Path, float]] = field(default_factory=dict)

    def fill(self) -> None:
        """Every layer from the one before."""
        N, M, every = self.X.shape[1] - 1, max(self.options.budgets), len(self.options.budgets) > 1
        self._square = self._squares()
        first = range(1 if every else M, N + 1) if self.options.start == "free" else [N]
        paths = [Path((i,), c * self._noise(i), c) for i in first for c in self.options.amplitudes]
        for k in range(1, M + 1):
            at = np.array([path.at for path in paths])
            said = self.ask(torch.stack([path.x for path in paths], 1), at)
            paths = [self._heard(path, said[:, n].clone()) for n, path in enumerate(paths)]
            paths = self._onward(paths, 0 if every else M - k, at.max() if k < M else 1)

    def _squares(self) -> np.ndarray:
        """|X_j|^2 of every sample [B,N+1]."""
        X = self.X.double() if self.root is None else self.X.double() * self.root[:, None]
        return self.ask.look(X.square().sum(2))[0]

    def _heard(self, path: Path, x0: Tensor) -> Path:
        """A path with one more prediction, of its own memory: those that no row reads are freed."""
        return path._replace(said=(*path.said, x0)[-self.options.history :])

    def _noise(self, node: int) -> Tensor:
        z = self.z.reshape(len(self.X), -1).to(self.X.device, self.ask.wide)
        return (float(self.ask.sigma[node]) * z).to(self.X.dtype)

    def _onward(self, paths: list[Path], low: int, above: int) -> list[Path]:
        """The best paths at every node from max(low, 1) to above - 1, one evaluation on; the one at
        the data end is kept apart.
        """
        cost, fits, on = np.full((len(paths), above), np.inf), [], []
        dots = [products(self._operands(p), self.X[:, : p.at], self.root) for p in paths]
        dots = self.ask.look(*dots)
        for n, path in enumerate(paths):
            with np.errstate(over="ignore", invalid="ignore"):  # such a jump is not taken
                fits.append(self._fit(path, dots[n]))
            below = min(above, path.at)
            cost[n, :below] = fits[n][1][:below]
        if not np.isfinite(cost[:, low]).any():
            raise ValueError(
                f"fit: after {len(paths[0].nodes)} evaluations every jump overflows; a model with "
                "bounded output is needed"
            )
        for j in range(low, above):
            best = np.argsort(cost[:, j], kind="stable")[: self.options.beam if j else 1]
            for n in best[np.isfinite(cost[best, j])]:
                path, row = paths[n], fits[n][0][:, j]
                operands = (t.to(self.ask.wide) for t in self._operands(path))
                x = sum(c * t for c, t in zip(row.tolist(), operands, strict=True)).to(self.X.dtype)
                path = path._replace(nodes=(*path.nodes, j), rows=(*path.rows, row), x=x)
                if j:
                    on.append(path)
                else:
                    self.ends[len(path.rows)] = path, float(cost[n, 0])
        return on

    def _operands(self, path: Path) -> list[Tensor]:
        return [path.x, *path.said]

    def _fit(self, path: Path, dots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows [Q,J], costs [J]) of a path's jumps to every node below it, from `products`."""
        Q, judged = dots.shape[1], slice(-self.options.judged, None)
        dots = Products(dots[:, :, :Q], dots[:, :, Q:], self._square[:, : path.at])
        family, weight = self.rows(path.nodes, Q - 1), np.ones_like(dots.square)
        if self.options.judged:
            weight[judged] = 0.0
        w = dots.fitted(family, weight)
        if self.options.aggregate == "log":
            for _ in range(AGAIN):
                w = dots.fitted(family, weight / dots.errors(w))
        error = dots.errors(w)[judged if self.options.judged else slice(None)]
        cost = AGGREGATE[self.options.aggregate](error) / self.X.shape[2]
        return w, np.where(np.abs(w[1:]).sum(0) > HEAVIEST, np.inf, cost)


AGGREGATE = {
    "mean": lambda error: error.mean(0),
    "log": lambda error: np.exp(np.log(error).mean(0)),
    "median": lambda error: np.median(error, 0),
}
