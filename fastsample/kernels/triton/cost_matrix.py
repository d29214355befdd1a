"""Costs of jumps and the jumps chosen, of `fastsample.kernels.cost_matrix`.

Direct differences in float32 (float64 for float64); a lane sums at most PART / WIDTH = 64 squares
of them in that precision, all beyond in float64. One warp a program: a vector of a source then lies
in registers as the tile of targets does, and nothing passes through shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dtype import block_of, load, on, store

PART, WIDTH = tl.constexpr(8192), tl.constexpr(128)  # elements of a program, and of a tile
TARGETS = tl.constexpr(4)


@triton.jit
def power(gap, p: tl.constexpr):
    """|gap|^p: of p = 2 in its own precision, else in float64."""
    if p == 2.0:
        value = gap * gap
    else:
        value = tl.abs(gap.to(tl.float64))
        if p == 0.5:
            value = tl.sqrt(value)
        elif p != 1.0:
            value = tl.exp2(tl.log2(value) * p)
    return value


@triton.jit
def sources_of(U, c, b, first, j, I, J, D, like, R: tl.constexpr, SOURCES: tl.constexpr):  # noqa: E741
    """Where the elements of each source's vectors begin, and their weights for the targets j."""
    starts, weights = (), ()
    for i in tl.static_range(SOURCES):
        source = tl.minimum(first + i, I - 1).to(tl.int64)  # past the last: it again, not stored
        starts = starts + ((b * I + source) * D,)
        for r in tl.static_range(R):
            weights = weights + (tl.load(c + (r * I + source) * J + j).to(like)[:, None],)
    return starts, weights


@triton.jit
def in_band(band, first, j, I, J, SOURCES: tl.constexpr):  # noqa: E741
    """Is any pair of the tile in the band?"""
    wanted = False
    for i in tl.static_range(SOURCES):
        row = band + 2 * tl.minimum(first + i, I - 1)
        inside = (j >= tl.load(row)) & (j < tl.load(row + 1)) & (j < J)
        wanted = wanted | (tl.max(inside.to(tl.int32), 0) != 0)
    return wanted


