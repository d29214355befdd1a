"""The noises of DPMSolverSDE and CosineDPMSolverMultistep: increments of one Brownian path in
sigma, whatever the steps are, as diffusers draws them from a seed. Imports no diffusers.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from .loop import Loop
from .sources import COSINE


class Path:
    """source: the class, whose module has the tree; sample [B,*]: of the path's shape, device and
    dtype; sigmas: the class's own, every point but the first and the end twice; seed: an integer,
    one for each sample, or None.
    """

    def __init__(self, source: type, sample: Tensor, sigmas: Tensor, seed: object):
        made = sys.modules[source.__module__].BrownianTreeNoiseSampler
        self._sigmas, above = sigmas, sigmas[sigmas > 0]
        self._over = made(sample, above.min().item(), sigmas.max().item(), seed)

    def at(self, call: int) -> Tensor:
        """The noise of a call of the model: over the first half of its step in ln sigma, or over
        the second, as a step over the whole has both; 0 for a step to sigma = 0.
        """
        t, end = -self._sigmas[call - call % 2].log(), -self._sigmas[call - call % 2 + 1].log()
        if end.isinf():
            return torch.zeros(())
        # the class's own arithmetic: a path between other numbers is another path
        start, middle, end = (v.neg().exp() for v in (t, t + (end - t) * 0.5, end))
        first = self._over(start, middle)
        if call % 2 == 0:
            return first
        whole = self._over(start, end) * (start - end).sqrt()
        return (whole - first * (start - middle).sqrt()) / (middle - end).sqrt()


class Increments(Path):
    """CosineDPMSolverMultistep's: over a whole step, of a path between the config's ends."""

    def __init__(self, source: type, sample: Tensor, sigmas: Tensor, seed: object, ends: tuple):
        made = sys.modules[source.__module__].BrownianTreeNoiseSampler
        self._sigmas, self._over = sigmas, made(sample, *ends, seed)

    def at(self, call: int) -> Tensor:
        return self._over(*self._sigmas[call : call + 2])


def along(loop: Loop, source: type, settings: dict, timestep, sample: Tensor, draw):
    """The draws of a step, each the path's where nobody gave a noise; a generator is drawn from in
    its place by DPMSolverSDE, and is the seed of Cosine's.
    """
    seeded = source.__name__ == COSINE

    def drawn(output: Tensor, generator, given: Tensor | None) -> Tensor:
        if given is not None or not (seeded or generator is None):
            return draw(output, generator, given)
        if getattr(loop, "path", None) is None:
            if seeded:
                seeds = _seeds(generator, len(output))
                words = seeds, (settings["sigma_min"], settings["sigma_max"])
                loop.path = Increments(source, output, loop.own_sigmas, *words)
            else:
                seed = settings["noise_sampler_seed"]
                loop.path = Path(source, sample, loop.own_sigmas, seed)
        with torch.no_grad():
            return loop.path.at(loop.find(timestep))

    return drawn


def _seeds(generator, samples: int) -> int | list[int] | None:
    """Of one generator, or of a list of them, one for each sample; ValueError for another list."""
    if not isinstance(generator, (list, tuple)):
        return None if generator is None else generator.initial_seed()
    right = [each for each in generator if isinstance(each, torch.Generator)]
    if len(right) != len(generator) or len(right) != samples:
        raise ValueError(
            f"FsScheduler.step: generator is a list of {len(generator)}, {len(right)} of them "
            f"torch.Generators, for {samples} samples; one for each sample, or one for all, is "
            "accepted"
        )
    return [each.initial_seed() for each in right]
