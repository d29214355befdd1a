"""Costs of jumps between the points of a recorded run, and the jumps picked from them.

    C[b,i,j] = mean_d |sum_r U_r[b,i,d] c_r[i,j] - X[b,j,d]|^p
               for band[i,0] <= j < band[i,1], +inf elsewhere

Source i jumps to target j by weights c_r[i,j] of its vectors U_r (state, predictions); X holds the
targets. Differences in float32 (float64 for float64 inputs), partial sums in float64: a float32
Gram matrix would lose the near-ties that decide a schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference, transforms
from .backend import select
from .ops import register

_matrix = register(
    "cost_matrix",
    "(Tensor[] U, Tensor c, Tensor X, Tensor band, float p, str? backend) -> Tensor",
    lambda U, c, X, band, p, backend: select(
        "cost_matrix", X.device, X.dtype, backend
    ).module.cost_matrix(U, c, X, band, p),
    lambda U, c, X, band, p, backend: X.new_empty(
        X.shape[0], c.shape[1], X.shape[1], dtype=torch.float64
    ),
    lambda U, c, X, band, p, backend: reference.cost_matrix(U, c, X, band, p),
)
_gather = register(
    "cost_gather",
    "(Tensor[] U, Tensor c, Tensor i_star, str? backend) -> Tensor",
    lambda U, c, i_star, backend: select(
        "cost_gather", c.device, U[0].dtype, backend
    ).module.cost_gather(U, c, i_star),
    lambda U, c, i_star, backend: U[0].new_empty(U[0].shape[0], c.shape[2], U[0].shape[2]),
    lambda U, c, i_star, backend: reference.cost_gather(U, c, i_star),
)


def _check(where: str, U: Sequence[Tensor], c: Tensor) -> None:
    if not U or any(
        u.dim() != 3 or u.shape != U[0].shape or u.dtype != U[0].dtype or not u.is_floating_point()
        for u in U
    ):
        raise ValueError(
            f"{where}: U is {[list(u.shape) for u in U]}; 1 to 4 tensors [B,I,D] of one shape and "
            "float dtype are needed"
        )
    if c.dim() != 3 or c.shape[:2] != (len(U), U[0].shape[1]) or len(U) > 4:
        raise ValueError(
            f"{where}: c has shape {list(c.shape)} for {len(U)} tensors U of {list(U[0].shape)}; "
            "[len(U), I, J] with at most 4 is needed"
        )


def cost_matrix(
    U: Sequence[Tensor],
    c: Tensor,
    X: Tensor,
    band: Tensor | None = None,
    p: float = 2.0,
    *,
    backend: str | None = None,
) -> Tensor:
    """C [B,I,J] float64 of U: 1..4 tensors [B,I,D], c [len(U),I,J], X [B,J,D], band [I,2] (None:
    every j) and p > 0. Differentiable.
    """
    _check("cost_matrix", U, c)
    if (
        X.dim() != 3
        or X.shape != (U[0].shape[0], c.shape[2], U[0].shape[2])
        or X.dtype != U[0].dtype
    ):
        raise ValueError(
            f"cost_matrix: X is {list(X.shape)} {X.dtype}; "
            f"{[U[0].shape[0], c.shape[2], U[0].shape[2]]} {U[0].dtype} is needed"
        )
    if not p > 0:
        raise ValueError(f"cost_matrix: p = {p}; a power above 0 is accepted")
    if band is None:
        band = torch.tensor([[0, c.shape[2]]], dtype=torch.int32, device=X.device).expand(
            c.shape[1], 2
        )
    if band.shape != (c.shape[1], 2):
        raise ValueError(
            f"cost_matrix: band has shape {list(band.shape)}; [{c.shape[1]}, 2] is needed"
        )
    return _matrix(list(U), c.double(), X, band, float(p), backend)


def cost_gather(
    U: Sequence[Tensor], c: Tensor, i_star: Tensor, *, backend: str | None = None
) -> Tensor:
    """Z[b,j] = sum_r U_r[b,i] c_r[i,j] with i = i_star[j]: the state each target would get from its
    source -> [B,J,D]; NaN where i_star is -1.

    i_star [J] or [B,J] integers, -1 <= i_star < I (ValueError beyond).
    """
    _check("cost_gather", U, c)
    if i_star.shape not in ((c.shape[2],), (U[0].shape[0], c.shape[2])):
        raise ValueError(
            f"cost_gather: i_star has shape {list(i_star.shape)}; [{c.shape[2]}] or "
            f"[{U[0].shape[0]}, {c.shape[2]}] is needed"
        )
    known = (
        i_star.numel() and not torch.compiler.is_compiling() and transforms.active(i_star) is None
    )
    if known and not -1 <= int(i_star.min()) <= int(i_star.max()) < c.shape[1]:
        raise ValueError(
            f"cost_gather: i_star spans {int(i_star.min())}..{int(i_star.max())}; -1 to "
            f"{c.shape[1] - 1} is accepted"
        )
    return _gather(list(U), c.double(), i_star, backend)


def argmin_source(C: Tensor) -> Tensor:
    """i_star[.., j] = the source of smallest cost C[.., i, j]; ties go to the highest i, a column
    of +inf (or NaN) to -1. int32.
    """
    cost = torch.where(C.isnan(), torch.inf, C)
    last = (
        cost.shape[-2] - 1 - cost.flip(-2).argmin(-2)
    )  # argmin takes the first of equals: look from the highest i down
    return torch.where(torch.isinf(cost.amin(-2)), -1, last).int()
