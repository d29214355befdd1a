"""Costs of jumps and the jumps chosen, of `fastsample.kernels.cost_matrix`, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cost_matrix(U: Sequence[Tensor], c: Tensor, X: Tensor, band: Tensor, p: float = 2.0) -> Tensor:
    """C[b,i,j] = mean_d |sum_r U_r[b,i,d] c_r[i,j] - X[b,j,d]|^p for band[i,0] <= j < band[i,1],
    else +inf; float64 from float32 differences.
    """
    wide = torch.promote_types(X.dtype, torch.float32)
    U, X, factor, rows = [u.to(wide) for u in U], X.to(wide), c.to(wide), []
    for i in range(c.shape[1]):  # one source at a time: [B, J, D] is held, never [B, I, J, D]
        jump = U[0][:, i, None, :] * factor[0, i, :, None]
        for r in range(1, len(U)):
            jump = jump + U[r][:, i, None, :] * factor[r, i, :, None]
        gap = (jump - X).double().abs()
        rows.append((gap * gap if p == 2 else gap if p == 1 else gap**p).mean(-1))
    j = torch.arange(X.shape[1], device=X.device)
    inside = (j >= band[:, :1]) & (j < band[:, 1:])
    return torch.where(inside, torch.stack(rows, 1), torch.inf)


def cost_gather(U: Sequence[Tensor], c: Tensor, i_star: Tensor) -> Tensor:
    """Z[b,j] = sum_r U_r[b,i] c_r[i,j] with i = i_star[j] or i_star[b,j]; NaN where i is none."""
    batch, targets = U[0].shape[0], c.shape[2]
    i = i_star.long().expand(batch, targets)
    there = (i >= 0) & (i < c.shape[1])
    safe = torch.where(there, i, 0)
    wide = torch.promote_types(U[0].dtype, torch.float32)
    factor = c.to(wide)[:, safe, torch.arange(targets, device=c.device)]  # [R, B, J]
    pick = safe[:, :, None].expand(batch, targets, U[0].shape[2])
    total = U[0].gather(1, pick).to(wide) * factor[0, :, :, None]
    for r in range(1, len(U)):
        total = total + U[r].gather(1, pick).to(wide) * factor[r, :, :, None]
    return torch.where(there[:, :, None], total, torch.nan).to(U[0].dtype)