@triton.jit
def cost_tiles(
    U, c, X, band, partial, I, J, D, parts, batch,  # noqa: E741
    R: tl.constexpr, p: tl.constexpr, SOURCES: tl.constexpr,
):  # fmt: skip
    """partial [parts,B,I,J] float64: sum_d |sum_r U_r c_r - X|^p over a part of the elements, where
    a tile has a pair in the band.
    """
    across, down = tl.cdiv(J, TARGETS), tl.cdiv(I, SOURCES)
    tile, rest = tl.program_id(0) % (across * down), tl.program_id(0) // (across * down)
    part, b = (rest % parts).to(tl.int64), (rest // parts).to(tl.int64)
    first, j = tile // across * SOURCES, tile % across * TARGETS + tl.arange(0, TARGETS)
    if in_band(band, first, j, I, J, SOURCES):
        like: tl.constexpr = tl.float64 if X.dtype.element_ty == tl.float64 else tl.float32
        column = tl.minimum(j, J - 1)
        starts, weights = sources_of(U, c, b, first, column, I, J, D, like, R, SOURCES)
        target = (b * J + column)[:, None] * D
        sums = ()
        for _ in tl.static_range(SOURCES):
            sums = sums + (tl.zeros((TARGETS, WIDTH), like if p == 2.0 else tl.float64),)
        for start in tl.range(part * PART, tl.minimum((part + 1) * PART, D), WIDTH):
            d = start + tl.arange(0, WIDTH)
            inside = d < D
            x, more = load(X, target + d[None, :], inside[None, :]), ()
            for i in tl.static_range(SOURCES):
                jump = load(U[0], starts[i] + d, inside)[None, :] * weights[i * R]
                for r in tl.static_range(1, R):
                    u = load(U[r], starts[i] + d, inside)
                    jump = jump + u[None, :] * weights[i * R + r]
                more = more + (sums[i] + power(jump - x, p),)
            sums = more
        for i in tl.static_range(SOURCES):
            at = ((part * batch + b) * I + first + i) * J
            total = tl.sum(sums[i].to(tl.float64), 1)
            tl.store(partial + at + j, total, (j < J) & (first + i < I))


@triton.jit
def cost_means(partial, band, out, I, J, D, parts, batch, BLOCK: tl.constexpr):  # noqa: E741
    """out [B,I,J]: the parts added in order, over D; +inf outside the band."""
    blocks = tl.cdiv(J, BLOCK)
    row, j = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK
    j = j + tl.arange(0, BLOCK)
    limits = band + 2 * (row % I)
    inside = (j >= tl.load(limits)) & (j < tl.load(limits + 1)) & (j < J)
    at = row * J + j
    total = tl.load(partial + at, inside, 0.0)
    whole = tl.full((), J, tl.int64) * I * batch
    for k in range(1, parts):
        total += tl.load(partial + whole * k + at, inside, 0.0)
    mean = total / tl.full((), D, tl.float64)
    tl.store(out + at, tl.where(inside, mean, float("inf")), j < J)


@triton.jit
def gather(
    U, c, i_star, out, I, J, D, stride, R: tl.constexpr, BLOCK: tl.constexpr  # noqa: E741
):  # fmt: skip
    """A block of out[b,j] = sum_r U_r[b,i] c_r[i,j], i = i_star[b,j]; NaN where i is -1."""
    blocks = tl.cdiv(D, BLOCK)
    row, first = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    b, j = row // J, row % J
    d = first.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    i = tl.load(i_star + b * stride + j).to(tl.int64)
    there = (i >= 0) & (i < I)  # a number from memory is not followed unseen
    i = tl.where(there, i, 0)
    like: tl.constexpr = tl.float64 if out.dtype.element_ty == tl.float64 else tl.float32
    source, inside = (b * I + i) * D, (d < D) & there
    total = load(U[0], source + d, inside) * tl.load(c + i * J + j).to(like)
    for r in tl.static_range(1, R):
        total = total + load(U[r], source + d, inside) * tl.load(c + (r * I + i) * J + j).to(like)
    store(out, row * D + d, tl.where(there, total, float("nan")), d < D)


def cost_matrix(U: Sequence[Tensor], c: Tensor, X: Tensor, band: Tensor, p: float = 2.0) -> Tensor:
    U, X = tuple(u.contiguous() for u in U), X.contiguous()
    c, band = c.double().contiguous(), band.int().contiguous()
    (batch, I, D), J = U[0].shape, X.shape[1]  # noqa: E741
    parts = max(triton.cdiv(D, PART.value), 1)
    # More sources a program fill the registers: float64 and three vectors take two each.
    sources = 4 if len(U) < 3 and p == 2 and X.dtype != torch.float64 else 2
    out = X.new_empty(batch, I, J, dtype=torch.float64)
    partial = X.new_empty(parts, batch, I, J, dtype=torch.float64)
    if not out.numel():
        return out
    tiles, block = triton.cdiv(I, sources) * triton.cdiv(J, TARGETS.value), block_of(J, 128)
    with on(X.device):
        # p is a constant of the kernel: as an argument it would be rounded to float32
        cost_tiles[(tiles * parts * batch,)](
            *(U, c, X, band, partial, I, J, D, parts, batch),
            **dict(R=len(U), p=float(p), SOURCES=sources, num_warps=1),
        )
        cost_means[(batch * I * triton.cdiv(J, block),)](
            *(partial, band, out, I, J, D, parts, batch), BLOCK=block, num_warps=1
        )
    return out


def cost_gather(U: Sequence[Tensor], c: Tensor, i_star: Tensor) -> Tensor:
    U, c, i_star = tuple(u.contiguous() for u in U), c.double().contiguous(), i_star.contiguous()
    (batch, I, D), J = U[0].shape, c.shape[2]  # noqa: E741
    out = U[0].new_empty(batch, J, D)
    block = block_of(D)
    if out.numel():
        with on(out.device):
            gather[(batch * J * triton.cdiv(D, block),)](
                *(U, c, i_star, out, I, J, D, J if i_star.dim() == 2 else 0),
                **dict(R=len(U), BLOCK=block, enable_fp_fusion=False),
            )
    return out
