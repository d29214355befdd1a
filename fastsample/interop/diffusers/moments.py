"""Moments: the normal distribution that a scheduler's step drew the next sample from. Imports no
diffusers.
"""

from __future__ import annotations

import math

from torch import Tensor

from ...kernels.narrow import wide
from ...plan import Plan
from ...runtime import arguments, density


class Moments:
    """x' = mean + std n of one row of a plan. drawn: noise id -> the noise [B,*] that the row was
    the first to draw; deviation [B,*]: what that noise was multiplied by already, if anything.
    """

    def __init__(self, plan: Plan, row: int, drawn: dict, deviation: Tensor | None):
        self._plan, self._row, self._drawn, self._deviation = plan, row, drawn, deviation

    def mean(self, x: Tensor) -> Tensor:
        """[B,*] in the dtype of x, the state that was drawn; gradients reach it through x."""
        return self._exact(x).to(x)

    def std(self, x: Tensor) -> Tensor:
        """[B] in the dtype of x; [B,*] where the model says it for every element."""
        squares = {}
        for c, name in self._terms():
            squares[name] = squares.get(name, 0.0) + c
        std = math.hypot(*squares.values())
        return x.new_full((len(x),), std) if self._deviation is None else std * self._deviation

    def log_prob(self, x: Tensor) -> Tensor | None:
        """log-density [B] float64 of x, summed over a sample; None where nothing was drawn.
        Gradients reach the mean and the std, and x counts as a number.
        """
        std, mean = wide(self.std(x)), self._exact(x)
        if not self._drawn or not bool((std > 0.0).all()):
            return None
        if self._deviation is None:
            return density.log_prob(x.detach(), mean, std)
        z = (wide(x.detach()) - mean) / std
        each = -0.5 * z.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
        return each.flatten(1).sum(1)

    # -- inside ------------------------------------------------------------------------------------
    def _exact(self, x: Tensor) -> Tensor:
        """The mean in float64, so that x less its mean is the noise to the last digit."""
        return wide(x) - sum(c * wide(self._drawn[name]) for c, name in self._terms())

    def _terms(self) -> list[tuple[float, int]]:
        """(coefficient in x', noise id) of every fresh noise that the row reads."""
        at = self._plan.layout
        ids = enumerate(arguments.drawn(self._plan, self._row, masked=False))
        weights = self._plan.M[self._row, 0]
        return [(float(weights[at.noise(k)]), name) for k, name in ids if name in self._drawn]
