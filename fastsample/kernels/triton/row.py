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
def nothing(like):
    """-0 everywhere, to which any term adds as it is. (tl.full takes -0 for 0.)"""
    return tl.zeros_like(like) * -1.0


@triton.jit
def output_of(held, f, b, g, e, inside, size, like):
    """Output f_g of sample b in the state's dtype."""
    taken = branch_row(held, b, g, size.batch)
    return load(f, taken * size.elements + e, inside & (taken >= 0)).to(like.dtype)


@triton.jit
def mixed(held, r, f, there, branches, b, e, inside, size, x, at: tl.constexpr):
    """f = sum_g w_g f_g of the branches that are there."""
    G: tl.constexpr = at.G
    total, some = nothing(x), 0
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
def draw(held, noise, given, word, b, first, e, inside, size, like, APART: tl.constexpr):
    """A noise in the state's dtype, given or Philox's, times the sample's scale."""
    if given:
        n = tl.load(noise + b * size.elements + e, inside, 0.0)
    else:
        stage = tl.full((), 0, tl.uint32)
        if held.stage is not None:
            stage = tl.load(held.stage + b).to(tl.uint32)
        seed = tl.load(held.seed + b)
        if APART:
            # channels lie last where there are several
            counted = e % size.channels * (size.elements // size.channels) + e // size.channels
            n = normals_at(seed, word, stage, counted).to(like.dtype)
        else:
            n = normals(seed, word, stage, first, like.shape[0]).to(like.dtype)
    if held.noise_scale is not None:
        n = n * tl.load(held.noise_scale + b)
    return n


@triton.jit
def combined(
    held, row, f, noise, given, x, m, mix, place, b, first, e, inside, size,
    at: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """x', u, v: sums over the operands that the row reads; x' blended with the known image."""
    S: tl.constexpr = at.S
    G: tl.constexpr = at.G
    W: tl.constexpr = at.W
    r = held.table_f + row.to(tl.int64) * at.WF
    reads, _, known_reads = words_of(held, row, at)
    new, u, v = nothing(x), nothing(x), nothing(x)
    if bit(reads, 0):
        new, u, v = with_term(r, x, new, u, v, W)
    for s in tl.static_range(S):
        if bit(reads, 1 + s):
            start = s * size.slot_stride + place * size.elements
            slot = tl.load(held.slots + start + e, inside, 0.0)
            new, u, v = with_term(r + 1 + s, slot, new, u, v, W)
    if bit(reads, 1 + S):
        new, u, v = with_term(r + 1 + S, m, new, u, v, W)
    if bit(reads, 2 + S):
        new, u, v = with_term(r + 2 + S, mix, new, u, v, W)
    for g in tl.static_range(G):
        if bit(reads, 3 + S + g):
            output = output_of(held, f[g], b, g, e, inside, size, x)
            new, u, v = with_term(r + 3 + S + g, output, new, u, v, W)
    new, u, v, target = with_noises(
        held, row, noise, given, new, u, v, b, first, e, inside, size, at, APART
    )
    if reads == 0:
        new, u, v = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
    if held.mask is not None and known_reads != 0:
        mask = tl.load(held.mask + b * size.mask_stride + e, inside, 0.0)
        new = new + mask * (target - new)
    return new, u, v


@triton.jit
def with_noises(
    held, row, noise, given, new, u, v, b, first, e, inside, size,
    at: tl.constexpr, APART: tl.constexpr,
):  # fmt: skip
    """The sums with the noises that the row reads; what x' is blended with, of known image and
    noises, each of them drawn once.
    """
    L: tl.constexpr = at.L
    r, words = held.table_f + row.to(tl.int64) * at.WF, held.table_i + row.to(tl.int64) * at.WI
    reads, _, known_reads = words_of(held, row, at)
    target, column = nothing(new), 3 + at.S + at.G
    if held.mask is None:
        known_reads = known_reads & 0
    elif bit(known_reads, 0):
        y = tl.load(held.known + b * size.known_stride + e, inside, 0.0)
        target = target + tl.load(r + at.blend) * y
    for k in tl.static_range(L):
        if bit(reads, column + k) | bit(known_reads, 1 + k):
            word = tl.load(words + at.ids + k)
            n = draw(
                held, noise[k], bit(given, k), word, b, first, e, inside, size, new, APART
            )  # fmt: skip
            if bit(reads, column + k):
                new, u, v = with_term(r + column + k, n, new, u, v, at.W)
            if bit(known_reads, 1 + k):
                target = target + tl.load(r + at.blend + 1 + k) * n
    return new, u, v, target


@triton.jit
def run(
    held, x_in, x_out, f, noise, row, there, given, place, b, first, e, inside, size,
    at: tl.constexpr, APART: tl.constexpr,
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
        held, row, f, noise, given, x, m, mix, place, b, first, e, inside, size, at, APART
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
