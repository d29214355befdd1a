"""One row on a block of a sample's elements, terms in the order that `reference` writes: each sum
starts at -0, which changes no first term.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .dtype import load, store
from .noise import normals, normals_at
from .sample import bit, branch_row, weight_of, words_of


@triton.jit
def output_of(held, f, b, g, e, inside, size, like):
    """Output f_g of sample b in the state's dtype."""
    taken = branch_row(held, b, g, size.batch)
    return load(f, taken * size.elements + e, inside & (taken >= 0)).to(like.dtype)


@triton.jit
def mixed(held, r, f, there, branches, b, e, inside, size, x, at: tl.constexpr):
    """f = sum_g w_g f_g of the branches that are there."""
    G: tl.constexpr = at.G
    total, some = tl.full(x.shape, -0.0, x.dtype), 0
    for g in tl.static_range(G):
        if bit(branches, g) & bit(there, g) & (branch_row(held, b, g, size.batch) >= 0):
            v = output_of(held, f[g], b, g, e, inside, size, x)
            total = total + weight_of(held, r, b, g, at) * v
            some = 1
    return tl.where(some != 0, total, 0.0)


@triton.jit
def predicted(held, r, x, f, branches, b, at: tl.constexpr):
    """m = clip(w_0 p x + q f), or clamp(., -bound, bound) / bound."""
    w = tl.load(r + at.p)
    if held.weights is not None:
        w = tl.load(held.weights + b * (1 + at.G)) * w
    m = w * x
    if branches != 0:
        m = m + tl.load(r + at.q) * f
    if held.bound is not None:
        high = tl.load(held.bound + b)
        m = clamped(m, high)
        m = tl.div_rn(m, tl.zeros_like(m) + high) if x.dtype == tl.float32 else m / high
    else:
        high = tl.load(r + at.clip)
        if high > 0:
            m = clamped(m, high)
    return m


@triton.jit
def clamped(m, high):
    """Within [-high, high]; NaN stays NaN."""
    m = tl.where(m < -high, -high, m)
    return tl.where(m > high, high, m)


@triton.jit
def with_term(column, v, new, u, w, W: tl.constexpr):
    """The sums for x', u, v with an operand; column: its coefficients, W apart."""
    return (
        new + tl.load(column) * v,
        u + tl.load(column + W) * v,
        w + tl.load(column + 2 * W) * v,
    )


@triton.jit
def draw(held, noise, given, word, b, first, e, inside, size, like, GROUPED: tl.constexpr):
    """A noise in the state's dtype, given or Philox's, times the sample's scale."""
    if given:
        n = tl.load(noise + b * size.elements + e, inside, 0.0)
    else:
        stage = tl.full((), 0, tl.uint32)
        if held.stage is not None:
            stage = tl.load(held.stage + b).to(tl.uint32)
        seed = tl.load(held.seed + b)
        if GROUPED:
            n = normals_at(seed, word, stage, e).to(like.dtype)
        else:
            n = normals(seed, word, stage, first, like.shape[0]).to(like.dtype)
    if held.noise_scale is not None:
        n = n * tl.load(held.noise_scale + b)
    return n


@triton.jit
def combined(
    held, row, f, noise, given, x, m, mix, place, b, first, e, inside, size,
    at: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    """x', u, v: sums over the operands that the row reads; x' blended with the known image."""
    S: tl.constexpr = at.S
    G: tl.constexpr = at.G
    L: tl.constexpr = at.L
    W: tl.constexpr = at.W
    r, ids = (
        held.table_f + row.to(tl.int64) * at.WF,
        held.table_i + row.to(tl.int64) * at.WI + at.ids,
    )
    reads, _, known_reads = words_of(held, row, at)
    zero = tl.full(x.shape, -0.0, x.dtype)
    new, u, v, target = zero, zero, zero, zero
    if bit(reads, 0):
        new, u, v = with_term(r, x, new, u, v, W)
    for s in tl.static_range(S):
        if bit(reads, 1 + s):
            at_slot = s * size.slot_stride + place * size.elements
            slot = tl.load(held.slots + at_slot + e, inside, 0.0)
            new, u, v = with_term(r + 1 + s, slot, new, u, v, W)
    if bit(reads, 1 + S):
        new, u, v = with_term(r + 1 + S, m, new, u, v, W)
    if bit(reads, 2 + S):
        new, u, v = with_term(r + 2 + S, mix, new, u, v, W)
    for g in tl.static_range(G):
        if bit(reads, 3 + S + g):
            out = output_of(held, f[g], b, g, e, inside, size, x)
            new, u, v = with_term(r + 3 + S + g, out, new, u, v, W)
    blends = known_reads != 0
    if held.mask is None:
        blends = blends & False
    if held.mask is not None and bit(known_reads, 0):
        y = tl.load(held.known + b * size.known_stride + e, inside, 0.0)
        target = target + tl.load(r + at.blend) * y
    for k in tl.static_range(L):
        read = bit(reads, 3 + S + G + k)
        if read | (blends & bit(known_reads, 1 + k)):
            n = draw(
                held, noise[k], bit(given, k), tl.load(ids + k), b, first, e, inside, size, x,
                GROUPED,
            )  # fmt: skip
            if read:
                new, u, v = with_term(r + 3 + S + G + k, n, new, u, v, W)
            if blends & bit(known_reads, 1 + k):
                target = target + tl.load(r + at.blend + 1 + k) * n
    if reads == 0:
        new, u, v = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    if held.mask is not None and blends:
        mask = tl.load(held.mask + b * size.mask_stride + e, inside, 0.0)
        new = new + mask * (target - new)
    return new, u, v


@triton.jit
def run(
    held, x_in, x_out, f, noise, row, there, given, place, b, first, e, inside, size,
    at: tl.constexpr, GROUPED: tl.constexpr,
):  # fmt: skip
    """x' of a row that may run, and all that it writes."""
    r, words = held.table_f + row.to(tl.int64) * at.WF, words_of(held, row, at)
    mixes = ((words[0] >> (1 + at.S)) & 3) != 0
    x = tl.load(x_in + place * size.elements + e, inside, 0.0)
    mix, m = tl.zeros_like(x), tl.zeros_like(x)
    if held.preview is not None:
        mixes = True
    if mixes:
        mix = mixed(held, r, f, there, words[1], b, e, inside, size, x, at)
        m = predicted(held, r, x, mix, words[1], b, at)
    new, u, v = combined(
        held, row, f, noise, given, x, m, mix, place, b, first, e, inside, size, at, GROUPED
    )
    tl.store(x_out + place * size.elements + e, new, inside)
    if at.S > 0:
        written = held.table_i + row.to(tl.int64) * at.WI + at.dst
        slots = held.slots + place * size.elements + e
        du, dv = tl.load(written).to(tl.int64), tl.load(written + 1).to(tl.int64)
        if du >= 0:
            tl.store(slots + du * size.slot_stride, u, inside)
        if dv >= 0:
            tl.store(slots + dv * size.slot_stride, v, inside)
    if held.model_input is not None:
        asked = tl.load(r + at.c) * new
        for copy in range(size.copies):
            sample = (copy * size.batch + b) * size.elements
            store(held.model_input, sample + e, asked, inside)
    if held.preview is not None:
        x0 = tl.load(r + at.preview) * x + tl.load(r + at.preview + 1) * m
        tl.store(held.preview + b * size.elements + e, x0, inside)
    return new
