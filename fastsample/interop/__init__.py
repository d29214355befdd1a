"""fastsample in other people's loops: FsScheduler for diffusers' pipelines, k_sample for
k-diffusion's users, each a Run at heart, with k_model, k_sigmas, k_scale, k_state and k_remake
around it; onnx for networks in ONNX files. Modules of their own: `fastsample.interop.lerobot`
for LeRobot's flow policies, `fastsample.interop.mflux` and `fastsample.interop.sglang`, whose
classes those hosts load by name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .diffusers import FsScheduler
    from .k_diffusion import k_sample
    from .k_levels import k_model, k_remake, k_scale, k_sigmas, k_state
    from .onnx_session import onnx

_FILES = {"FsScheduler": "diffusers", "k_sample": "k_diffusion", "onnx": "onnx_session"}
_FILES |= dict.fromkeys(("k_model", "k_remake", "k_scale", "k_sigmas", "k_state"), "k_levels")
_MODULES = "diffusers", "k_diffusion", "lerobot", "mflux"
__all__ = [
    "FsScheduler",
    "k_model",
    "k_remake",
    "k_sample",
    "k_scale",
    "k_sigmas",
    "k_state",
    "onnx",
]


def __getattr__(name: str) -> object:
    """Names load on first use: FsScheduler needs diffusers, onnx onnxruntime, no other either."""
    if name in _FILES:
        return getattr(importlib.import_module(f".{_FILES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(
        f"module 'fastsample.interop' has no attribute {name!r}; its names are {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
