"""Which backend runs the kernels: chosen once for each (device, dtype), with a reason that
`fastsample doctor` prints.

native     C++ on the CPU, for float32 and float64 states; any of the four model dtypes
reference  plain torch: every device and dtype, and every machine
A wish, by argument or by FASTSAMPLE_BACKEND, is granted or refused; nothing is replaced silently.
"""

from __future__ import annotations

import os
from threading import Lock
from types import ModuleType
from typing import NamedTuple

import torch

from . import native, reference

STATES = (torch.float32, torch.float64)
BACKENDS = ("native", "reference")
VARIABLE = "FASTSAMPLE_BACKEND"
_chosen: dict[tuple, Choice] = {}
_lock = Lock()


class Choice(NamedTuple):
    """A backend: its name, why it was taken, and the module with its `step`, `moments`,
    `cost_matrix`, `cost_gather` and `fill`.
    """

    name: str
    reason: str
    module: ModuleType


def select(device: torch.device | str, dtype: torch.dtype, wish: str | None = None) -> Choice:
    """The backend for tensors of `dtype` on `device`; `wish` is a name of BACKENDS, or None for
    FASTSAMPLE_BACKEND, or else the best.

    Raises ValueError for an unknown name, RuntimeError for a wished backend that cannot run here.
    """
    key = (torch.device(device).type, dtype, wish)
    choice = _chosen.get(key)
    if choice is None:
        with _lock:
            choice = _chosen.setdefault(key, _choose(*key))
    return choice


def chosen() -> dict[tuple, Choice]:
    """Every choice made so far: (device, dtype, wish) -> Choice."""
    return dict(_chosen)


def _choose(device: str, dtype: torch.dtype, wish: str | None) -> Choice:
    source = "argument"
    if wish is None and os.environ.get(VARIABLE):
        wish, source = os.environ[VARIABLE], VARIABLE
    if wish not in (None, *BACKENDS):
        raise ValueError(
            f"select: backend {wish!r} (from {source}) is unknown; accepted are "
            f"{', '.join(BACKENDS)}"
        )
    refusal = _native_refusal(device, dtype)
    if wish == "native" and refusal:
        raise RuntimeError(
            f"select: backend native was asked for (from {source}) and cannot be used: {refusal}; "
            "reference always can"
        )
    if wish == "reference":
        return Choice("reference", f"asked for (from {source})", reference)
    if refusal:
        return Choice("reference", f"native: {refusal}", reference)
    return Choice(
        "native",
        f"covers {device}/{str(dtype).removeprefix('torch.')}"
        + (f", asked for (from {source})" if wish else ""),
        native,
    )


def _native_refusal(device: str, dtype: torch.dtype) -> str | None:
    if native.MISSING:
        return native.MISSING
    if device != "cpu":
        return f"built for the CPU, tensors are on {device}"
    if dtype not in native.DTYPES:
        return f"no kernels for {dtype}"
    return None
