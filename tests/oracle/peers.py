"""Other libraries' samplers, run wholly in float64 and probed with basis vectors.

Superposition: a scheduler step is linear in the state, the model outputs and the noises. With e_0
as the start, e_1, e_2, .. as model outputs and the next basis vectors as noises, every state of the
foreign run is its own row of coefficients, to be held against the same run of a Plan.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np


class _Instead:
    """A module with some attributes replaced: `float32` reads as float64, noise comes from the
    probe.
    """

    def __init__(self, module: object, **changes: object):
        self.__dict__.update(changes, _module=module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._module, name)


@dataclass
class Trace:
    """A probed run: states [calls+1, D] (before each model call, then the end) and where the model
    was asked.
    """

    states: list[np.ndarray] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)


class Basis:
    """Hands out basis vectors of R^size: start 0, model outputs 1..calls, then noises."""

    def __init__(self, calls: int, draws: int):
        self.calls, self.size = calls, 1 + calls + draws
        self.outputs = self.noises = 0

    def vector(self, k: int) -> np.ndarray:
        out = np.zeros(self.size)
        out[k] = 1.0
        return out

    def output(self) -> np.ndarray:
        self.outputs += 1
        return self.vector(self.outputs)

    def noise(self, *levels) -> np.ndarray:
        self.noises += 1
        return self.vector(self.calls + self.noises)


class Brownian(Basis):
    """Noises as normalised increments between two levels of a path whose variance grows with them:
    of two from one level, the longer is made up of the shorter and of what comes after.
    """

    begun: tuple = ()

    def noise(self, *levels) -> np.ndarray:
        start, end = map(float, levels)
        if not self.begun or self.begun[0] != start:
            self.begun = (start, end, super().noise())
            return self.begun[2]
        share = (start - self.begun[1]) / (start - end)
        return np.sqrt(share) * self.begun[2] + np.sqrt(1 - share) * super().noise()


def scheduler(module: str, name: str, **config) -> object:
    """A diffusers scheduler built in float64 (its module keeps reading float64 while `probe` runs
    it).
    """
    code = importlib.import_module(f"diffusers.schedulers.scheduling_{module}")
    with _replaced(code, **_in_double()):
        return getattr(code, name)(**config)


def _in_double() -> dict:
    """torch and numpy whose float32 is float64."""
    import torch

    return {"torch": _Instead(torch, float32=torch.float64), "np": _Instead(np, float32=np.float64)}


@contextlib.contextmanager
def _replaced(module: object, **changes: object) -> Iterator[None]:
    """The module with some of its names replaced and torch's default dtype float64."""
    import torch

    old = {k: getattr(module, k) for k in changes if hasattr(module, k)}
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    for k in old:
        setattr(module, k, changes[k])
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        for k, v in old.items():
            setattr(module, k, v)


def probe(
    peer: object, steps: int, draws: int = 0, basis: type[Basis] = Basis, **settings
) -> tuple[Trace, Basis]:
    """Drive a diffusers scheduler with basis vectors; its start is e_0 as it stands (no
    init_noise_sigma). basis: how its noises hang together.
    """
    import torch

    code = sys.modules[type(peer).set_timesteps.__module__]
    tensor = lambda v: torch.from_numpy(v)[None]
    noise = lambda *a, **k: tensor(vectors.noise())
    path = lambda *a, **k: lambda *levels: tensor(vectors.noise(*levels))
    changes = {"randn_tensor": noise, "BrownianTreeNoiseSampler": path}
    with _replaced(code, **changes, **_in_double()):
        peer.set_timesteps(steps, **settings)
        vectors, trace = basis(len(peer.timesteps), draws), Trace()
        x = tensor(vectors.vector(0))
        for t in peer.timesteps:
            if hasattr(type(peer), "scale_model_input"):  # some count their steps here
                peer.scale_model_input(x, t)
            trace.states.append(x[0].numpy().copy())
            trace.asked.append(float(t))
            x = peer.step(tensor(vectors.output()), t, x)[0]
        trace.states.append(x[0].numpy().copy())
    return trace, vectors


def k_diffusion() -> object:
    """k-diffusion's sampling module, without torchvision and what else its package imports."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    found = importlib.util.find_spec("k_diffusion")
    parts = ("", ".transforms", ".transforms.functional", ".utils")
    stubs = [f"torchvision{part}" for part in parts]
    kept = {n: sys.modules[n] for n in stubs if n in sys.modules}
    for n in stubs:
        sys.modules[n] = types.ModuleType(n)
    for n in stubs[1:]:
        parent, _, child = n.rpartition(".")
        setattr(sys.modules[parent], child, sys.modules[n])
    package = types.ModuleType("k_diffusion")
    package.__path__, package.__spec__ = list(found.submodule_search_locations), found
    sys.modules["k_diffusion"] = package  # its own __init__ would import everything
    try:
        for n in ("utils", "sampling"):
            setattr(package, n, importlib.import_module(f"k_diffusion.{n}"))
    finally:
        for n in stubs:
            del sys.modules[n]
        sys.modules.update(kept)
    return package.sampling


def probe_k(
    name: str,
    sigmas: np.ndarray,
    calls: int,
    draws: int = 0,
    basis: type[Basis] = Basis,
    **options,
) -> tuple[Trace, Basis]:
    """Drive k_diffusion.sampling.sample_<name> with denoised outputs e_1, e_2, ..; start e_0, noise
    injected, which hangs together as `basis` says.
    """
    import torch

    code = k_diffusion()
    vectors, trace = basis(calls, draws), Trace()
    tensor = lambda v: torch.from_numpy(v)[None]

    def model(x, sigma):
        trace.states.append(x[0].numpy().copy())
        trace.asked.append(float(sigma[0]))
        return tensor(vectors.output())

    sample: Callable = getattr(code, f"sample_{name}")
    if "noise_sampler" in inspect.signature(sample).parameters:
        options["noise_sampler"] = lambda *levels: tensor(vectors.noise(*levels))
    # euler and heun draw even when they add none
    draw = (lambda x: tensor(vectors.noise())) if options.get("s_churn") else torch.zeros_like
    levels = torch.from_numpy(np.asarray(sigmas, float))
    with _replaced(code, torch=_Instead(torch, randn_like=draw)):
        end = sample(model, tensor(vectors.vector(0)), levels, disable=True, **options)
    trace.states.append(end[0].numpy().copy())
    return trace, vectors
