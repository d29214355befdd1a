"""The source class itself, asked for its own grid: what compat="diffusers" reproduces, and whether
it can be. Imports no diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...plan.given import numbers
from .calls import takes
from .grids import count, falling
from .options import instance, parameters
from .sources import BOUNDING, GRID_OF


def uncovered(source: type, settings: dict, table: Callable[[], object]) -> str | None:
    """Why no run of the class with these settings can be reproduced, in words; None where runs can.
    Some runs may still not be. table(): the noise schedule of the class, or a ValueError.
    """
    known = parameters(source).keys() | BOUNDING
    if not settings.keys() <= known:
        unknown = ", ".join(k for k in settings if k not in known)
        return f"FsScheduler: {source.__name__} itself has no {unknown}"
    try:
        table()
    except ValueError as error:
        return words(error)
    return None


def _array(sigmas: object) -> np.ndarray:
    """As the class would have them; what NumPy has no numbers of (bfloat16, a Parameter), too."""
    try:
        return np.array(sigmas)
    except (TypeError, RuntimeError):
        return numbers("FsScheduler.set_timesteps: sigmas", sigmas)


def set_peer(
    peer: object, settings: dict, steps, timesteps, sigmas, mu, original_inference_steps, others
) -> object:
    """A copy of the class's own scheduler after its set_timesteps with these arguments; ValueError
    for what it, or a plan, does not take.
    """
    source, peer = type(peer), twin(peer)
    asked = {
        "num_inference_steps": steps,
        "timesteps": timesteps and list(timesteps),
        "sigmas": None if sigmas is None else _array(sigmas),  # UniPC takes no list, LTX no array
        "mu": mu,
        "original_inference_steps": original_inference_steps,
    }
    # what stands beside them is the class's own, and None of it may mean something
    asked = {k: v for k, v in asked.items() if v is not None} | dict(others)
    if sigmas is not None and source.__name__ in GRID_OF:
        asked["sigmas"] = asked["sigmas"].tolist()
    unknown = ", ".join(asked.keys() - takes(source).keys())
    if unknown:
        raise ValueError(
            f"FsScheduler.set_timesteps: {source.__name__} takes no {unknown}; with compat=None it "
            "is accepted"
        )
    if steps is not None:
        count(steps)
    if timesteps is not None:
        size = settings.get("num_train_timesteps", 2)
        match = source.__name__.startswith("FlowMatch")
        falling("timesteps", timesteps, size if match else size - 1.0, repeats=True)
    if sigmas is not None:
        falling("sigmas", sigmas, math.inf, repeats=True)
    try:
        peer.set_timesteps(**asked)
    except Exception as error:
        where = f"FsScheduler.set_timesteps: {source.__name__} itself fails there"
        raise ValueError(f"{where} ({_said(error)}); compat=None is accepted") from None
    return peer


def twin(peer: object) -> object:
    """Another scheduler of the class with the same attributes."""
    other = object.__new__(type(peer))
    other.__dict__.update(peer.__dict__)
    return other


def made(source: type, settings: dict) -> object:
    """A scheduler of the class, or a ValueError. What bounds predictions is no part of its grid."""
    known, name = parameters(source), source.__name__
    own = {k: v for k, v in settings.items() if k in known or k not in BOUNDING}
    try:
        return instance(source, own)
    except Exception as error:
        where = f"FsScheduler: {name} itself cannot be made with this config"
        raise ValueError(f"{where} ({_said(error)}); compat=None is accepted") from None


def words(error: ValueError) -> str:
    """What was wrong, without what is accepted instead."""
    return str(error).rpartition(";")[0] or str(error)


# -- inside ----------------------------------------------------------------------------------------
def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
