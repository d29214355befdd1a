"""Schedules of a continuous time: VP, Cosine, VE, EDM, CosmosRFlow, Flow, TrigFlow."""

from __future__ import annotations

import dataclasses
import math
import sys
from dataclasses import dataclass

import numpy as np

from ..plan.given import between
from ._schedule import Schedule, moved, own, preserving


@dataclass(frozen=True)
class VP(Schedule):
    """Variance preserving: alpha = e^{-L}, sigma = sqrt(1 - e^{-2L}),
    L(t) = (beta_max - beta_min) t²/4 + beta_min t/2, t in [0, 1].
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max = 1.0

    def __post_init__(self):
        low = own(self, "beta_min")
        own(self, "beta_max", low)
        own(self, "t_min", 0.0, 1.0)

    def _point(self, t):
        decay = 0.25 * t * t * (self.beta_max - self.beta_min) + 0.5 * t * self.beta_min
        level = -0.5 * np.log(np.expm1(2.0 * decay))
        return np.exp(-decay), np.sqrt(-np.expm1(-2.0 * decay)), level

    def _time(self, level):
        decay = 0.5 * np.logaddexp(0.0, -2.0 * level)
        root = np.sqrt(self.beta_min**2 + 4.0 * (self.beta_max - self.beta_min) * decay)
        return 4.0 * decay / (self.beta_min + root)

    def _levels(self, level):
        return preserving(level)


@dataclass(frozen=True)
class Cosine(Schedule):
    """The continuous cosine schedule: alpha = cos(a)/cos(a_0), alpha² + sigma² = 1,
    a(t) = (t + offset)/(1 + offset)·pi/2, a_0 = a(0), t in [0, 1]. alpha = 0 exactly at t = 1.

    Nichol & Dhariwal 2021, eq. 17, without its table. Stable Cascade: shifted by -2 ln(shift), its
    levels held to alpha² from 1e-4 to .9999, sigma/alpha 99.995 to .0100005.
    """

    offset: float = 0.008
    t_min: float = 1e-3
    t_max = 1.0
    t_finite = property(lambda self: 1.0 - self.t_min)

    def __post_init__(self):
        own(self, "offset")
        own(self, "t_min", 0.0, 0.5)

    @property
    def _unit(self) -> float:
        """da/dt."""
        return 0.5 * math.pi / (1.0 + self.offset)

    def _point(self, t):
        first, end = self._unit * self.offset, math.cos(self._unit * self.offset)
        alpha = np.sin(self._unit * (1.0 - t)) / end
        # sin(a - a_0) sin(a + a_0) = cos²(a_0) - cos²(a), which cancels
        sigma = np.sqrt(np.sin(self._unit * t) * np.sin(self._unit * t + 2.0 * first)) / end
        return np.minimum(alpha, 1.0), np.minimum(sigma, 1.0), np.log(alpha) - np.log(sigma)

    def _time(self, level):
        first, end = math.sin(self._unit * self.offset), math.cos(self._unit * self.offset)
        ratio = np.exp(-np.abs(level))  # sigma/alpha where level > 0, else alpha/sigma
        noisy = 1.0 - np.arcsin(end * ratio / np.sqrt(1.0 + ratio**2)) / self._unit
        # tan(a) = root/end; tan(a - a_0) from the difference of the tangents, rationalised
        root = np.sqrt(ratio**2 + first**2)
        turn = end * ratio**2 / ((root + first) * (end**2 + root * first))
        return np.where(level > 0.0, np.arctan(turn) / self._unit, noisy)

    def _levels(self, level):
        return preserving(level)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max/sigma_min)^t, t in [0, 1];
    sigma = 0 at the special time -1.

    Between -1 and 0 sigma = sigma_min (1 + t): levels under sigma_min, which the usual grids do not
    use.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min, t_max, t_zero = 0.0, 1.0, -1.0

    def __post_init__(self):
        own(self, "sigma_max", own(self, "sigma_min"))

    def _point(self, t):
        span = self.sigma_max / self.sigma_min
        # ratio: ln(sigma/sigma_min)
        ratio = np.where(t < 0.0, np.log1p(np.minimum(t, 0.0)), t * math.log(span))
        sigma = self.sigma_min * np.where(t < 0.0, 1.0 + t, span ** np.maximum(t, 0.0))
        return np.ones_like(t), sigma, -math.log(self.sigma_min) - ratio

    def _time(self, level):
        ratio = -level - math.log(self.sigma_min)
        below = np.expm1(np.minimum(ratio, 0.0))
        return np.where(ratio < 0.0, below, ratio / math.log(self.sigma_max / self.sigma_min))

    def shifted(self, log_snr: float) -> Schedule:
        return _scaled(self, log_snr)


@dataclass(frozen=True)
class EDM(Schedule):
    """Karras et al. 2022: alpha = 1, sigma = t >= 0. sigma_data is the standard deviation of x0,
    used by prediction "edm".
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    t_top = sys.float_info.max  # churn and hand-made lists go above sigma_max
    t_min = property(lambda self: self.sigma_min)
    t_max = property(lambda self: self.sigma_max)

    def __post_init__(self):
        own(self, "sigma_max", own(self, "sigma_min"))
        own(self, "sigma_data")

    def _point(self, t):
        return np.ones_like(t), t, -np.log(t)

    def _time(self, level):
        return np.exp(-level)

    def shifted(self, log_snr: float) -> Schedule:
        return _scaled(self, log_snr)


