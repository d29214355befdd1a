"""Pool: the memory of P samples on a device and the table their rows stand in, which a backend
binds its launch to.

Everything a launch needs is found once, when it is bound; a cursor (`Run`, a captured loop, the
Engine) then says which row is next and where the model's outputs lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..kernels import transforms
from ..kernels.backend import alike
from ..plan import Plan
from ..plan.row import READS_SPLIT, Layout, RowShape

# Bytes modulo 4096 between the state and each slot: a step whose operands all stand at one place of
# a page takes up to half as long again.
STAGGER = 576
# what a pool has of each sample beside its tensors: a number or a few
ROWS = ("status", "seed", "stage", "scale", "noise_scale", "weights", "bound", "row")


class Table(NamedTuple):
    """Rows of plans on a device: records f [R, WF] of the state's dtype and i [R, WI] int32, and
    what the host knows of each row: its shape and its noise ids.
    """

    f: Tensor
    i: Tensor
    layout: Layout
    shapes: tuple[RowShape, ...]
    ids: tuple[tuple[int, ...], ...]

    @property
    def times(self) -> Tensor:
        """Model scalars [R, E] of the row after each."""
        return self.f[:, self.layout.at("t") :][:, : self.layout.E]


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
            with torch.inference_mode(False):
                made[dtype, device] = Table(
                    torch.tensor(numbers, device=device),
                    torch.tensor(words, device=device),
                    plan.layout,
                    plan.program.rows,
                    tuple(map(tuple, plan.ids.tolist())),
                )
        return made[dtype, device]


def recorded(numbers: Tensor, words: Tensor, layout: Layout) -> Table:
    """The table that these records are, [R, WF] and [R, WI]; the host reads them."""
    at, clips = layout.at, (numbers[:, layout.at("clip")] > 0).tolist()
    shapes, ids = [], []
    for clipped, row in zip(clips, words.tolist(), strict=True):
        reads = row[at("reads")] | row[at("reads") + 1] << READS_SPLIT
        single = (row[at(name)] for name in ("branches", "known_reads"))
        dst = row[at("dst") : at("dst") + 2]
        shapes.append(RowShape(reads, *single, *dst, clipped, row[at("call")]))
        ids.append(tuple(k & 0xFFFFFFFF for k in row[at("ids") : at("ids") + layout.L]))
    return Table(numbers, words, layout, tuple(shapes), tuple(ids))


@dataclass(eq=False)
class Pool:
    """P samples of one layout. State dtype T, model dtype Tm; None = absent.

    x [P,*] T and slots [S,P,*] T stand in one allocation, in the memory format of the noise.
    model_input [copies*P,*] Tm (None: the model is asked with x itself), preview [P,*] T,
    status [P] int32;  seed [P] int64, stage [P] int32, scale [P,K] T, noise_scale [P] T,
    weights [P,1+G] T, bound [P] T, mask and known [P,*] or [1,*] T.
    row [B] or [B,groups] int32, place [B] int32, f_index [G,B] int32: for launches whose samples
    run rows of their own; inner: elements of a group that lie side by side. Raises ValueError for
    rows of another size.
    """

    table: Table
    model_dtype: torch.dtype
    x: Tensor
    slots: Tensor
    status: Tensor
    seed: Tensor
    model_input: Tensor | None = None
    preview: Tensor | None = None
    stage: Tensor | None = None
    scale: Tensor | None = None
    noise_scale: Tensor | None = None
    weights: Tensor | None = None
    bound: Tensor | None = None
    mask: Tensor | None = None
    known: Tensor | None = None
    copies: int = 1
    row: Tensor | None = None
    inner: int = 0
    place: Tensor | None = None
    f_index: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = (self.batch,) if self.row is None else self.row.shape
        if len(sizes) not in (1, 2) or sizes[0] != self.batch:
            raise ValueError(
                f"Pool: row has shape {list(sizes)} for a launch of {self.batch} samples; [B] or "
                "[B, groups] is accepted"
            )
        period = self.groups * self.inner
        if self.groups > 1 and (period < 1 or self.elements % period):
            raise ValueError(
                f"Pool: {self.groups} groups of {self.inner} numbers do not divide a sample of "
                f"{list(self.x.shape[1:])}; a whole number of times is accepted"
            )

    @property
    def batch(self) -> int:
        """Samples of a launch."""
        return self.x.shape[0] if self.place is None else self.place.shape[0]

    @property
    def elements(self) -> int:
        """Numbers of a sample."""
        return math.prod(self.x.shape[1:])

    @property
    def groups(self) -> int:
        """Groups of a sample, each with a row of its own."""
        return self.row.shape[1] if self.row is not None and self.row.dim() == 2 else 1

    @property
    def channels(self) -> int | None:
        """C where a sample's numbers, [C, R] in logical order, in which noise counts them, lie as
        [R, C], as channels_last has them; 1 where they lie in logical order; None elsewhere.
        """
        pairs = zip(self.x.shape[1:], self.x.stride()[1:], strict=True)
        axes = [(stride, n) for n, stride in pairs if n > 1]
        turn = axes.index(max(axes)) if axes else 0
        turned = [*axes[turn:], *axes[:turn]]
        if turned != sorted(axes, reverse=True):
            return None
        return math.prod(n for _, n in axes[:turn])

    @property
    def slot_rows(self) -> Tensor:
        """The slots as rows [S, n], each one's numbers first in its own, as a tensor whose storage
        begins with it: a compiler moves what it writes to unless it is dense and begins there.
        """
        S, n = self.slots.shape[0], self.slots.stride(0)
        with torch.inference_mode(False):
            rows = self.slots.as_strided((S, n), (n, 1), self.slots.storage_offset())
            return torch.from_dlpack(rows)

    @property
    def bytes(self) -> int:
        """Memory of its tensors, the shared table aside."""
        held = (getattr(self, field.name) for field in fields(self))
        return sum(v.numel() * v.element_size() for v in held if isinstance(v, Tensor))

    def copied(self, **changes) -> Pool:
        """The same samples in memory of their own; what a launch never writes is shared."""
        with torch.inference_mode(False):
            x, slots = memory(self.x, self.x.dtype, self.slots.shape[0])
            x.copy_(self.x)
            slots.copy_(self.slots)
            written = "model_input", "preview", "status", "bound"
            own = {name: getattr(self, name) for name in written}
            own = {name: value.clone() for name, value in own.items() if value is not None}
        return replace(self, x=x, slots=slots, **{**own, **changes})

    def selected(self, index: Tensor) -> Pool:
        """Samples index [n] of this pool in memory of their own, in its format."""
        P, n = self.x.shape[0], len(index)

        def moved(value: Tensor, index: Tensor) -> Tensor:
            sizes = len(index), *value.shape[1:]
            own = torch.empty_strided(sizes, x.stride(), dtype=value.dtype, device=value.device)
            return own.copy_(value.index_select(0, index))

        with torch.inference_mode(False):
            x, slots = memory(
                self.x[:1].expand(n, *self.x.shape[1:]), self.x.dtype, len(self.slots)
            )
            x.copy_(self.x.index_select(0, index))
            slots.copy_(self.slots.index_select(1, index))
            own = {name: getattr(self, name) for name in ROWS}
            own = {name: v if v is None else v.index_select(0, index) for name, v in own.items()}
            for name in ("mask", "known"):
                value = getattr(self, name)  # [1,*] is every sample's
                shared = value is None or value.shape[0] == 1
                own[name] = value if shared else moved(value, index)
            if self.preview is not None:
                own["preview"] = moved(self.preview, index)
            if self.model_input is not None:
                copies = torch.cat([index + k * P for k in range(self.copies)])
                own["model_input"] = moved(self.model_input, copies)
        return replace(self, x=x, slots=slots, **own)


def empty(
    table: Table, like: Tensor, model: torch.dtype, *, own_input: bool, preview: bool, **words
) -> Pool:
    """A pool for samples as `like` [P,*], in the state dtype of the table, on its device; the rest
    as the pool's fields, a mask and a known image brought into its memory format.
    """
    with torch.inference_mode(False):  # inference tensors do not count who writes to them
        x, slots = memory(like, table.f.dtype, table.layout.S)
        copies, strides, device = words.get("copies", 1), x.stride(), x.device
        for name in ("mask", "known"):
            if words[name] is not None:
                words[name] = placed(words[name], strides, x.dtype)
        status = torch.zeros(x.shape[0], dtype=torch.int32, device=device)
        if own_input:
            sizes = copies * x.shape[0], *x.shape[1:]
            words["model_input"] = torch.empty_strided(sizes, strides, dtype=model, device=device)
        if preview:
            words["preview"] = torch.empty_strided(x.shape, strides, dtype=x.dtype, device=device)
        return Pool(table, model, x, slots, status, **words)


def memory(like: Tensor, dtype: torch.dtype, slots: int) -> tuple[Tensor, Tensor]:
    """x as `like` [P,*] and slots [S,P,*], uninitialised, in one allocation, `STAGGER` bytes apart
    modulo 4096.
    """
    strides, step = dense(like), staggered(like.numel(), dtype) // dtype.itemsize
    whole = torch.empty(step * (1 + slots), dtype=dtype, device=like.device)
    x = whole.as_strided(like.shape, strides)
    return x, whole.as_strided((slots, *like.shape), (step, *strides), step)


def staggered(numbers: int, dtype: torch.dtype) -> int:
    """Bytes from the state, of so many numbers, to the first slot, and from each to the next."""
    return -(-numbers * dtype.itemsize // 4096) * 4096 + STAGGER


def dense(like: Tensor) -> tuple[int, ...]:
    """Strides of a batch [P,*] whose samples stand one after the other, each in the memory format
    that it has in `like`.
    """
    if like.dim() < 2 or like.shape[0] == 0:
        return torch.empty(like.shape, device="meta").stride()
    sample = torch.empty_like(like[0], device="meta")
    return (sample.numel(), *sample.stride())


def placed(value: Tensor, strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The value [P,*] with these strides in this dtype; itself where it has them."""
    if value.dtype == dtype and alike(value, strides):
        return value
    own = torch.empty_strided(value.shape, strides, dtype=dtype, device=value.device)
    return own.copy_(value)
