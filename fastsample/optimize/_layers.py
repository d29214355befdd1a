"""The dynamic program of OSS: layer k is the student after k evaluations at every node of the grid.

Nodes are counted from the data end: 0 = data, N = noise. The formula is that of `optimize.oss`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import argmin_source, cost_gather, cost_matrix, moments
from ..runtime.arguments import uploaded
from ..trajectories import Denoiser
from ._jumps import Jumps, folded


@dataclass(frozen=True)
class Options:
    """What is searched for: schedules of which budgets, under the names of `oss`'s arguments;
    scaled: with the noise scaled by a factor per budget.
    """

    budgets: Sequence[int]
    start: str
    aggregate: str
    p: float
    scaled: bool

    def evaluations(self, N: int) -> int:
        """Evaluations per sample on N steps beside the teacher's (`oss`'s module docstring)."""
        M, every = max(self.budgets), len(self.budgets) > 1
        starts = (N if every else N - M + 1) - 1 if self.start == "free" else 0
        asked = sum(N - k if every else N - M + 1 for k in range(1, M))
        walks = (self.aggregate == "median") + 2 * self.scaled
        return starts + asked + walks * sum(self.budgets)

    def note(self) -> dict[str, Any]:
        return {"start": self.start, "aggregate": self.aggregate, "p": self.p}


@dataclass
class Layers:
    """The layers and what they are made of.

    X [B,N+1,D]: teacher states from the data end; first [B,D]: its first x0; jumps: the solver's;
    root [B,D]: the elements' weights to 1/p, or None; parents[k-1]: layer k's lowest target, and
    its source nodes [1 or B, J]; finals[k]: end points [B,D] after k evaluations.

    States lie in X's dtype, those of 16 bits rounded once; all else is done in `ask.wide`. A device
    is waited for where a number decides what is run next, and there alone.
    """

    options: Options
    ask: Denoiser
    jumps: Jumps
    z: Tensor
    X: Tensor
    first: Tensor
    root: Tensor | None = None
    parents: list[tuple[int, np.ndarray]] = field(default_factory=list)
    finals: dict[int, Tensor] = field(default_factory=dict)

    def fill(self) -> None:
        """Every layer from the one before."""
        N, M, every = self.X.shape[1] - 1, max(self.options.budgets), len(self.options.budgets) > 1
        joint, p = self.options.aggregate == "joint", self.options.p
        # Labels from which the budget can still be spent.
        at = np.arange(1 if every else M, N + 1) if self.options.start == "free" else np.array([N])
        states = torch.stack([self._noise(i) for i in at], 1).to(self.X.dtype)
        said: list[Tensor] = []  # older predictions of the paths, [B,I,D] each
        below = torch.arange(N + 1, dtype=torch.int32, device=self.X.device)
        below = torch.stack([torch.zeros_like(below), below], 1)  # row n: the first n targets
        for k in range(1, M + 1):
            said.append(self._answers(k, states, at))
            # Targets: from where the budget can be spent.
            low, high = 0 if every else M - k, N - k if k < M else 0
            operands, jump = self._operands(states, said, self._jump(k, at, low, high))
            band = below[at[0] - low : at[-1] + 1 - low]  # from i only to j < i
            target = self._weighed(self.X[:, low : high + 1].contiguous())
            cost = cost_matrix([self._weighed(u) for u in operands], jump, target, band, p)
            best = argmin_source(cost.mean(0) if joint else cost)
            self.ask.see(best, partial(self._chosen, k, low, at))
            landed = cost_gather(operands, jump, best)
            if low == 0:  # the data end asks no model
                self.finals[k] = landed[:, 0].clone()
            on = slice(max(0, 1 - low), None)
            states, at = landed[:, on].contiguous(), np.arange(max(low, 1), high + 1)
            said = [m[:, best[on].long()] for m in self._kept(said)]
        self.ask.look()

    @cached_property
    def _table(self) -> Tensor:
        return uploaded(torch.from_numpy(self.jumps.table), self.X.device)

    def _jump(self, k: int, at: np.ndarray, low: int, high: int) -> Tensor | np.ndarray:
        """Weights [Q,I,J] of the jumps of layer k. Those of a multistep solver are on the host:
        they depend on where its paths went, for which a device is waited for.
        """
        if self.jumps.table is not None:
            return self._table[:, at[0] : at[-1] + 1, low : high + 1].contiguous()
        self.ask.look()
        return self.jumps.weights(self._back(k - 1, at), np.arange(low, high + 1))

    def _operands(
        self, x: Tensor, said: list[Tensor], c: Tensor | np.ndarray
    ) -> tuple[list[Tensor], Tensor]:
        """States [B,I,D] and predictions, as many as the kernels take, and their weights."""
        if isinstance(c, Tensor):
            return [x, *said], c
        c, ratio = folded(c)
        for kappa, m in zip(ratio, said, strict=False):
            kappa = uploaded(torch.from_numpy(kappa), x.device).to(self.ask.wide)
            x = (x.to(self.ask.wide) + kappa[:, None] * m.to(self.ask.wide)).to(x.dtype)
        return [x, *said[len(ratio) :]], uploaded(torch.from_numpy(c), x.device)

    def _kept(self, said: list[Tensor]) -> list[Tensor]:
        """Of the predictions, those that the next jump reads too."""
        return said[max(0, len(said) + 1 - self.jumps.reads) :]

    def _chosen(self, k: int, low: int, at: np.ndarray, best: np.ndarray) -> None:
        """Keep the sources that layer k chose for the targets from `low` on."""
        if (best < 0).any():
            raise ValueError(
                f"oss: after {k} evaluations every jump to some node overflows; a model with "
                "bounded output is needed"
            )
        self.parents.append((low, np.atleast_2d(at[best.astype(np.int64)])))

    def _weighed(self, states: Tensor) -> Tensor:
        """States [B,I,D] whose differences to the power p are weighed."""
        return states if self.root is None else (states * self.root[:, None]).to(states.dtype)

    def _noise(self, node: int) -> Tensor:
        """The noise labelled with a node, sigma z; with the first node the teacher's own start,
        which its row 0 may have scaled.
        """
        if node == self.X.shape[1] - 1:
            return self.X[:, node].to(self.ask.wide)
        z = self.z.reshape(len(self.X), -1).to(self.X.device, self.ask.wide)
        return float(self.ask.sigma[node]) * z

    def _answers(self, k: int, states: Tensor, at: np.ndarray) -> Tensor:
        """x0 [B,I,D] of a layer's states; in the first, node N has the teacher's first answer."""
        if k > 1:
            return self.ask(states, at)
        known = self.first[:, None]
        return torch.cat([self.ask(states[:, :-1], at[:-1]), known], 1) if len(at) > 1 else known

    def path(self, m: int) -> np.ndarray:
        """Nodes [m+1] of the schedule of m evaluations, start first, 0 last.

        The median form walks back every sample's own path and takes the middle nodes.
        """
        ends = np.zeros(1 if self.options.aggregate == "joint" else len(self.X), np.int64)
        ranked = np.sort(self._back(m, ends), axis=1)  # [m+1, 1 or B]
        return (ranked[:, ranked.shape[1] // 2] + ranked[:, (ranked.shape[1] - 1) // 2]) // 2

    def _back(self, k: int, ends: np.ndarray) -> np.ndarray:
        """Nodes [k+1,I] of the paths of k evaluations to nodes `ends` [I], start first."""
        nodes = [ends]
        for low, sources in reversed(self.parents[:k]):
            nodes.append(sources[np.arange(len(sources)), nodes[-1] - low])
        return np.stack(nodes[::-1])

    def ends(self, paths: dict[int, np.ndarray]) -> dict[int, tuple[float, float]]:
        """{M: (c, error)} of the schedules, each begun at c times its noise: c = 1 or the best
        found. A median is run to know its error.
        """
        one = dict.fromkeys(paths, 1.0)
        plain = self.finals if self.options.aggregate == "joint" else self._walk(paths, one)
        tried = [(one, plain)]
        if self.options.scaled:
            probe = {m: 1 + 0.5 / m for m in paths}
            moved = self._walk(paths, probe)
            tuned = self._tuned(paths, probe, plain, moved)
            tried += [(probe, moved), (tuned, self._walk(paths, tuned))]
        (errors,) = self.ask.look(torch.stack([self._error(x[m]) for _, x in tried for m in paths]))
        each = zip(paths, errors.reshape(len(tried), -1).T.tolist(), strict=True)
        pairs = {m: [(c[m], e) for (c, _), e in zip(tried, of, strict=True)] for m, of in each}
        return {m: min(of, key=lambda pair: pair[1]) for m, of in pairs.items()}

    def _tuned(
        self,
        paths: dict[int, np.ndarray],
        probe: dict[int, float],
        plain: dict[int, Tensor],
        moved: dict[int, Tensor],
    ) -> dict[int, float]:
        """The amplitudes at which end points linear in them, known at 1 and at `probe`, are nearest
        to the teacher's. The sums are those of `moments`: the same bits on every device.
        """
        dots = []
        for m in paths:
            pairs = (moved[m], plain[m]), (self.X[:, 0], plain[m])
            slope, gap = (self._gap(x, y, self.options.p / 2) for x, y in pairs)
            dots.append(moments([slope], [gap, slope])[0].flatten(1))
        sums = self.ask.look(torch.stack(dots))[0].sum(1).tolist()  # over the samples
        shifts = [
            (probe[m] - 1) * g / max(s, 1e-300) for m, (g, s) in zip(paths, sums, strict=True)
        ]
        return {m: float(np.clip(1 + c, 0.1, 100.0)) for m, c in zip(paths, shifts, strict=True)}

    def _walk(self, paths: dict[int, np.ndarray], amplitude: dict[int, float]) -> dict[int, Tensor]:
        """End points [B,D] of several schedules of budgets that rise, in step: each model call has
        work of all.
        """
        begin = {m: self._noise(path[0]) * amplitude[m] for m, path in paths.items()}
        x = {m: start.to(self.X.dtype) for m, start in begin.items()}
        said: list[Tensor] = []
        for k in range(max(paths)):
            going = [m for m in paths if k < m]
            gone = np.stack([paths[m][: k + 2] for m in going], 1)
            states = torch.stack([x[m] for m in going], 1)
            said = [m[:, -len(going) :].contiguous() for m in self._kept(said)]
            said.append(self.ask(states, gone[-2]))
            operands, jump = self._operands(states, said, self._each(gone))
            each = torch.arange(len(going), dtype=torch.int32, device=states.device)
            landed = cost_gather(operands, jump, each)
            x |= zip(going, landed.unbind(1), strict=True)
        return x

    def _each(self, paths: np.ndarray) -> Tensor | np.ndarray:
        """Weights [Q,I,I] of the last jumps of paths [k,I], each to its own end."""
        if self.jumps.table is not None:
            jump = self.jumps.table[:, paths[-2][:, None], paths[-1]]
            return uploaded(torch.from_numpy(jump), self.X.device)
        return self.jumps.weights(paths[:-1], paths[-1], each=True)

    def _gap(self, x: Tensor, y: Tensor, power: float = 1.0) -> Tensor:
        """x - y, weighed: its p-th power is, where it is not another `power` of the root."""
        gap = x.to(self.ask.wide) - y.to(self.ask.wide)
        return gap if self.root is None else gap * self.root**power

    def _error(self, x: Tensor) -> Tensor:
        return (self._gap(x, self.X[:, 0]).abs().double() ** self.options.p).mean()
