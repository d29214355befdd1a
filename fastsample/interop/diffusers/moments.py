"""Moments: the normal distribution that a scheduler's step drew the next sample from. Imports no
diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...kernels.narrow import wide
from ...plan import Plan
from ...runtime import arguments, density


class Moments:
    """x' = mean + std n. terms(): (c, v [B,*]) of each noise that the step was the first to draw,
    x' - mean = sum c v; deviation [B,*]: what v was multiplied by already, if anything.
    """

    def __init__(self, terms: Callable[[], list[tuple[float, Tensor]]], deviation: Tensor | None):
        self._terms, self._deviation = terms, deviation

    def mean(self, x: Tensor) -> Tensor:
        """[B,*] in the dtype of x, the state that was drawn; gradients reach it through x."""
        return self._exact(x).to(x)

    def std(self, x: Tensor) -> Tensor:
        """[B] in the dtype of x, at least float32; [B,*] where it differs within a sample."""
        return unrounded(x, self._spread(), self._deviation)

    def log_prob(self, x: Tensor) -> Tensor | None:
        """log-density [B] float64 of x, summed over a sample; None where a part of it has std 0.
        Gradients reach the mean and the std, and x counts as a number.
        """
        std, mean = wide(self.std(x)), self._exact(x)
        if self._deviation is None:
            std = torch.full_like(std, self._spread())  # not rounded to float32 first
        if not bool((std > 0.0).all()):
            return None
        if self._deviation is None:
            return density.log_prob(x.detach(), mean, std)
        z = (wide(x.detach()) - mean) / std
        each = -0.5 * z.square() - std.log() - 0.5 * math.log(2.0 * math.pi)
        return each.flatten(1).sum(1)

    # -- inside ------------------------------------------------------------------------------------
    def _spread(self) -> float:
        return math.hypot(*(c for c, _ in self._terms()))

    def _exact(self, x: Tensor) -> Tensor:
        """The mean in float64, so that x less its mean is the noise to the last digit."""
        return wide(x) - sum(c * wide(v) for c, v in self._terms())


def unrounded(x: Tensor, std: float, deviation: Tensor | None = None) -> Tensor:
    """std [B], or std times the deviation [B,*], in the dtype of x, at least float32."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if deviation is not None:
        return std * deviation.to(dtype)
    return x.new_full((len(x),), std, dtype=dtype)


def terms(plan: Plan, rows: range, drawn: dict[int, Tensor]) -> list[tuple[float, Tensor]]:
    """Of the noises, by id, that these rows, run one after the other, were the first to draw."""
    at, names = plan.layout, list(drawn)
    held = np.zeros((1 + at.S, len(names)))  # weights of the noises in x and in every slot
    for row in rows:
        written = plan.M[row][:, : 1 + at.S] @ held
        for k, name in enumerate(arguments.drawn(plan, row, masked=False)):
            if name in drawn:
                written[:, names.index(name)] += plan.M[row][:, at.noise(k)]
        held[0] = written[0]
        for slot, weights in zip(plan.dst[row], written[1:], strict=True):
            if slot >= 0:
                held[1 + slot] = weights
    return [(c, drawn[name]) for c, name in zip(held[0].tolist(), names, strict=True)]
