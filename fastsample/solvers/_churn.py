"""Churn: noise added before a step, to a higher level, from which the step starts.

With rho = sigma/alpha and y = x/alpha::

    rho^ = (1 + gamma) rho,  gamma = min(s_churn/n, max_gamma) for s_tmin <= rho <= s_tmax, else 0
    y^   = y + sqrt(rho^² - rho²) s_noise·n

(Karras et al. 2022, arXiv:2206.00364, Alg. 2, whose max_gamma is sqrt(2) - 1). rho^ stays within
the schedule; only EDM goes above its sigma_max.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from ._begin import number
from ._build import Builder, X

LARGEST = math.sqrt(2.0) - 1.0  # Karras et al. 2022, Alg. 2
ROUNDING = 1e-12  # a rise of ln rho this small is the rounding of the schedule's end, not churn


@dataclass(frozen=True)
class Churn:
    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float
    max_gamma: float

    @classmethod
    def given(cls, name: str, *, s_tmax, **values) -> Churn:
        """Of the arguments of solver `name`, checked."""
        endless = s_tmax is None or (isinstance(s_tmax, float) and s_tmax == math.inf)
        top = math.inf if endless else number(f"{name}: s_tmax", s_tmax)
        values = {word: number(f"{name}: {word}", value) for word, value in values.items()}
        return cls(s_tmax=top, **values)

    def words(self) -> dict:
        """The arguments of a note."""
        return asdict(self) | {"s_tmax": None if self.s_tmax == math.inf else self.s_tmax}

    @property
    def consistent(self) -> bool:
        """Does what it adds keep to the schedule?"""
        return self.s_noise == 1.0 or not self.s_churn

    def lift(self, b: Builder, i: int) -> float:
        """The time step i starts from, after noise was added where it is to be."""
        t, rho = float(b.t[i]), b.sigma[i] / b.alpha[i]
        gamma = min(self.s_churn / b.n, self.max_gamma)
        if not self.s_tmin <= rho <= self.s_tmax:
            return t
        top = b.schedule.t_max if b.schedule.t_top is None else b.schedule.t_top
        room = -b.schedule.half_log_snr(top) - math.log(rho)
        rise = min(math.log1p(gamma), float(room))  # ln(rho^/rho)
        if rise <= ROUNDING:
            return t
        hotter = float(b.schedule.time(-math.log(rho) - rise))
        raise_to(b, t, hotter, rise, self.s_noise * b.noise(i))
        return hotter


def raise_to(b: Builder, t: float, hotter: float, rise: float, noise) -> None:
    """Noise from time t up to a hotter one, ln(rho^/rho) = rise above."""
    (alpha, sigma), lifted = b.level(t), b.level(hotter)[0]
    added = lifted * sigma / alpha * math.sqrt(math.expm1(2.0 * rise))
    b.pre(to=hotter, x=(lifted / alpha) * X + added * noise)
