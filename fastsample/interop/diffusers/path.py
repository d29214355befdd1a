"""The noises of DPMSolverSDE: increments of one Brownian path in sigma, whatever the steps are, as
diffusers draws them from a seed. Imports no diffusers.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from .loop import Loop


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
        the second, as a step over the whole has both.
        """
        t, end = -self._sigmas[call - call % 2].log(), -self._sigmas[call - call % 2 + 1].log()
        # the class's own arithmetic: a path between other numbers is another path
        start, middle, end = (v.neg().exp() for v in (t, t + (end - t) * 0.5, end))
        first = self._over(start, middle)
        if call % 2 == 0:
            return first
        whole = self._over(start, end) * (start - end).sqrt()
        return (whole - first * (start - middle).sqrt()) / (middle - end).sqrt()


def along(loop: Loop, source: type, settings: dict, timestep, sample: Tensor, draw):
    """The draws of a step, each the path's where nobody gave a generator or a noise."""
    if getattr(loop, "path", None) is None:
        loop.path = Path(source, sample, loop.own_sigmas, settings["noise_sampler_seed"])

    def drawn(output: Tensor, generator, given: Tensor | None) -> Tensor:
        if generator is not None or given is not None:
            return draw(output, generator, given)
        with torch.no_grad():
            return loop.path.at(loop.find(timestep))

    return drawn
