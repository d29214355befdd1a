"""Rows of a plan applied in place to the buffers of one batch in flight: the eager hot path, which
does not go through torch's dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..kernels import native, transforms
from ..kernels.backend import Choice
from ..kernels.layout import Layout
from ..plan import Plan


class Table(NamedTuple):
    """A plan on a device: its records and the structure of each row (reads, branches, known_reads,
    du, dv, clip > 0).
    """

    f: Tensor
    i: Tensor
    dims: Layout
    structures: tuple[tuple[int, ...], ...]


_tables: WeakKeyDictionary[Plan, dict[tuple, Table]] = WeakKeyDictionary()
_lock = Lock()


def table(plan: Plan, dtype: torch.dtype, device: torch.device) -> Table:
    """The plan's table in `dtype` on `device`, made once and shared by every run of the plan; never
    written to. A transform makes tensors of its own kind, which do not outlive it and are not kept.
    """
    with _lock:
        made = {} if transforms.active() else _tables.setdefault(plan, {})
        if (dtype, device) not in made:
            numbers, words = plan.table(np.float32 if dtype == torch.float32 else np.float64)
            dims = Layout(plan.S, plan.G, plan.L, plan.K, plan.E)
            structures = tuple(tuple(int(v) for v in row[:6]) for row in plan.program.rows)
            made[dtype, device] = Table(
                torch.tensor(numbers, device=device),
                torch.tensor(words, device=device),
                dims,
                structures,
            )
        return made[dtype, device]


class Buffers(NamedTuple):
    """All memory of a batch of B samples in flight; None = absent. State dtype T, model dtype Tm.

    x [B,*] T, slots [S,B,*] T, model_input [copies*B,*] Tm (None: the model reads x itself),
    preview [B,*] T, status [B] int32, rows [R,B] int32; scale [B,K] T, seed [B] int64, noise_scale
    [B] T, mask and known [B,*] or [1,*] T.
    """

    x: Tensor
    slots: Tensor
    model_input: Tensor | None
    preview: Tensor | None
    status: Tensor
    rows: Tensor
    scale: Tensor | None
    seed: Tensor
    noise_scale: Tensor | None
    mask: Tensor | None
    known: Tensor | None
    copies: int = 1

    def copied(self) -> Buffers:
        """The same batch in memory of its own; what a run never writes is shared."""
        written = ("x", "slots", "model_input", "preview", "status")
        return self._replace(
            **{
                name: getattr(self, name).clone()
                for name in written
                if getattr(self, name) is not None
            }
        )


def bind(at: Table, b: Buffers, model_dtype: torch.dtype):
    """A `_C.Step` on these buffers: kernel(address of a row of b.rows, address of f_1, ...)."""
    elements = b.x[0].numel() if b.x.shape[0] else 0
    optional = {
        name: getattr(b, name)
        for name in ("model_input", "preview", "scale", "noise_scale", "mask", "known")
        if getattr(b, name) is not None
    }
    strides = {
        f"{name}_batch_stride": 0 if getattr(b, name).shape[0] == 1 else elements
        for name in ("mask", "known")
        if name in optional
    }
    return native.bind(
        at.dims,
        b.x,
        at.f,
        at.i,
        b.rows,
        model_dtype,
        slots=b.slots,
        status=b.status,
        seed=b.seed,
        copies=b.copies,
        **optional,
        **strides,
    )


def step(
    at: Table,
    b: Buffers,
    row: int,
    f: Sequence[Tensor | None],
    noise: Sequence[Tensor],
    model_dtype: torch.dtype,
    choice: Choice,
) -> None:
    """Row `row` for every sample, by a functional backend, written back into the buffers. f: G
    outputs, None where the row has no such branch.
    """
    structure = at.structures[row]
    expand = lambda v: None if v is None else v.expand(b.x.shape)
    new, u, v, model_input, preview, status = choice.module.step(
        b.x,
        b.slots.unbind(0),
        [b.x if t is None else t for t in f],
        at.f,
        at.i,
        b.rows[row],
        at.dims,
        scale=b.scale,
        seed=b.seed,
        noise_scale=b.noise_scale,
        noise=noise,
        mask=expand(b.mask),
        known=expand(b.known),
        model_dtype=model_dtype,
        preview=b.preview is not None,
        structure=structure,
    )
    b.x.copy_(new)
    for slot, value in ((structure[3], u), (structure[4], v)):
        if slot >= 0:
            b.slots[slot].copy_(value)
    if b.model_input is not None:
        b.model_input.view(b.copies, *b.x.shape).copy_(model_input)
    if b.preview is not None:
        b.preview.copy_(preview)
    b.status.copy_(torch.where((b.status & 255) == 0, status, b.status))  # the first fault stays
