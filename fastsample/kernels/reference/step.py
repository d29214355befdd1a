"""One row of a plan in plain torch: the definition that every backend is held to, bit for bit.

Sums are formed left to right from their first term, each product and sum rounded on its own. What a
row does not read is never touched: it may be NaN, or absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from ...plan.row import Layout, RowShape
from .noise import normal

BAD_ROW, BAD_PLACE, BAD_BRANCH, NOT_FINITE = 1, 2, 4, 8  # low byte of a sample's status word


def row(
    shape: RowShape,
    at: Layout,
    numbers: Tensor,
    x: Tensor,
    slots: Sequence[Tensor | None],
    f: Sequence[Tensor | None],
    noise: Sequence[Tensor | None],
    scale: Tensor | None = None,
    weights: Tensor | None = None,
    bound: Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """(x', u, v or None where not kept, model input c x', x0 = dx x + dm m) of x [B, *] at one row:
        f        = sum_g w_g f_g        w_g = U_g + sum_k scale_k V_gk, w_0 = 1; or all of `weights`
        m        = clip(w_0 p x + q f)  or clamp(., -bound, bound) / bound
        [x' u v] = M [x, r_1..r_S, m, f, f_1..f_G, n_1..n_L]
        x'      += mask (ky y + sum_k Cy_k n_k - x')         with a mask and a known image y

    numbers [WF]: the row's floats;  f: G outputs [B, *] (None: an absent branch), noise: L draws
    [B, *], scaled;  scale [B, K], weights [B, 1+G], bound [B];  mask, known [B, *] or [1, *].
    """
    one = lambda name, k=0: numbers[at.at(name) + k]
    each = lambda per_sample: per_sample.view(-1, *[1] * (x.dim() - 1))

    def weight(g: int) -> Tensor:
        w = one("U", g) if weights is None else each(weights[:, 1 + g])
        for k in range(at.K if weights is None and scale is not None else 0):
            w = w + each(scale[:, k]) * one("V", g * at.K + k)
        return w

    mixed = [(g, v) for g, v in enumerate(f) if shape.branches >> g & 1 and v is not None]
    fused = total(((weight(g), v) for g, v in mixed), x)
    m = (one("p") if weights is None else each(weights[:, 0]) * one("p")) * x
    if shape.branches:
        m = m + one("q") * fused
    if bound is not None:
        m = clamp(m, each(bound)) / each(bound)
    elif shape.clips:
        m = clamp(m, one("clip"))
    operands = [x, *slots, m, fused, *f, *noise]
    read = [(k, v) for k, v in enumerate(operands) if shape.reads_operand(k)]
    sums = lambda o: total(((one("M", o * at.W + k), v) for k, v in read), x)
    new, u, v = (sums(o) if o == 0 or shape.dst[o - 1] >= 0 else None for o in range(3))
    if mask is not None and shape.known_reads:
        blend = [(k, v) for k, v in enumerate([known, *noise]) if shape.known_reads >> k & 1]
        target = total(((one("known", k), v) for k, v in blend), x)
        new = new + mask * (target - new)
    return new, u, v, one("c") * new, one("preview") * x + one("preview", 1) * m


def total(terms: Iterable[tuple[Tensor, Tensor]], like: Tensor) -> Tensor:
    """Sum of c·v over pairs (c, v), from the first; zeros where there is none."""
    sum_ = None
    for c, v in terms:
        sum_ = c * v if sum_ is None else sum_ + c * v
    return torch.zeros_like(like) if sum_ is None else sum_


def clamp(m: Tensor, bound: Tensor) -> Tensor:
    """m within [-bound, bound]; NaN stays NaN."""
    m = torch.where(m < -bound, -bound, m)
    return torch.where(m > bound, bound, m)


# -- the definition on a pool's memory -------------------------------------------------------------
def bind(pool) -> Callable:
    """The launch over a pool (`fastsample.kernels.backend`): `row` once for each distinct row of
    the batch, on the samples that run it.
    """

    @torch.no_grad()
    def launch(number, f=(), noise=(), x_in=None, x_out=None) -> None:
        f = [*f, *[None] * (pool.table.layout.G - len(f))]
        ends = pool.x if x_in is None else x_in, pool.x if x_out is None else x_out
        there = tuple(v is not None for v in f)
        alike = number is not None and pool.place is None and pool.f_index is None
        if alike and not _fault(pool, number, [0] * len(f), there):
            _apply(pool, All(pool), number, there, f, noise, *ends)
        else:
            for (row_, there), members in _members(pool, number, f).items():
                _apply(pool, Some(pool, members), row_, there, f, noise, *ends)
        _judge(pool, number, ends[1])

    return launch


def _apply(pool, of: All, number: int, present, f, noise, x_in: Tensor, x_out: Tensor) -> None:
    """Row `number` of the table on some samples, written where the pool keeps them."""
    at, shape, state = pool.table.layout, pool.table.shapes[number], pool.x.dtype
    blend = [pool.mask, pool.known] if pool.mask is not None and shape.known_reads else []
    ids, drawn, kept = pool.table.ids[number], shape.draws(at, bool(blend)), shape.slots_read(at)
    new, u, v, model_input, x0 = row(
        shape,
        at,
        pool.table.f[number],
        of.take(x_in, of.place),
        [of.take(pool.slots[s], of.place) if s in kept else None for s in range(at.S)],
        [of.output(g, f[g]).to(state) if there else None for g, there in enumerate(present)],
        [of.draw(ids[k], noise[k] if noise else None) if drawn[k] else None for k in range(at.L)],
        *(of.numbers(value) for value in (pool.scale, pool.weights, pool.bound)),
        *(of.take(value, of.b) for value in blend),
    )
    of.put(x_out, new, of.place)
    for slot, value in zip(shape.dst, (u, v), strict=True):
        if slot >= 0:
            of.put(pool.slots[slot], value, of.place)
    if pool.model_input is not None:
        asked = pool.model_input[: pool.copies * pool.batch]  # the samples of this launch
        for copy in asked.unflatten(0, (pool.copies, -1)):
            of.put(copy, model_input.to(pool.model_dtype), of.b)
    if pool.preview is not None:
        of.put(pool.preview, x0, of.b)


def _judge(pool, number: int | None, x: Tensor) -> None:
    """The word of each sample that ran and whose x' is not finite: its first such group's row."""
    status, groups = pool.status[: pool.batch], pool.groups
    bad = ~torch.isfinite(x).reshape(x.shape[0], *_shape(pool)).transpose(1, 2).flatten(2).all(2)
    if pool.place is not None:
        bad = bad[pool.place.long().clamp(0, x.shape[0] - 1)]
    rows = pool.row if number is None else torch.full_like(status, number)
    rows = rows.view(-1, 1).expand(-1, groups) if rows.dim() == 1 else rows
    guilty = rows.gather(1, bad.int().argmax(1, keepdim=True))[:, 0]
    first = bad.any(1) & (status & 255 == 0)
    status.copy_(torch.where(first, NOT_FINITE | guilty << 8, status))


class All:
    """Every sample of a pool, all at one row: what of a tensor is theirs, and their noise."""

    def __init__(self, pool):
        self.pool, self.b, self.place = pool, slice(None), slice(None)

    def take(self, tensor: Tensor, at) -> Tensor:
        return tensor

    def put(self, tensor: Tensor, value: Tensor, at) -> None:
        tensor.copy_(value)

    def own(self, value: Tensor) -> Tensor:
        """What was made for these samples alone, [n, elements], in the shape of their operands."""
        return value.view(self.pool.x.shape)

    def numbers(self, value: Tensor | None) -> Tensor | None:
        """Theirs of numbers a sample [B, ...]."""
        return None if value is None else value[self.b]

    def output(self, g: int, f: Tensor) -> Tensor:
        return f

    def draw(self, id_: int, given: Tensor | None) -> Tensor:
        """A noise in the state dtype, given or Philox's, times the samples' scale."""
        pool, seed, stage = self.pool, self.numbers(self.pool.seed), self.numbers(self.pool.stage)
        if given is None:
            ids = torch.full_like(seed, id_)
            n = self.own(normal(seed, ids, pool.elements, 0 if stage is None else stage))
        else:
            n = self.take(given, self.b)
        n, scale = n.to(pool.x.dtype), self.numbers(pool.noise_scale)
        return n if scale is None else n * scale.view(-1, *[1] * (n.dim() - 1))


class Some(All):
    """Members (sample, group) of a batch whose samples differ. A group counts as a sample of its
    own, [outer, inner] of the sample's view [outer, groups, inner].
    """

    def __init__(self, pool, members: Sequence[tuple[int, int]]):
        self.pool = pool
        self.b, self.g = (torch.tensor(v, device=pool.x.device) for v in zip(*members, strict=True))
        self.place = self.b if pool.place is None else pool.place.long()[self.b]
        self.shape = _shape(pool)

    def take(self, tensor: Tensor, at: Tensor) -> Tensor:
        return self._parts(tensor)[at * (tensor.shape[0] > 1), self.g]

    def put(self, tensor: Tensor, value: Tensor, at: Tensor) -> None:
        self._parts(tensor)[at, self.g] = value

    def own(self, value: Tensor) -> Tensor:
        return self._parts(value)[torch.arange(len(self.g), device=value.device), self.g]

    def output(self, g: int, f: Tensor) -> Tensor:
        index = self.pool.f_index
        return self._parts(f)[self.b if index is None else index[g].long()[self.b], self.g]

    def _parts(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(tensor.shape[0], *self.shape).transpose(1, 2)


def _shape(pool) -> tuple[int, int, int]:
    """A sample's elements as [outer, groups, inner]."""
    inner = pool.inner if pool.groups > 1 else pool.elements
    return pool.elements // (pool.groups * inner) if inner else 1, pool.groups, inner


