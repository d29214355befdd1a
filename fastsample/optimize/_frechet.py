"""Fréchet distance between two sets of samples, of any dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """|m_a - m_b|² + tr C_a + tr C_b - 2 tr (C_a^½ C_b C_a^½)^½ over the samples of a [n,F] and
    b [k,F], n, k >= 2: the squared 2-Wasserstein distance of the Gaussians with their means and
    covariances (divided by n - 1). float64.

    The last trace is the sum of the singular values of A B', the centred samples: no matrix [F,F]
    is made. Biased upward for few samples; compare equal counts.
    """
    a, b = a.double().cpu(), b.double().cpu()
    left, right = ((v - v.mean(0)) / (len(v) - 1) ** 0.5 for v in (a, b))
    if a.shape[1] < min(len(a), len(b)):  # the same singular values, of triangles
        left, right = (torch.linalg.qr(v, "r").R for v in (left, right))
    cross = torch.linalg.svdvals(left @ right.T).sum()
    apart = (a.mean(0) - b.mean(0)).square().sum() + left.square().sum() + right.square().sum()
    return max(float(apart - 2 * cross), 0.0)  # of equal sets it may round below 0
