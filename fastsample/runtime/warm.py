"""Warm: the first calls of a Sampler, made ahead."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from . import capturable
from .conditions import branches_of, take
from .drive import bar

if TYPE_CHECKING:
    from .sampler import Sampler


def warm(sampler: Sampler, shapes, dtype: torch.dtype, device, progress: bool, call: dict) -> bool:
    """One call of the sampler for each shape, as `Sampler.warm` says; has it warned?"""
    listed = isinstance(shapes, Sequence)
    if not listed or not all(isinstance(shape, Sequence) and shape for shape in shapes):
        raise ValueError(
            f"Sampler.warm: shapes is {shapes!r:.80}; a list of shapes (B, *) is accepted"
        )
    device = capturable.KIND if device is None and sampler.mode == "graph" else device
    first = shapes[0][0] if shapes else 0
    told = [call.pop(name, None) for name in ("cond", "uncond", "branches")]
    trees = branches_of("Sampler.warm", *told, first, torch.device(device or "cpu")).values()
    entered = any(call.get(name) is not None for name in ("start", "strength", "level"))
    begins = sampler.plan.sigma[0] == 0 or entered
    source = torch.Generator().manual_seed(0)
    caller = copy.copy(sampler)
    caller._set(_capture="now")
    with bar("Sampler.warm", progress, len(shapes)) as shown:
        for shape in shapes:
            noise = torch.randn(shape, generator=source, device="cpu").to(device, dtype)
            index = torch.arange(shape[0], device="cpu") % max(first, 1)
            begin = {"latent" if begins else "noise": noise, "seed": 0}
            caller(**begin | call, branches=[take(tree, index) for tree in trees])
            if shown is not None:
                shown.update()
    return caller._warned