def _members(pool, number: int | None, f: Sequence[Tensor | None]) -> dict[tuple, list]:
    """(row, which branches are there) -> its members (sample, group). A sample with a bad index is
    left out, and its status word says so.
    """
    at, batch, found = pool.table.layout, pool.batch, {}
    rows = [[number] * pool.groups] * batch
    if number is None:
        rows = pool.row.view(batch, pool.groups).tolist()
    index = [list(range(batch))] * at.G if pool.f_index is None else pool.f_index.tolist()
    places = range(batch) if pool.place is None else pool.place.tolist()
    outputs = [0 if v is None else v.shape[0] for v in f]
    for b, place in enumerate(places):
        taken = [index[g][b] for g in range(at.G)]
        there = tuple(0 <= taken[g] < outputs[g] for g in range(at.G))
        away = 0 if 0 <= place < pool.x.shape[0] else BAD_PLACE
        faults = [_fault(pool, r, taken, there) for r in rows[b]]
        if away or any(faults):
            guilty = rows[b][next((g for g, fault in enumerate(faults) if fault), 0)] & 0xFFFFFF
            if not int(pool.status[b]) & 255:
                word = reduce(or_, faults, away) | guilty << 8
                pool.status[b] = word - (word >> 31 << 32)  # as a signed number
            continue
        for g, r in enumerate(rows[b]):
            found.setdefault((r, there), []).append((b, g))
    return found


def _fault(pool, number: int, taken: Sequence[int], there: Sequence[bool]) -> int:
    """What forbids a sample to run this row."""
    at, shapes = pool.table.layout, pool.table.shapes
    if not 0 <= number < len(shapes):
        return BAD_ROW
    shape = shapes[number]
    mixes = pool.preview is not None or shape.reads >> at.m & 3  # m or f is needed
    for g in range(at.G):
        read = shape.reads_operand(at.branch(g))
        used = read or (mixes and shape.branches >> g & 1)
        if used and not there[g] and (read or taken[g] != -1):
            return BAD_BRANCH
    return 0
