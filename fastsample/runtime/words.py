"""The words of a Sampler's call: which there are, for type checkers, and whether they are so few
that an idle run can be begun with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from operator import is_, itemgetter
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..kernels import transforms
from . import arguments
from .conditions import branches_of


class Common(TypedDict, total=False):
    """Words of every call but noise= and trajectory=, by which its result differs; `Sampler` says
    what they mean. Any: a number of any kind, one a sample, or in a run of tracks a dict by track.
    """

    latent: Tensor | Mapping[str, Tensor] | None
    shape: Sequence[int] | Mapping[str, Sequence[int]] | None
    seed: Any
    stage: Any
    cond: dict | None
    uncond: dict | None
    branches: Sequence[dict] | None
    guidance: Any
    callback: Callable | None
    progress: bool
    mask: Tensor | Mapping[str, Tensor] | None
    known: Tensor | Mapping[str, Tensor] | None
    batched_guidance: bool
    noise_scale: Any
    noise_source: Any
    start: int | None
    strength: float | None
    level: float | None
    device: torch.device | str | None
    table: Tensor | None
    out: Tensor | Mapping[str, Tensor] | None
    check: str | None


class Words(Common, total=False):
    """Those of a call for one tensor."""

    noise: Tensor | None


NOTHING: dict = {"cond": {}}  # what a model without conditions is told
_others = itemgetter(
    "latent", "shape", "device", "start", "noise_scale", "noise_source", "mask", "known"
)


def plain(words: dict) -> bool:
    """Is a run begun with noise, a seed and guidance alone, as a spare can be?"""
    noise, stage = words["noise"], words["stage"]
    whole = noise.__class__ is Tensor and (stage is None or (stage.__class__ is int and not stage))
    return whole and all(map(is_, _others(words), repeat(None)))


def trees_of(plain: bool, words: dict, *told) -> dict[str, dict]:
    """The condition of each branch, for the batch that the call begins with."""
    if plain and told == (None, None, None):
        return NOTHING
    start = (words[name] for name in ("noise", "latent", "shape", "device"))
    return branches_of("Sampler", *told, *arguments.place(*start))


def known_at_a_look(*numbers: object) -> bool:
    """Is it known at a look that no transform can be active, of the thread or of a tensor?"""
    plain = (v is None or v.__class__ in (int, float, Tensor) for v in numbers)
    return not transforms.watched() and all(plain)