@dataclass(frozen=True)
class CosmosRFlow(EDM):
    """Cosmos: EDM's x = x0 + sigma·eps outside, a rectified flow inside. The network sees
    x/(1 + sigma), is told sigma/(1 + sigma) and answers eps - x0:
    Model(fn, CosmosRFlow(), "flow", time=1, input_scale="flow").
    """

    sigma_data: float = 1.0

    def label(self, t):
        return 1.0 / (1.0 + 1.0 / np.maximum(EDM.label(self, t), sys.float_info.min))


@dataclass(frozen=True)
class Flow(Schedule):
    """Rectified flow: sigma = shift·t / (1 + (shift-1) t), alpha = 1 - sigma; t in [0, 1] is the
    time before the shift.

    half_log_snr = ln((1-t)/t) - ln(shift): the shift moves the log-SNR by a constant. alpha = 0 at
    t = 1 and sigma = 0 at t = 0.
    """

    shift: float = 1.0
    t_min: float = 1e-3
    t_max = 1.0
    t_finite = property(lambda self: 1.0 - self.t_min)

    def __post_init__(self):
        own(self, "shift")
        own(self, "t_min", 0.0, 0.5)

    def _point(self, t):
        scale = 1.0 + (self.shift - 1.0) * t  # alpha is not 1 - sigma, which cancels near t = 1
        level = np.log1p(-t) - np.log(t) - math.log(self.shift)
        return (1.0 - t) / scale, self.shift * t / scale, level

    def _time(self, level):
        return 1.0 / (1.0 + self.shift * np.exp(level))

    def label(self, t):
        return self.sigma(t)

    def shifted(self, log_snr: float) -> Schedule:
        shift = self.shift * math.exp(-0.5 * moved(self, log_snr))
        return dataclasses.replace(self, shift=shift)

    @classmethod
    def dynamic(
        cls,
        tokens: float,
        kind: str = "exponential",
        first: tuple[float, float] = (256, 0.5),
        last: tuple[float, float] = (4096, 1.15),
    ) -> Flow:
        """The shift by image size: e^mu ("exponential") or mu ("linear"), mu linear in the number
        of image tokens through (tokens, mu) first and last, here those of FLUX, and beyond them.

        sigma = e^mu/(e^mu + 1/t - 1) is the flow shifted by e^mu (Esser et al. 2024, eq. 23).
        """
        if kind not in ("exponential", "linear"):
            raise ValueError(
                f"Flow.dynamic: kind = {kind!r:.60}; 'exponential' or 'linear' is accepted"
            )
        (low, mu), (high, top) = first, last
        count = between("Flow.dynamic: tokens", tokens)
        mu = mu + (count - low) * (top - mu) / (high - low)
        return cls(math.exp(mu) if kind == "exponential" else mu)


@dataclass(frozen=True)
class TrigFlow(Schedule):
    """alpha = cos t, sigma = sigma_data·sin t, t in [0, pi/2]; sigma_data is the standard deviation
    of x0. alpha = 0 exactly at pi/2.
    """

    sigma_data: float = 1.0
    t_min: float = 2e-3
    t_max = math.pi / 2
    t_finite = property(lambda self: self.t_max - self.t_min)

    def __post_init__(self):
        own(self, "sigma_data")
        own(self, "t_min", 0.0, math.pi / 4)

    def _point(self, t):
        end = t == self.t_max  # the cosine of the float nearest pi/2 is 6e-17
        level = np.where(end, -np.inf, -np.log(np.tan(t)) - math.log(self.sigma_data))
        return np.where(end, 0.0, np.cos(t)), self.sigma_data * np.sin(t), level

    def _time(self, level):
        return np.arctan(np.exp(-level) / self.sigma_data)

    def _levels(self, level):
        alpha, sigma = preserving(level + math.log(self.sigma_data))
        return alpha, self.sigma_data * sigma


def _scaled(schedule: VE | EDM, log_snr: float) -> Schedule:
    """alpha = 1: the shift multiplies every sigma by e^(-log_snr/2)."""
    scale = math.exp(-0.5 * moved(schedule, log_snr))
    ends = {name: scale * getattr(schedule, name) for name in ("sigma_min", "sigma_max")}
    return dataclasses.replace(schedule, **ends)
