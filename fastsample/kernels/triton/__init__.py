"""The kernels in Triton, for GPUs on which the native ones were not built, and for ROCm: equal to
`reference` bit for bit in float32 for the step, its noise, the moments and the gather.

Under TRITON_INTERPRET=1, set before Python starts, Triton's interpreter runs them on the CPU: for
tests, and only where asked for.
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec

import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WISHED = ("cpu",)  # there it is slower than anything else
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FILES = {
    "bind": "step",
    "fill": "noise",
    "moments": "moments",
    "cost_matrix": "cost_matrix",
    "cost_gather": "cost_matrix",
}


def covers(kernel: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in ("cuda", "cpu"):
        return f"written for CUDA and ROCm, tensors are on {device.type}"
    if device.type == "cpu" and not INTERPRETED:
        return "interpreted on the CPU, and only under TRITON_INTERPRET=1"
    if find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return None if dtype in DTYPES else f"no kernels for {dtype}"


def __getattr__(name: str):
    """The function of this name, from the file that has it: triton is loaded with the first."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function = getattr(import_module(f".{_FILES[name]}", __name__), name)
    globals()[name] = function
    return function
