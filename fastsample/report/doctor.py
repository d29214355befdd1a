"""The state of an installation."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from itertools import product
from pathlib import Path

# What of each extra `doctor` looks for.
EXTRAS = {
    "demo": ("matplotlib", "safetensors", "tqdm"),
    "optimize": ("scipy",),
    "serve": ("prometheus_client", "ray", "pillow"),
    "brownian": ("torchsde",),
    "onnx": ("onnxruntime",),
    "diffusers": ("diffusers",),
}


def doctor() -> list[tuple[str, str]]:
    """What is installed, which backend runs where and why, and the command that supplies what is
    missing: [(what, finding)].
    """
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    lines = [("python", f"{platform.python_version()} on {machine}")]
    lines.append(("fastsample", _own()))
    names = ("numpy", "torch", "k-diffusion")
    lines += [(name, _version(name) or f"missing; pip install {name}") for name in names]
    for extra, names in EXTRAS.items():
        remedy = f"missing, for the extra {extra}; pip install 'fastsample[{extra}]'"
        lines += [(name, _version(name) or remedy) for name in names]
    if _version("torch"):
        lines += _backends()
    return lines


def _own() -> str:
    """The version of the copy that runs, and where it lies if another one is installed, or none."""
    from .. import __version__

    installed = _version("fastsample")
    if installed == __version__:
        return __version__
    beside = "none is installed" if installed is None else f"{installed} is installed beside it"
    return f"{__version__}, of {Path(__file__).parents[1]}; {beside}"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _backends() -> list[tuple[str, str]]:
    import torch

    from ..kernels import native
    from ..kernels.backend import KERNELS, STATES, select

    if native.MISSING:
        remedy = "make native in the source tree, or reinstall where a C++ compiler is"
        built = f"missing: {native.MISSING}; {remedy}"
    else:
        built = ", ".join(f"{k} {v}" for k, v in native._C.build_info().items())
    lines = [("threads", f"{torch.get_num_threads()} in torch"), ("native code", built)]
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for kernel, device, dtype in product(KERNELS, devices, STATES):
        choice = select(kernel, device, dtype)
        lines.append((f"{kernel}, {device}, {str(dtype)[6:]}", f"{choice.name} ({choice.reason})"))
    if len(devices) == 1:
        lines.append(("cuda", "no device that torch can use"))
    return lines
