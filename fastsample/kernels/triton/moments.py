"""Dot products and peaks by the tree of `fastsample.kernels.moments`, bit for bit, in two launches.

A program of the first takes RUN chunks that lie `apart` chunks from each other. Halving all chunks
pairs chunks that far apart first, so that a program halves its own down to one sum; the second
launch halves those. Chunks behind the end are the zeros of the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.moments import CHUNK, LANES
from .dtype import load, on

CHUNK_, LANES_ = tl.constexpr(CHUNK), tl.constexpr(LANES)
RUN, WIDE = 16, 128  # chunks of a program; sums that a vector of the second launch holds
TAKE = {1: 4, 2: 4, 3: 2, 4: 2, 5: 2}  # tensors b of a program, by how many a: 10 sums a lane


@triton.jit
def halved(v, AXIS: tl.constexpr):
    """Lower half + upper half along an axis, a power of two, until every place holds the sum.

    Not tl.sum, whose order is the compiler's: both of a pair add the same two numbers, so that
    every place holds the same bits.
    """
    N: tl.constexpr = v.shape[AXIS]
    if len(v.shape) == 1:
        place = tl.arange(0, N)
    elif AXIS == 0:
        place = tl.broadcast_to(tl.arange(0, N)[:, None], v.shape)
    else:
        place = tl.broadcast_to(tl.arange(0, N)[None, :], v.shape)
    for k in tl.static_range(1, 12):
        if (N >> k) > 0:
            v = v + tl.gather(v, place ^ (N >> k), AXIS)
    return v


@triton.jit
def magnitude(v):
    """|v| as a whole number: ordered as the numbers are, NaN above all, so that no order of maxima
    can show.
    """
    if v.dtype == tl.float64:
        whole = v.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        whole = v.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return whole


@triton.jit
def products(a, b, at, inside, P: tl.constexpr, Q: tl.constexpr):
    """Magnitudes of a_p and products a_p b_q in float64 at these elements."""
    right, peaks, terms = (), (), ()
    for q in tl.static_range(Q):
        right = right + (load(b[q], at, inside).to(tl.float64),)
    for p in tl.static_range(P):
        left = load(a[p], at, inside)
        peaks = peaks + (magnitude(left),)
        left = left.to(tl.float64)
        for q in tl.static_range(Q):
            terms = terms + (left * right[q],)
    return peaks, terms


@triton.jit
def chosen(b, part, Q: tl.constexpr, TAKE: tl.constexpr):
    """The tensors b number part TAKE and following; past the last, any."""
    mine = ()
    for t in tl.static_range(TAKE):
        pointer = b[t]
        for k in tl.static_range(1, (Q + TAKE - 1) // TAKE):
            if k * TAKE + t < Q:
                pointer = tl.where(part == k, b[k * TAKE + t], pointer)
        mine = mine + (pointer,)
    return mine


@triton.jit
def chunk_sums(
    a, b, sums, peaks, elements, apart, parts,
    P: tl.constexpr, Q: tl.constexpr, TAKE: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """sums [B,P,Q,apart] and peaks [B,P,apart] of the chunks first + k apart, k < RUN."""
    first, rest = (tl.program_id(0) % apart).to(tl.int64), tl.program_id(0) // apart
    part, sample = rest % parts, (rest // parts).to(tl.int64)
    chunk = first + tl.arange(0, RUN).to(tl.int64) * apart
    e = chunk[:, None] * CHUNK_ + tl.arange(0, LANES_)[None, :]
    mine = chosen(b, part, Q, TAKE) if Q > 0 else ()
    base = sample * elements
    most, total = products(a, mine, base + e, e < elements, P, TAKE)
    for step in tl.range(1, CHUNK_ // LANES_):
        at = e + step * LANES_
        peak, term = products(a, mine, base + at, at < elements, P, TAKE)
        larger, more = (), ()
        for p in tl.static_range(P):
            larger = larger + (tl.maximum(most[p], peak[p]),)
        for k in tl.static_range(P * TAKE):
            more = more + (total[k] + term[k],)
        most, total = larger, more
    for p in tl.static_range(P):
        if part == 0:
            tl.store(peaks + (sample * P + p) * apart + first, tl.max(tl.max(most[p], 1), 0))
        for t in tl.static_range(TAKE):
            whole = halved(halved(total[p * TAKE + t], 1), 0)
            pair = (sample * P + p) * Q + part * TAKE + t
            # one place of the tile writes: all hold the sum
            writes = (e == first * CHUNK_) & (part * TAKE + t < Q)
            tl.store(sums + pair * apart + first + e * 0, whole, writes)


@triton.jit
def whole_sums(sums, peaks, dots, max_abs, pairs, WIDE: tl.constexpr, TALL: tl.constexpr):
    """One pair, or one peak, a program: its WIDE x TALL sums of chunks halved; the upper levels
    pair whole vectors.
    """
    k, at = tl.program_id(0).to(tl.int64), tl.arange(0, WIDE)
    if k < pairs:
        v = ()
        for j in tl.static_range(TALL):
            v = v + (tl.load(sums + (k * TALL + j) * WIDE + at),)
        for level in tl.static_range(1, 24):
            if (TALL >> level) > 0:
                half = ()
                for j in tl.static_range(TALL >> level):
                    half = half + (v[j] + v[(TALL >> level) + j],)
                v = half
        tl.store(dots + k + at * 0, halved(v[0], 0), at == 0)
    else:
        k = k - pairs
        most = tl.load(peaks + k * (WIDE * TALL) + at)
        for j in range(1, TALL):
            most = tl.maximum(most, tl.load(peaks + (k * TALL + j) * WIDE + at))
        most = tl.max(most, 0)
        if most.dtype == tl.int64:
            value = tl.where(most > 0x7FF0000000000000, 0x7FF8000000000000, most)
            peak = value.to(tl.float64, bitcast=True)
        else:
            value = tl.where(most > 0x7F800000, 0x7FC00000, most)
            peak = value.to(tl.float32, bitcast=True).to(tl.float64)
        tl.store(max_abs + k, peak)


def moments(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    dtype = reduce(torch.promote_types, (t.dtype for t in (*a, *b)))
    a, b = (tuple(t.to(dtype).contiguous() for t in group) for group in (a, b))
    batch, P, Q, like = a[0].shape[0], len(a), len(b), a[0]
    elements = like[0].numel() if batch else 0
    dots = like.new_zeros(batch, P, Q, dtype=torch.float64)
    max_abs = like.new_zeros(batch, P, dtype=torch.float64)
    if not elements:
        return dots, max_abs
    chunks = triton.next_power_of_2(triton.cdiv(elements, CHUNK))
    run, take = min(RUN, chunks), min(Q, TAKE[P])
    apart, parts = chunks // run, triton.cdiv(Q, take) if Q else 1
    wide = min(apart, WIDE)
    double = dtype == torch.float64
    sums = like.new_empty(batch, P, Q, apart, dtype=torch.float64)
    peaks = like.new_empty(batch, P, apart, dtype=torch.int64 if double else torch.int32)
    with on(like.device):
        # Products of numbers of 24 bits are exact in float64, so that fusing changes no bit there.
        chunk_sums[(apart * parts * batch,)](
            *(a, b, sums, peaks, elements, apart, parts),
            **dict(P=P, Q=Q, TAKE=take, RUN=run, enable_fp_fusion=not double),
        )
        whole_sums[(batch * P * (Q + 1),)](
            *(sums, peaks, dots, max_abs, batch * P * Q),
            **dict(WIDE=wide, TALL=apart // wide, enable_fp_fusion=False),
        )
    return dots, max_abs
