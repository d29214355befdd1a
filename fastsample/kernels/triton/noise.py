"""The noise of `fastsample.kernels.reference.noise`, to the bit: Philox4x32-10 and Box-Muller.

Compiled without fused multiply-adds: every product and every sum is rounded.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ..reference import noise as definition
from .dtype import block_of, on

MULTIPLIER_0, MULTIPLIER_1 = (tl.constexpr(v) for v in definition.MULTIPLIER)
WEYL_0, WEYL_1 = (tl.constexpr(v) for v in definition.WEYL)
LOG, SIN, COS = (tl.constexpr(v) for v in (definition.LOG, definition.SIN, definition.COS))
LN2_HIGH, LN2_LOW = tl.constexpr(definition.LN2_HIGH), tl.constexpr(definition.LN2_LOW)
TURN = tl.constexpr(2 * math.pi / 2**32)


@triton.jit
def philox(block, seed, word, stage):
    """Four words of each block, int64: counter (block low, block high, word, stage), key seed."""
    zero = tl.zeros(block.shape, tl.uint32)
    c0, c1 = (block & 0xFFFFFFFF).to(tl.uint32), (block >> 32).to(tl.uint32)
    c2, c3 = zero + word.to(tl.uint32), zero + stage
    k0 = zero + (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = zero + ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    m0, m1 = (
        tl.full(block.shape, MULTIPLIER_0, tl.uint32),
        tl.full(block.shape, MULTIPLIER_1, tl.uint32),
    )
    for _ in tl.static_range(10):
        high, low = tl.umulhi(c0, m0), c0 * m0
        c0, c1, c2, c3 = tl.umulhi(c2, m1) ^ c1 ^ k0, c2 * m1, high ^ c3 ^ k1, low
        k0, k1 = k0 + WEYL_0, k1 + WEYL_1
    return c0, c1, c2, c3


@triton.jit
def log(u):
    """Natural logarithm of float32 u in [2^-33, 1]."""
    bits = u.to(tl.int32, bitcast=True)
    half = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    small = half < 0.70710678
    e = ((bits >> 23) - 126 - small.to(tl.int32)).to(tl.float32)
    m = tl.where(small, half + half, half) - 1.0
    z = m * m
    y = m * LOG[0] + LOG[1]
    for k in tl.static_range(2, 9):
        y = y * m + LOG[k]
    y = y * m
    y = y * z
    y = y + e * LN2_LOW
    y = y - 0.5 * z
    return (m + y) + e * LN2_HIGH


@triton.jit
def box_muller(a, b):
    """Two normals of two words: r cos and r sin."""
    # In halves, each exact, the sum rounded once: interpreter and hardware convert signed words.
    high = (a >> 16).to(tl.int32).to(tl.float32) * 65536.0
    u = (high + (a & 0xFFFF).to(tl.int32).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    r = tl.sqrt_rn(-2.0 * log(tl.where(u > 1.0, 1.0, u)))
    turn = (b + 0x20000000) >> 30
    angle = (b - (turn << 30)).to(tl.int32, bitcast=True).to(tl.float32) * TURN
    z = angle * angle
    s = ((z * SIN[0] + SIN[1]) * z + SIN[2]) * z * angle + angle
    c = ((z * COS[0] + COS[1]) * z + COS[2]) * z * z - 0.5 * z + 1.0
    odd = (turn & 1) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    # by a product: Triton's minus is 0 - v, and would lose the sign of 0
    cosine = tl.where((turn == 1) | (turn == 2), cosine * -1.0, cosine)
    return r * cosine, r * tl.where(turn >= 2, sine * -1.0, sine)


@triton.jit
def normals(seed, word, stage, first, BLOCK: tl.constexpr):
    """Normals [BLOCK] of the elements from `first` on, a multiple of 4; each block drawn once."""
    block = first // 4 + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = philox(block, seed, word, stage)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def normals_at(seed, word, stage, e):
    """Normals of the elements e [BLOCK] int64, in any order: a block for each of them."""
    w0, w1, w2, w3 = philox(e // 4, seed, word, stage)
    lane = e % 4
    first, second = box_muller(tl.where(lane < 2, w0, w2), tl.where(lane < 2, w1, w3))
    return tl.where(lane % 2 == 0, first, second)


@triton.jit(do_not_specialize=["word"])
def fill_kernel(out, seed, word, stage, elements, BLOCK: tl.constexpr):
    """A block of out [B, elements]."""
    blocks = tl.cdiv(elements, BLOCK)
    b = (tl.program_id(0) // blocks).to(tl.int64)
    first = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    e = first + tl.arange(0, BLOCK)
    s = tl.load(stage + b).to(tl.uint32) if stage is not None else tl.full((), 0, tl.uint32)
    n = normals(tl.load(seed + b), word, s, first, BLOCK)
    tl.store(out + b * elements + e, n.to(out.dtype.element_ty), e < elements)


def fill(out: Tensor, seed: Tensor, noise_id: int, stage: Tensor | None = None) -> None:
    """out[b] = normal(seed[b], noise_id), in place; out [B, ...] float32 or float64, contiguous."""
    batch, elements = out.shape[0], out[0].numel() if out.shape[0] else 0
    if not elements:
        return
    word = (noise_id + 2**31) % 2**32 - 2**31  # as a signed word: an id of any size is one variant
    block = block_of(elements)
    with on(out.device):
        fill_kernel[(batch * triton.cdiv(elements, block),)](
            out, seed, word, stage, elements, BLOCK=block, enable_fp_fusion=False
        )
