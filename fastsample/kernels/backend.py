"""Which backend runs a kernel: chosen once for each (kernel, device, dtype), with a reason that
`fastsample doctor` prints.

A backend is a module or folder of this one, named in BACKENDS, with

    covers(kernel, device, dtype)    None, or in words why it cannot run that kernel there
    bind(pool) -> launch             the step on a pool's memory (`fastsample.runtime.pool.Pool`)
    moments, cost_matrix, cost_gather, fill        plain functions, as `reference` has them

launch(row, f=(), noise=(), x_in=None, x_out=None) runs table row `row` for every sample, or with
None the pool's own row vector. f: up to G outputs [B,*] (None: no such branch); noise: L draws
[B,*] (None: Philox's); x_in, x_out [B,*]: where the state is read and written in place of the
pool's. It runs on the current stream, allocates nothing, checks nothing and waits for nothing.
Optional, together: launch.take(row, f) and launch.carry(row, f, x_in, x_out) look at their tensors
first and answer False, nothing done, for any that do not fit the pool; f holds all branches,
[G*B,*]; launch.lies(x) says whether x could be x_in. And launch.use(table): go by this table of the
same layout, which the pool now has. A launch with `use` holds addresses and no tensor, and reads
the table as it runs: it serves whatever lies there.
Optional in a backend: WISHED, types of device on which it runs only where it is asked for.

A wish, by argument or by FASTSAMPLE_BACKEND, is granted or refused; nothing is replaced silently.
"""

from __future__ import annotations

import os
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

BACKENDS = ["native", "triton", "reference"]  # best first; the last covers everything
KERNELS = ("step", "moments", "cost_matrix", "cost_gather")
STATES = (torch.float32, torch.float64)
VARIABLE = "FASTSAMPLE_BACKEND"
_chosen: dict[tuple, Choice] = {}
_lock = Lock()


class Choice(NamedTuple):
    """A backend: its name, why it was taken, and its module."""

    name: str
    reason: str
    module: ModuleType


def select(
    kernel: str, device: torch.device | str, dtype: torch.dtype, wish: str | None = None
) -> Choice:
    """The backend of a kernel, one of KERNELS, for tensors of `dtype` on `device`; the noise a run
    starts from is filled by the backend of its step. `wish` is a name of BACKENDS, or None for
    FASTSAMPLE_BACKEND, or else the best.

    Raises ValueError for an unknown name, RuntimeError for a wished backend that cannot run here.
    """
    key = (kernel, torch.device(device).type, dtype, wish)
    choice = _chosen.get(key)
    if choice is None:
        with _lock:
            choice = _chosen.setdefault(key, _choose(*key))
    return choice


def filling(dtype: torch.dtype) -> Choice:
    """The backend that fills noise on the host, for a device that gets it as a copy, or for a part
    of it. A wish by FASTSAMPLE_BACKEND that does not run on the host is one for the device, and the
    best of the others fills here: the bits are the same.
    """
    host, wish = torch.device("cpu"), os.environ.get(VARIABLE)
    covers = lambda name: _module(name).covers("step", host, dtype) is None
    if wish not in BACKENDS or covers(wish):
        return select("step", host, dtype)
    unasked = [name for name in BACKENDS if "cpu" not in getattr(_module(name), "WISHED", ())]
    return select("step", host, dtype, next(filter(covers, unasked)))


def chosen() -> dict[tuple, Choice]:
    """Every choice made so far: (kernel, device, dtype, wish) -> Choice."""
    return dict(_chosen)


def _choose(kernel: str, device: str, dtype: torch.dtype, wish: str | None) -> Choice:
    source = "argument"
    if wish is None and os.environ.get(VARIABLE):
        wish, source = os.environ[VARIABLE], VARIABLE
    if wish not in (None, *BACKENDS):
        raise ValueError(
            f"select: backend {wish!r} (from {source}) is unknown; accepted are "
            f"{', '.join(BACKENDS)}"
        )
    refused, asked = [], [f"asked for (from {source})"] if wish else []
    for name in BACKENDS if wish is None else [wish]:
        module = _module(name)
        refusal = module.covers(kernel, torch.device(device), dtype)
        if refusal is None and wish is None and device in getattr(module, "WISHED", ()):
            refusal = f"runs on {device} only where asked for"
        if refusal is None:
            here = f"covers {device}/{str(dtype).removeprefix('torch.')}"
            return Choice(name, ", ".join([*(refused or [here]), *asked]), module)
        refused.append(f"{name}: {refusal}")
    raise RuntimeError(
        f"select: backend {wish} was asked for (from {source}) and cannot be used: {refusal}; "
        f"{BACKENDS[-1]} always can"
    )


def _module(name: str) -> ModuleType:
    return import_module(f".{name}", __package__)


def bound(choice: Choice, pool):
    """The backend's launch over the pool, with take, carry and lies."""
    launch = choice.module.bind(pool)
    return launch if hasattr(launch, "take") else Looking(pool, launch)


class Looking:
    """A launch with take, carry and lies where the backend has none: Python looks at tensors."""

    def __init__(self, pool, launch):
        self._launch, self._G = launch, pool.table.layout.G
        self._strides, self._device = pool.x.stride(), pool.x.device
        self._f = torch.Size((self._G * pool.batch, *pool.x.shape[1:])), pool.model_dtype
        self._x = pool.x.shape, pool.x.dtype
        if hasattr(launch, "use"):
            self.use = launch.use

    def __call__(self, row, f=(), noise=(), x_in=None, x_out=None) -> None:
        self._launch(row, f, noise, x_in, x_out)

    def take(self, row: int, f: Tensor) -> bool:
        return f is not None and self.carry(row, f, None, None)

    def carry(self, row: int, f: Tensor | None, x_in: Tensor | None, x_out: Tensor | None) -> bool:
        for tensor, like in ((f, self._f), (x_in, self._x), (x_out, self._x)):
            if tensor is not None and not self._fits(tensor, *like):
                return False
        outputs = () if f is None else (f,) if self._G == 1 else f.unflatten(0, (self._G, -1))
        self._launch(row, outputs, (), x_in, x_out)
        return True

    def lies(self, x: Tensor) -> bool:
        return self._fits(x, *self._x)

    def _fits(self, tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> bool:
        return (
            tensor.__class__ is Tensor
            and tensor.shape == shape
            and tensor.dtype is dtype
            and tensor.device == self._device
            and alike(tensor, self._strides)
        )


def alike(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Has it these strides, axes of length 1 apart, which lie anywhere, as does what is empty?"""
    own = tensor.stride()
    if own == strides or tensor.numel() == 0:
        return True
    return all(n == 1 or a == b for n, a, b in zip(tensor.shape, own, strides, strict=True))
