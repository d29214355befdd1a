"""Dot products and peaks of a few tensors, per sample, by one fixed tree of additions.

    dots[b,p,q] = sum_e a_p[b,e] b_q[b,e]        max_abs[b,p] = max_e |a_p[b,e]|

Everything in float64. A sample is padded with zeros to a multiple of 1024. A chunk of 1024 is 64
steps of 16 lanes (lane = e mod 16); each lane is summed in order; lanes are halved 16, 8, 4, 2, 1
(lower + upper half); the chunk sums, padded with zeros to a power of two, are halved the same way.
So a sample's result does not depend on the batch around it, on threads or on the backend. NaN in
a_p gives max_abs NaN; no elements give 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import reference
from .backend import select
from .narrow import hosted
from .ops import one_device, register

MOST_A, MOST_B = 5, 24


def _fake(a, b, backend):
    batch = a[0].shape[0]
    return a[0].new_empty(batch, len(a), len(b), dtype=torch.float64), a[0].new_empty(
        batch, len(a), dtype=torch.float64
    )


_run = register(
    "moments",
    "(Tensor[] a, Tensor[] b, str? backend) -> (Tensor, Tensor)",
    lambda a, b, backend: select("moments", a[0].device, a[0].dtype, backend).module.moments(a, b),
    _fake,
    lambda a, b, backend: reference.moments(a, b),
)


def moments(
    a: Sequence[Tensor], b: Sequence[Tensor] = (), *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """(dots [B,P,Q], max_abs [B,P]) float64 of a: P = 1..5 and b: Q = 0..24 tensors [B, *] of one
    shape, any float dtype; on the host where their device has no float64. Differentiable.
    """
    if not 1 <= len(a) <= MOST_A or len(b) > MOST_B:
        raise ValueError(
            f"moments: {len(a)} x {len(b)} tensors; 1 to {MOST_A} by 0 to {MOST_B} are accepted"
        )
    if any(t.shape != a[0].shape or not t.is_floating_point() for t in (*a, *b)) or a[0].dim() < 1:
        raise ValueError(
            f"moments: tensors are {[list(t.shape) for t in (*a, *b)]}; one shape [B, *] and float "
            "dtypes are accepted"
        )
    one_device("moments", *a, *b)
    return _run(*hosted((list(a), list(b))), backend)
