"""One row for each sample, or group of a sample, in one launch: bit for bit what
`fastsample.kernels.reference.step` gives, in float32 and float64.

What a row does is read from its words by each program, so that one variant of the kernel serves
every row of every plan of a layout: an `if` on the words, one for a whole program, stands before
each load. Compiled without fused multiply-adds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...plan.row import Layout
from .dtype import block_of, on
from .row import run
from .sample import BAD_PLACE, VECTOR, judged, row_of, sample_faults, tell


class Held(NamedTuple):
    """A pool's memory, as `fastsample.runtime.pool.Pool` names them; None: absent.

    first, done [B] int32: the first group of a sample whose x' is not finite, and how many of its
    programs are done; where samples have groups.
    """

    slots: object
    table_f: object
    table_i: object
    status: object
    seed: object
    model_input: object
    preview: object
    stage: object
    scale: object
    noise_scale: object
    weights: object
    bound: object
    mask: object
    known: object
    row: object
    place: object
    f_index: object
    first: object
    done: object


class Sizes(NamedTuple):
    """Numbers that a pool does not change: of elements, of samples, and of what lies between."""

    elements: int
    slot_stride: int
    mask_stride: int
    known_stride: int
    batch: int
    pool: int
    copies: int
    groups: int
    inner: int
    channels: int


class Places(NamedTuple):
    """A layout: how many of each, and where each field begins in a record."""

    S: int
    G: int
    L: int
    K: int
    W: int
    WF: int
    WI: int
    p: int
    q: int
    clip: int
    U: int
    V: int
    blend: int
    c: int
    preview: int
    reads: int
    branches: int
    known_reads: int
    dst: int
    ids: int


def places(at: Layout) -> Places:
    fields = ("blend", "known"), *((name, name) for name in Places._fields[7:] if name != "blend")
    sizes = {name: getattr(at, name) for name in Places._fields[:7]}
    return Places(**sizes, **{name: at.at(field) for name, field in fields})


@triton.jit(do_not_specialize=["number", "rows", "there", "given", "outputs"])
def step(
    held, x_in, x_out, f, noise, number, rows, there, given, outputs, size,
    at: tl.constexpr, GROUPED: tl.constexpr, APART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A block of a sample's elements, of one group where it has groups.

    number: the table row of every sample, or VECTOR; rows: of the table; bits of there and given:
    which of f [outputs,*] and noise [B,*] are tensors that were given. APART: neighbours in the
    block are none in the order that noise counts them in.
    """
    part = size.elements // size.groups
    blocks = tl.maximum(tl.cdiv(part, BLOCK), 1)
    program, programs = tl.program_id(0), blocks * size.groups
    b, g = (program // programs).to(tl.int64), program % programs // blocks
    first = (program % blocks).to(tl.int64) * BLOCK
    e = first + tl.arange(0, BLOCK)
    inside = e < part
    if GROUPED:
        e = (e // size.inner * size.groups + g) * size.inner + e % size.inner
    place = b
    if held.place is not None:
        place = tl.load(held.place + b).to(tl.int64)
    faults, guilty = sample_faults(held, number, rows, b, there, outputs, size, at, GROUPED)
    faults = faults | tl.where((place >= 0) & (place < size.pool), 0, BAD_PLACE)
    if faults != 0:
        if program % programs == 0:
            tell(held, b, faults, guilty)
    else:
        row = row_of(held, number, b * size.groups + g)
        new = run(
            held, x_in, x_out, f, noise, row, there, given, place, b, first, e, inside, size, at,
            APART,
        )  # fmt: skip
        judged(held, number, new, inside, b, g, programs, size, GROUPED)


def bind(pool) -> Launch:
    return Addressed(pool) if isinstance(step, triton.JITFunction) else Launch(pool)


class Pointer:
    """Where a tensor's elements lie, as a launch takes it; it keeps no memory."""

    def __init__(self, tensor: Tensor):
        self.dtype, self._at = tensor.dtype, tensor.data_ptr()

    def data_ptr(self) -> int:
        return self._at


class Launch:
    """The step over a pool's memory, by its tensors, for which the interpreter asks."""

    _known = staticmethod(lambda tensor: tensor)

    def __init__(self, pool):
        held = {name: getattr(pool, name, None) for name in Held._fields}
        held = {name: v if v is None else self._known(v) for name, v in held.items()}
        if pool.groups > 1:
            own = torch.zeros(2, pool.batch, dtype=torch.int32, device=pool.x.device)
            held |= {"first": own[0].fill_(pool.groups), "done": own[1]}
        self._held, self._x, self._device = Held(**held), self._known(pool.x), pool.x.device
        stride = lambda v: 0 if v is None or v.shape[0] == 1 else pool.elements
        slot_stride = pool.slots.stride(0) if len(pool.slots) else 0
        strides = slot_stride, stride(pool.mask), stride(pool.known)
        counts = pool.batch, pool.x.shape[0], pool.copies, pool.groups, pool.inner or 1
        grouped, channels = pool.groups > 1, pool.channels or 1
        self._size = Sizes(pool.elements, *strides, *counts, channels)
        at, part = pool.table.layout, pool.elements // pool.groups
        self._absent = torch.empty(1, dtype=pool.model_dtype, device=pool.x.device), at.G, at.L
        block = block_of(part)
        self._options = {"at": places(at), "GROUPED": grouped, "BLOCK": block}
        self._options["APART"] = grouped or channels > 1
        self._grid = (pool.batch * pool.groups * max(triton.cdiv(part, block), 1),)
        self._go_by(pool.table)

    def _go_by(self, table) -> None:
        """Go by this table, of the same layout."""
        table_f, table_i = self._known(table.f), self._known(table.i)
        self._held = self._held._replace(table_f=table_f, table_i=table_i)
        self._rows = table.f.shape[0]

    def __call__(self, row, f=(), noise=(), x_in=None, x_out=None) -> None:
        if not self._grid[0]:
            return
        f, x, (absent, G, L) = tuple(f), self._x, self._absent
        outputs = max((v.shape[0] for v in f if v is not None), default=0)
        with on(self._device):
            step[self._grid](
                self._held,
                x if x_in is None else x_in,
                x if x_out is None else x_out,
                *(_filled(f, G, absent), _filled(noise, L, x)),
                VECTOR.value if row is None else row,
                self._rows,
                *(_bits(f), _bits(noise), outputs, self._size),
                **self._options,
                enable_fp_fusion=False,
            )


class Addressed(Launch):
    """The same by addresses: the pool is the caller's to keep."""

    _known = Pointer
    use = Launch._go_by


def _filled(given, count: int, stand_in) -> tuple:
    """So many tensors, of which those that are not given are never read."""
    given = (*given, *[None] * (count - len(given)))
    return tuple(stand_in if v is None else v for v in given)


def _bits(given) -> int:
    return sum(1 << k for k, v in enumerate(given) if v is not None)
