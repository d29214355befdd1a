"""Steps that lose part of the noise they carry and draw it anew.

With x0 the prediction and eps = (x - alpha·x0)/sigma the noise in x, h = lambda' - lambda::

    x' = alpha'·x0 + k·sigma'·eps + sigma' sqrt(1 - k²)·n
       = (k sigma'/sigma)·x + alpha' (1 - k e^{-h})·x0 + sigma' sqrt(1 - k²)·n

whose marginals are the schedule's for every k in [0, 1]. k = e^{-kappa}: kappa = 0 is the
deterministic step, infinite keeps nothing; where a step is taken in two, their kappas add up. The
ancestral step of sigma/alpha goes down to lambda' + kappa, then back up.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..schedules import Flow
from ._build import ZERO, Builder, Lin, M, X
from ._exponential import gain, moments


class Level(NamedTuple):
    """alpha, sigma and half_log_snr at one time."""

    alpha: float
    sigma: float
    half_log_snr: float

    @classmethod
    def on(cls, b: Builder) -> list[Level]:
        """Those of the grid's points [n+1]."""
        return [*map(cls, b.alpha.tolist(), b.sigma.tolist(), b.half_log_snr.tolist())]

    @classmethod
    def between(cls, b: Builder, half_log_snr: list[float]) -> list[tuple[float, Level]]:
        """The float time nearest to each half_log_snr, and the levels there."""
        times = b.schedule.time(np.asarray(half_log_snr, np.float64))
        levels = zip(*(values.tolist() for values in b.visit(times)), strict=True)
        return [*zip(times.tolist(), (cls(*level) for level in levels), strict=True)]


def rise(s: Level, t: Level) -> float:
    """h = lambda' - lambda; 0 for a step of length 0."""
    return 0.0 if s == t else t.half_log_snr - s.half_log_snr


class Step(NamedTuple):
    """x' = a·x + b·x0 + c·n."""

    a: float
    b: float
    c: float

    @classmethod
    def of(cls, s: Level, t: Level, kappa: float) -> Step:
        """Finite at both ends: from alpha = 0, where h is infinite, and to sigma = 0, where x' is
        alpha'·x0; from there only a step of length 0 leads on.
        """
        h = rise(s, t)
        kept = math.exp(-kappa) * (1.0 if s == t else t.sigma / s.sigma)
        return cls(kept, t.alpha * gain(h + kappa), t.sigma * math.sqrt(gain(2.0 * kappa)))

    def over(self, noise: Lin = ZERO, x: Lin = X, x0: Lin = M) -> Lin:
        """In symbols; what weighs nothing is not read."""
        terms = zip(self, (x, x0, noise), strict=True)
        return sum((number * value for number, value in terms if number), ZERO)


def ancestral(s: Level, t: Level, eta: float, after: Level | None = None) -> float:
    """kappa of the step that draws eta times the noise of DDPM's, 1 - k² = eta² (1 - e^{-2h}), or
    all of it: in sigma/alpha, up = eta·rho' sqrt(1 - rho'²/rho²), at most rho'. after: of that, the
    part that is drawn after this level on the way, which is no difference of two that are near.
    """
    kept, left, down = (1.0 - eta) * (1.0 + eta), math.exp(-2.0 * rise(s, t)), 1.0
    before, h = 1.0, rise(s, t)
    if after is not None:
        down, h = math.exp(-2.0 * rise(s, after)), rise(after, t)
        before = kept + eta**2 * down
    if before <= 0.0:
        return math.inf
    lost = eta**2 * down * gain(2.0 * h) / before
    if lost < 0.5:
        return -0.5 * math.log1p(-lost)
    rest = (kept + eta**2 * left) / before
    return -0.5 * math.log(rest) if rest > 0.0 else math.inf


def flow_ancestral(s: Level, t: Level, eta: float) -> float:
    """kappa = lambda(down) - lambda' of the rectified-flow form, 0 <= eta <= 1: the step goes to
    down = sigma' (1 - eta (1 - sigma'/sigma)) on the line alpha = 1 - sigma.
    """
    if t.sigma == 0.0:  # nothing to draw anew
        return 0.0
    g = gain(rise(s, t))
    lost = eta * t.alpha * g  # 1 - down/sigma'
    rest = (1.0 - eta) + eta * (t.sigma + t.alpha * math.exp(-rise(s, t)))
    ratio = math.log1p(-lost) if lost < 0.5 else math.log(rest)
    return math.log1p(eta * t.sigma * g) - ratio


def falls(b: Builder, points: list[Level], eta: float) -> list[float]:
    """kappa of every step of an ancestral solver: the rectified-flow form on Flow."""
    form = flow_ancestral if isinstance(b.schedule, Flow) else ancestral
    return [form(s, t, eta) for s, t in pairwise(points)]


def bent(width: float, before: float) -> float:
    """w = -H phi_2(-H) H/H_1 of m_1 - m, in units of alpha', in a step of width H = h + kappa after
    one of width H_1: the line through both, integrated exactly. 0 where either is infinite.
    """
    if max(width, before) == math.inf:
        return 0.0
    return -moments(width, 2)[1] * (width / before)


def grown(z: Lin, more: float, noise: Lin) -> Lin:
    """The noise of a step begun earlier, from z, that so far, to kappa further on by `more`:
    z' = e^{-more}·z + sqrt(1 - e^{-2 more})·n, of variance 1 - e^{-2 kappa}.
    """
    kept, added = math.exp(-more), math.sqrt(gain(2.0 * more))
    return (kept * z if kept else ZERO) + (added * noise if added else ZERO)
