"""Dot products and peaks by the tree of `fastsample.kernels.moments`, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK, LANES = 1024, 16


def moments(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """dots[b,p,q] = sum_e a_p[b,e] b_q[b,e] and max_abs[b,p] = max_e |a_p[b,e]| in float64, by the
    fixed tree of `fastsample.kernels.moments`.
    """
    batch = a[0].shape[0]
    flat = [
        [v.reshape(batch, v[0].numel() if batch else 0).double() for v in group] for group in (a, b)
    ]
    dots = [[_tree_sum(p * q) for q in flat[1]] for p in flat[0]]
    peaks = [p.abs().amax(1) if p.shape[1] else p.new_zeros(batch) for p in flat[0]]
    none = flat[0][0].new_zeros(batch, 0)
    return torch.stack([torch.stack(row, 1) if row else none for row in dots], 1), torch.stack(
        peaks, 1
    )


def _tree_sum(terms: Tensor) -> Tensor:
    """Sum [B] of terms [B, N]: chunks of 1024 = 64 steps x 16 lanes; lanes summed in order, then
    halved; chunk sums halved as a power of two.
    """
    chunks = -(-terms.shape[1] // CHUNK) or 1
    terms = torch.nn.functional.pad(terms, (0, chunks * CHUNK - terms.shape[1]))
    steps = terms.view(terms.shape[0], chunks, CHUNK // LANES, LANES).unbind(2)
    total = steps[0]  # a sum starts at its first term: -0 stays -0
    for term in steps[1:]:
        total = total + term
    total = _halved(total)
    return _halved(torch.nn.functional.pad(total, (0, (1 << (chunks - 1).bit_length()) - chunks)))


def _halved(total: Tensor) -> Tensor:
    """Sum over the last dimension, a power of two: lower half + upper half until one is left."""
    while total.shape[-1] > 1:
        total = total[..., : total.shape[-1] // 2] + total[..., total.shape[-1] // 2 :]
    return total[..., 0]
