"""Devices that have no float64, as Apple's and some of Intel's: a run's rows are float32 there, and
what needs float64 is done on the host, by its own kernels: noise, which has the same bits and is
copied, `moments` and `cost_matrix`, whose figures stay on the host, and all of a search but the
calls of its model.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

HAVE = ("cpu", "cuda", "meta")


def has_float64(device: torch.device) -> bool:
    """Can a tensor there be float64? Tried once for each type of device."""
    return device.type in HAVE or _tried(device.type)


def wide(x: Tensor) -> Tensor:
    """x as float64, on the host where its device has none."""
    return _here(x).double()


def hosted(tree: Any) -> Any:
    """The tree, its tensors on the host where their device has no float64."""
    return pytree.tree_map_only(Tensor, _here, tree)


def _here(x: Tensor) -> Tensor:
    return x if has_float64(x.device) else x.cpu()


@cache
def _tried(kind: str) -> bool:
    try:
        torch.ones(1, dtype=torch.float64, device=kind).add(1)
    except (TypeError, RuntimeError):
        return False
    return True
