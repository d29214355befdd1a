"""A plan and its twins, which differ from it in numbers alone, over the same noises in lockstep:
all are samples of one pool, whose rows stand in one table, so that a row of all is one launch.

A twin has nothing of its own before the first row that differs: it begins there, with a copy of
what the plan has come to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels.backend import bound, select
from ..model import Model
from ..plan import Plan
from ..runtime import arguments, outputs, pool
from ..runtime.conditions import branches_of, take, told
from ..runtime.pool import Pool, Table
from ..runtime.ranks import ALONE


class Twins:
    """plan: deterministic, from noise, of as many branches as are told. noise [B,*]; words: as a
    `Denoiser` takes them, batch_size the rows of one model call per branch. wide: float32 or
    float64, of the states. asked: called with how many rows were asked, after each row of the plan;
    rows: how many there were in all. trees: what each branch is told.
    """

    def __init__(
        self,
        where: str,
        model: Model,
        plan: Plan,
        noise: Tensor,
        words: Mapping[str, Any],
        wide: torch.dtype,
        asked: Callable[[int], Any] | None = None,
    ):
        self._where, self._model, self.plan, self._noise = where, model, plan, noise
        self._batch, self.wide, self._asked, self.rows = words["batch_size"], wide, asked, 0
        self.model_dtype = words["model_dtype"] or noise.dtype
        told, place = (words.get("cond"), words.get("uncond")), (len(noise), noise.device)
        self.trees = branches_of(where, *told, None, *place)
        self._guidance, self.ranks = words["guidance"], words.get("ranks", ALONE)
        self._choice = select("step", noise.device, wide)

    def states(
        self, tables: np.ndarray, samples: Tensor, kept: Sequence[int], first: Sequence[int] = ()
    ) -> Tensor:
        """x' [n,b,kept,*] after the rows `kept`, of the plan with tables[0] and of its twins.

        tables [n,R,WF] float64; samples [b] on the host; first [n-1]: the row at which each twin
        begins.
        """
        shape = len(tables), len(samples), len(kept), *self._noise.shape[1:]
        out = self._noise.new_empty(shape, dtype=self.wide)
        for row, which, x in self._run(tables, samples, first, alone=False):
            for k in (k for k, wanted in enumerate(kept) if wanted == row):
                out[:, :, k] = x[0]
                out[which, :, k] = x
        return out

    def squares(self, tables: np.ndarray, samples: Tensor, first: Sequence[int]) -> Tensor:
        """Mean squares [b,n] float64 of every twin's x' after its first row, the only one it runs,
        over those of the plan's own there; 1 where those are 0.
        """
        out = torch.ones(len(samples), len(tables), dtype=torch.float64, device=self._noise.device)
        for _, which, x in self._run(tables, samples, first, alone=True):
            square = x.double().square().flatten(2).mean(2)
            out[:, which] = torch.where(square[0] == 0, 1.0, square / square[0]).T
        return out

    def _run(
        self, tables: np.ndarray, samples: Tensor, first: Sequence[int], alone: bool
    ) -> Iterator[tuple[int, list[int], Tensor]]:
        """(row, who has run it, x' [those,b,*]) after each row, the plan itself first. alone: twins
        leave after the row at which they begin.
        """
        b, R, which, f = len(samples), self.plan.rows, [0], []
        own = self._pool(tables, self._noise[samples])
        for i in range(R - 1):
            if self.plan.call[i] >= 0:
                f = self._ask(own, which, i, samples)
            new = [1 + k for k, row in enumerate(first) if row == i]
            f = self._joined(own, len(which), b, len(new), f)
            which = which + new
            here = _some(own, len(which) * b)
            here.row.copy_(_rows(which, R, i, b))
            bound(self._choice, here)(None, f)
            yield i, which, here.x.unflatten(0, (len(which), b))
            which = [0] if alone else which

    def _pool(self, tables: np.ndarray, noise: Tensor) -> Pool:
        """Room for all, in which the first b samples stand at the noise."""
        n, R = tables.shape[:2]
        device, size, plan = noise.device, n * len(noise), self.plan
        words = torch.as_tensor(plan.table(np.float64)[1]).repeat(n, 1)
        numbers = torch.as_tensor(tables.reshape(n * R, -1), dtype=self.wide)
        ids = tuple(map(tuple, plan.ids.tolist()))
        table = Table(
            arguments.uploaded(numbers, device),
            arguments.uploaded(words, device),
            plan.layout,
            plan.program.rows * n,
            ids * n,
        )
        scale = None if self._guidance is None else float(self._guidance)
        own = pool.empty(
            table,
            noise.new_empty(size, *noise.shape[1:]),
            self.wide,
            own_input=True,
            preview=False,
            seed=torch.zeros(size, dtype=torch.int64, device=device),
            row=torch.zeros(size, dtype=torch.int32, device=device),
            scale=None if scale is None else table.f.new_full((size, plan.K), scale),
            mask=None,
            known=None,
        )
        own.x[: len(noise)].copy_(noise)
        return own

    def _ask(self, own: Pool, which: Sequence[int], row: int, samples: Tensor) -> list[Tensor]:
        """What the model says of all that run, in every branch, [n*b,*] in the states' dtype."""
        b, R = len(samples), self.plan.rows
        times = own.table.times[_rows(which, R, row - 1, b).to(own.x.device).long()]
        times = times[:, 0] if times.shape[1] == 1 else times
        x, at = own.model_input[: len(which) * b].to(self.model_dtype), samples.repeat(len(which))
        f = torch.empty((len(self.trees), *x.shape), dtype=self.wide, device=x.device)
        calls = arguments.chunks(self._where, len(x), self._batch)

        def ask(part: slice) -> None:
            for branch, out in zip(self.trees.values(), f, strict=True):
                given = x[part], times[part], told(take(branch, at[part]))
                out[part] = outputs.asked(self._where, self._model, *given)

        self.ranks.deal(calls, ask, lambda part: f[:, part])
        self.count(len(x))
        return list(f)

    def _joined(self, own: Pool, size: int, b: int, new: int, f: list[Tensor]) -> list[Tensor]:
        """f for `new` more, who stand where the plan does."""
        if not new:
            return f
        there = slice(size * b, (size + new) * b)
        own.x[there].unflatten(0, (new, b)).copy_(own.x[:b])
        own.slots[:, there].unflatten(1, (new, b)).copy_(own.slots[:, None, :b])
        return [torch.cat([v, *[v[:b]] * new]) for v in f]

    def count(self, rows: int) -> None:
        """Count evaluations; also for those made outside."""
        self.rows += rows
        if self._asked is not None:
            self._asked(rows)


def _rows(which: Sequence[int], R: int, row: int, b: int) -> Tensor:
    """Where in the table row `row` of each sample stands."""
    return torch.as_tensor(np.repeat(np.asarray(which, np.int32) * R + row, b))


def _some(own: Pool, size: int) -> Pool:
    """The first so many samples of a pool."""
    names = ("x", "status", "seed", "row", "model_input", "scale")
    held = {name: getattr(own, name) for name in names}
    held = {name: v if v is None else v[:size] for name, v in held.items()}
    return replace(own, slots=own.slots[:, :size], **held)
