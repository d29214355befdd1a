"""Request: what an Engine was asked for, checked, in the form that a place is given it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from ..kernels import transforms
from ..plan import Plan
from . import arguments, conditions, images, inpainting, sources
from .sampler import Sampler
from .stack import KEPT
from .window import Brownian, Window, parted


@dataclass(eq=False)
class Request:
    """plan: guidance added. first: the row where it enters. masked: it has a mask. given [1,*]:
    what it begins with, None: noise of its seed. blend: its mask and known image, or None. words:
    seed [1], stage [1] and scale [1,K] or None. trees: the condition of each branch by its name.
    others: the same of its other tracks.
    """

    plan: Plan
    first: int
    masked: bool
    given: Tensor | None
    blend: tuple[Tensor | None, Tensor | None]
    words: tuple[Tensor, Tensor | None, Tensor | None]
    window: Window | Brownian | None
    trees: dict[str, dict]
    others: tuple[Request, ...] = ()

    @property
    def tracks(self) -> tuple[Request, ...]:
        """It and those of the other tracks."""
        return (self, *self.others)

    def owned(self) -> Request:
        """The same, in memory that the caller does not write to."""
        own = lambda value: None if value is None else value.clone()
        others = tuple(other.owned() for other in self.others)
        blend = tuple(map(own, self.blend))
        return replace(self, given=own(self.given), blend=blend, others=others)


class Requests:
    """Makes requests of what callers say, for an Engine of these samples."""

    def __init__(
        self,
        models: Sequence[Callable],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        judged: bool,
    ) -> None:
        self._one, self._dtype, self._device, self._judged = (1, *shape), dtype, device, judged
        asked = lambda plan: models[: max(int(plan.call.max()), 0) + 1]
        self._sampler = lru_cache(KEPT)(lambda plan: Sampler(plan, asked(plan)))

    def made(
        self,
        plan: Plan,
        begin: Sequence,
        told: Sequence,
        image: Sequence,
        blend: Sequence,
    ) -> Request:
        """The request that `Engine.submit` is asked for; raises as it does. begin: noise, latent,
        start, seed, stage, noise_source; told: cond, uncond, branches, guidance; image: strength,
        level; blend: mask, known.
        """
        where, (noise, latent, start, seed, stage, source) = "Engine.submit", begin
        *conds, guidance = told
        transforms.refuse(where, noise, latent, seed, guidance, *blend)
        trees = conditions.branches_of(where, *conds, 1, self._device)
        _refuse_plan(where, plan)
        sampler = self._sampler(images.plan_for(where, plan, latent, start, *image))
        plan, guidance = sampler._plan_for(len(trees), guidance)
        masked, form = blend[0] is not None, (self._one, self._dtype, self._device)
        first, given, window, seed = self._begun(plan, masked, noise, latent, start, seed, source)
        blend = inpainting.blend(plan, *blend, *form)
        scale = arguments.scales(plan, guidance, 1, self._dtype, "cpu")
        words = seed, sources.stages(stage, plan, first, 1, "cpu"), scale
        sampler._warn(where, self._one[1:], guidance)
        return Request(plan, first, masked, given, blend, words, window, trees)

    def _begun(
        self, plan: Plan, masked: bool, noise, latent, start, seed, source
    ) -> tuple[int, Tensor | None, Window | Brownian | None, Tensor]:
        """The first row, what the request starts from (None: noise of its seed), the window that it
        is, and its seed [1].
        """
        one, image = self._one, plan.sigma[0] == 0
        drawn = one if noise is None and latent is None else None
        begin = noise, latent, drawn, self._device
        given, size, _ = arguments.start(*begin, image, look=self._judged)
        if size != one:
            raise ValueError(
                f"Engine.submit: {list(size)} was given; one sample, {list(one)}, is accepted"
            )
        first = arguments.entry(plan, latent is not None, start, noise is not None, masked)
        again = noise is not None and (plan.ids == 0).any()
        if again and 0 in arguments.drawn_from(plan, first, masked):
            raise ValueError(
                "Engine.submit: noise= is given and the plan draws its first noise again (for a "
                "mask or an image); seed= is accepted"
            )
        window, other = parted(source, one, plan)
        if other is not None:
            raise TypeError(
                f"Engine.submit: noise_source is a {type(other).__name__}; a fastsample.window or "
                "fastsample.brownian() is accepted, and draws of one's own by a Run"
            )
        drawn = given is None or sources.seeded(plan, first, noise, None, False, masked)
        samples = None if window is None else window.samples
        return first, given, window, sources.seeds(seed, 1, "cpu", drawn, samples)


def leaves(trees: dict[str, dict], like: dict | None) -> tuple[dict, list]:
    """What the conditions in an Engine are like, None: it has none yet, and the leaves of these,
    which must be, too.
    """
    elsewhere = next(iter(trees)) if like is None else "the requests in flight"
    like = conditions.likeness(next(iter(trees.values()))) if like is None else like
    where = "Engine.submit"
    return like, [
        conditions.leaves_like(where, elsewhere, like, *branch) for branch in trees.items()
    ]


def _refuse_plan(where: str, plan: object) -> None:
    """Refuse what is no plan of one tensor."""
    if isinstance(plan, Mapping):
        raise TypeError(
            f"{where}: plan is a dict of tracks in an Engine of one tensor a request; a Plan, or "
            "an Engine whose shape is a dict by track, is accepted"
        )
    if not isinstance(plan, Plan):
        raise TypeError(f"{where}: plan is a {type(plan).__name__}; a Plan is needed")
