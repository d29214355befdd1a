"""Unit normal noise, specified to the bit, in plain torch.

normal[b, e] = lane (e mod 4) of block (e div 4) of Philox4x32-10 with
    key     = (seed low 32, seed high 32)
    counter = (block low 32, block high 32, noise id, stage)
Words (a, b) of lanes (0, 1) and (2, 3) make one Box-Muller pair, all in float32:
    u = min((float(a) + 1/2) * 2^-32, 1),  r = sqrt(-2 log u),  angle = 2 pi b / 2^32
    (r cos, r sin)
log, sin and cos are fixed polynomials (Cephes single precision) of + and * only; the angle is
reduced in integers and sqrt is rounded once, so every backend that keeps the written order gives
these very bits. A float64 state takes the float32 normal.
Philox: Salmon et al., SC 2011.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..backend import filling
from ..narrow import has_float64, hosted

MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK32 = 0xFFFFFFFF
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low word of a 32 x 32 bit product held in int64. Split into 16-bit halves: an int64
    that wraps is undefined in generated C++.
    """
    low = a * (constant & 0xFFFF)
    high = a * (constant >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(
    counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10: four words of counter, two of key (int64 tensors in [0, 2^32), shapes
    broadcast) -> four words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, MULTIPLIER[0])
        high1, low1 = _multiply(c2, MULTIPLIER[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def log(u: Tensor) -> Tensor:
    """Natural logarithm of float32 u in (0, 1]: u = m 2^e with m in [sqrt(1/2), sqrt 2), polynomial
    in m - 1.
    """
    m, exponent = torch.frexp(u)  # m in [1/2, 1)
    small = m < 0.70710678
    e = (exponent - small.int()).float()
    m = torch.where(small, m + m, m) - 1.0
    z = m * m
    y = torch.full_like(m, LOG[0])
    for coefficient in LOG[1:]:
        y = y * m + coefficient
    y = y * m
    y = y * z
    y = y + e * LN2_LOW
    y = y - 0.5 * z
    return (m + y) + e * LN2_HIGH


def sin_cos(word: Tensor) -> tuple[Tensor, Tensor]:
    """sin and cos of 2 pi word / 2^32, word int64 in [0, 2^32): the nearest quarter turn is taken
    off in integers, exactly.
    """
    turn = (word + (1 << 29)) >> 30
    r = (word - (turn << 30)).float() * (2 * math.pi / 2**32)
    z = r * r
    s = ((SIN[0] * z + SIN[1]) * z + SIN[2]) * z * r + r
    c = ((COS[0] * z + COS[1]) * z + COS[2]) * z * z - 0.5 * z + 1.0
    quarter = turn & 3
    odd = (quarter & 1) == 1
    a, b = torch.where(odd, c, s), torch.where(odd, s, c)
    return torch.where(quarter >= 2, -a, a), torch.where((quarter == 1) | (quarter == 2), -b, b)


def box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals from two words: r cos and r sin. sqrt goes through float64, where rounding once
    more gives the correctly rounded float32.
    """
    u = torch.clamp((a.float() + 0.5) * 2.0**-32, max=1.0)
    r = torch.sqrt((-2.0 * log(u)).double()).float()
    s, c = sin_cos(b)
    return r * c, r * s


def normal(seed: Tensor, noise_id: Tensor, elements: int, stage: int | Tensor = 0) -> Tensor:
    """Normals [B, elements], float32, of seed [B] int64, noise_id [B] (one id a sample) or [B,
    elements] (an id for each element), and stage, a number in [0, 2^32) or [B] whole numbers, whose
    low 32 bits count. Of a device without float64: those of the host, copied.
    """
    if not has_float64(seed.device):
        there, here = seed.device, hosted((seed, noise_id, elements, stage))
        return _by_kernel(*here).to(there)
    stage = (stage.long() & MASK32).view(-1, 1) if isinstance(stage, Tensor) else stage
    key = (seed & MASK32).view(-1, 1), ((seed >> 32) & MASK32).view(-1, 1)
    word = noise_id.long() & MASK32
    word = word if word.dim() == 2 else word[:, None]
    if noise_id.dim() == 1 and not torch.compiler.is_compiling():
        n = _blocks(key, word, torch.arange((elements + 3) // 4, device=seed.device), stage)
        return torch.stack(n, -1).flatten(1)[:, :elements]
    # One block for each element, of which it keeps one lane: right where elements of a block differ
    # in id, and no concatenation, which a compiler would inline four times over.
    place = torch.arange(elements, device=seed.device)
    lane = place % 4
    w0, w1, w2, w3 = _words(key, word, place // 4, stage)
    first, second = box_muller(torch.where(lane < 2, w0, w2), torch.where(lane < 2, w1, w3))
    return torch.where(lane % 2 == 0, first, second)


def _words(
    key: tuple[Tensor, Tensor], word: Tensor, block: Tensor, stage: int | Tensor
) -> tuple[Tensor, ...]:
    zero = torch.zeros_like(block) + torch.zeros_like(key[0])
    return philox(((block & MASK32) + zero, (block >> 32) + zero, word + zero, zero + stage), key)


def _blocks(
    key: tuple[Tensor, Tensor], word: Tensor, block: Tensor, stage: int | Tensor = 0
) -> tuple[Tensor, ...]:
    """The four normals of every block."""
    w0, w1, w2, w3 = _words(key, word, block, stage)
    return *box_muller(w0, w1), *box_muller(w2, w3)


def _by_kernel(seed: Tensor, noise_id: Tensor, elements: int, stage: int | Tensor) -> Tensor:
    """normal(...) on the host, by the kernel that fills a start there where samples have one id."""
    if noise_id.dim() != 1 or len(set(noise_id.tolist())) != 1:
        return normal(seed, noise_id, elements, stage)
    out = torch.empty(len(seed), elements)
    stage = stage if isinstance(stage, Tensor) else torch.full_like(seed, stage)
    filling(out.dtype).module.fill(out, seed, int(noise_id[0]), stage.int())
    return out


def fill(out: Tensor, seed: Tensor, noise_id: int, stage: Tensor | None = None) -> None:
    """out[b] = normal(seed[b], noise_id), in place; out [B, ...] of the state dtype."""
    ids = torch.full_like(seed, noise_id)
    elements = out[0].numel() if out.shape[0] else 0
    n = normal(seed, ids, elements, 0 if stage is None else stage)
    out.copy_(n.view(out.shape))
