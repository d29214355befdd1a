"""Traced: the rest of a Run as the definition in plain torch, for gradients through the steps of a
scheduler. Imports no diffusers.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ...kernels.reference import step as definition
from ...runtime import arguments
from ...runtime.run import Run


class Traced:
    """What a Run is to a Loop, from the row where the run stands on. x, x0 [B,*] and the history
    are tensors of the graph, and nothing is written in place.
    """

    def __init__(self, run: Run):
        pool = run._pool
        self.plan, self.row, self.end, self._table = run.plan, run.row, run.end, pool.table
        self.x, self.x0, self._bound = pool.x.clone(), None, pool.bound
        self._slots = [None if slot is None else slot.clone() for slot in pool.slots]
        self._noise_source = run._source[0]

    def carry(self, f: Tensor, x_in: Tensor | None = None, x_out: Tensor | None = None) -> None:
        """The row that the model's output f [B,*] is for, and those after it that ask no model."""
        shapes, state = self._table.shapes, self.x.dtype
        self._row(f.to(state))
        while self.row < self.end and shapes[self.row].call < 0:
            self._row(None)

    def bounds(self) -> Tensor:
        """s [B], to be written before a step that clamps to it, as `Run.bounds`."""
        self._bound = self.x.new_ones(len(self.x))
        return self._bound

    def faults(self) -> list[int]:
        """Samples whose state is not finite."""
        good = self.x.detach().isfinite().flatten(1).all(1)
        return [b for b, is_good in enumerate(good.tolist()) if not is_good]

    def select(self, index: Tensor) -> None:
        """Go on with samples index [n], as `Run.select`."""
        index = torch.as_tensor(index, device=self.x.device)
        self.x, self._slots = self.x[index], [s if s is None else s[index] for s in self._slots]

    def __deepcopy__(self, memo: dict) -> Traced:
        return copy.copy(self)  # nothing of it is ever written

    # -- inside ------------------------------------------------------------------------------------
    def _row(self, f: Tensor | None) -> None:
        at, shape = self._table.layout, self._table.shapes[self.row]
        ids = arguments.drawn(self.plan, self.row, masked=False)
        noise = [None if k is None else self._noise_source(self.row, k) for k in ids]
        noise = [n if n is None else n.to(self.x.dtype) for n in noise]
        numbers, slots = self._table.f[self.row], list(self._slots)
        self.x, *kept, _, self.x0 = definition.row(
            shape, at, numbers, self.x, slots, [f], noise, bound=self._bound
        )
        for slot, value in zip(shape.dst, kept, strict=True):
            if slot >= 0:
                slots[slot] = value
        self._slots, self.row = slots, self.row + 1
