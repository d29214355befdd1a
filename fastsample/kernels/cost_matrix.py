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
from .narrow import hosted
from .ops import one_device, register

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


def _check(where: str, U: Sequence[Tensor], c: Tensor, *others: Tensor) -> None:
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
    one_device(where, *U, c, *others)


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
    every j) and p > 0; on the host where their device has no float64. Differentiable.
    """
    _check("cost_matrix", U, c, X, *(() if band is None else (band,)))
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
        band = torch.zeros(c.shape[1], 2, dtype=torch.int32, device=X.device)
        band[:, 1] = c.shape[2]
    if band.shape != (c.shape[1], 2):
        raise ValueError(
            f"cost_matrix: band has shape {list(band.shape)}; [{c.shape[1]}, 2] is needed"
        )
    U, c, X, band = hosted((list(U), c, X, band))
    return _matrix(U, c.double(), X, band, float(p), backend)


def cost_gather(
    U: Sequence[Tensor], c: Tensor, i_star: Tensor, *, backend: str | None = None
) -> Tensor:
    """Z[b,j] = sum_r U_r[b,i] c_r[i,j] with i = i_star[j]: the state each target would get from its
    source -> [B,J,D]; NaN where i_star is -1.

    i_star [J] or [B,J] integers, -1 <= i_star < I. Beyond: ValueError on the CPU, NaN on a device,
    which is not waited for.
    """
    _check("cost_gather", U, c, i_star)
    if i_star.shape not in ((c.shape[2],), (U[0].shape[0], c.shape[2])):
        raise ValueError(
            f"cost_gather: i_star has shape {list(i_star.shape)}; [{c.shape[2]}] or "
            f"[{U[0].shape[0]}, {c.shape[2]}] is needed"
        )
    here = i_star.numel() and i_star.device.type == "cpu"
    known = here and not torch.compiler.is_compiling() and transforms.active(i_star) is None
    if known and not -1 <= int(i_star.min()) <= int(i_star.max()) < c.shape[1]:
        raise ValueError(
            f"cost_gather: i_star spans {int(i_star.min())}..{int(i_star.max())}; -1 to "
            f"{c.shape[1] - 1} is accepted"
        )
    there, (U, c, i_star) = c.device, hosted((list(U), c, i_star))
    return _gather(U, c.double(), i_star, backend).to(there)


def argmin_source(C: Tensor) -> Tensor:
    """i_star[.., j] = the source of smallest cost C[.., i, j]; ties go to the highest i, a column
    of +inf (or NaN) to -1. int32.

    By torch and not in the kernel, whose argmin would be each sample's own, where a search takes
    that of the samples' mean: the mean and it are 8 of the 26 launches of a search's layer beside
    the model's, over 8 B I J bytes where the costs read R B I D numbers.
    """
    last = C.shape[-2] - 1
    # argmin takes the first of equals: look from the highest i down
    cost, at = torch.nan_to_num(C, torch.inf, torch.inf).flip(-2).min(-2)
    return (last - at).masked_fill_(cost == torch.inf, -1).int()
