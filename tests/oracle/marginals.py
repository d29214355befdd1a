"""alpha and sigma of the six schedules in 50 digits, from their definitions.

VP          ln alpha = -t^2 (b1 - b0)/4 - t b0/2,  sigma^2 = 1 - alpha^2  (Song et al. 2021, eq. 33)
VE          alpha = 1,  sigma = smin (smax/smin)^t, smin (1 + t) on [-1, 0]      (ibid., eq. 30)
EDM         alpha = 1,  sigma = t                                             (Karras et al. 2022)
Flow        sigma = s t / (1 + (s - 1) t),  alpha = 1 - sigma
TrigFlow    alpha = cos t,  sigma = sd sin t                                    (Lu and Song 2024)
DiscreteVP  sigma^2 = 1 - alpha^2,  half log-SNR piecewise linear in the index between the entries
            of the table, sigma = 0 at index -1
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from .linear import mp


@dataclass(frozen=True)
class Point:
    """A point of a grid: schedule time t (float, None for a stage between grid points), alpha and
    sigma as mpf.
    """

    t: float | None
    alpha: object
    sigma: object

    @cached_property
    def lam(self):
        """Half log-SNR ln(alpha/sigma); infinite at the clean and at the noise end."""
        if self.sigma == 0:
            return mp.inf
        return mp.log(self.alpha / self.sigma) if self.alpha else -mp.inf

    @cached_property
    def rho(self):
        """sigma/alpha."""
        return self.sigma / self.alpha if self.alpha else mp.inf


def _vp(lam):
    return 1 / mp.sqrt(1 + mp.exp(-2 * lam)), 1 / mp.sqrt(1 + mp.exp(2 * lam))


def level(schedule, lam) -> tuple:
    """(alpha, sigma) of the schedule where ln(alpha/sigma) = lam: every family ties alpha to sigma
    by one equation.
    """
    name = type(schedule).__name__
    if name in ("VP", "DiscreteVP"):
        return _vp(lam)
    if name == "Flow":
        return 1 / (1 + mp.exp(-lam)), 1 / (1 + mp.exp(lam))
    if name == "TrigFlow":
        rho = mp.exp(-lam)
        alpha = 1 / mp.sqrt(1 + (rho / mp.mpf(schedule.sigma_data)) ** 2)
        return alpha, rho * alpha
    return mp.mpf(1), mp.exp(-lam)


def _discrete(schedule, t):
    """lambda linear between neighbours; in the two intervals with an infinite end sigma/alpha and
    alpha/sigma are linear instead.
    """
    table, z = schedule.alphas_cumprod, mp.mpf(t)
    if t == -1:
        return mp.mpf(1), mp.mpf(0)
    if t == len(table) - 1 and table[-1] == 0:
        return mp.mpf(0), mp.mpf(1)

    def lam(i):
        entry = mp.mpf(float(table[i]))
        return mp.log(entry / (1 - entry)) / 2

    if t < 0:
        return _vp(lam(0) - mp.log(1 + z))
    k = min(int(t), len(table) - 2)
    if table[k + 1] == 0:
        return _vp(lam(k) + mp.log(k + 1 - z))
    return _vp(lam(k) + (z - k) * (lam(k + 1) - lam(k)))


@lru_cache(5000)
def point(schedule, t: float) -> Point:
    """The point of a schedule at float time t, by the definition of its family."""
    name, t = type(schedule).__name__, float(t)
    z = mp.mpf(t)
    if name == "VP":
        low, high = mp.mpf(schedule.beta_min), mp.mpf(schedule.beta_max)
        alpha = mp.exp(-(z**2) * (high - low) / 4 - z * low / 2)
        return Point(t, alpha, mp.sqrt(1 - alpha**2))
    if name == "DiscreteVP":
        return Point(t, *_discrete(schedule, t))
    if name == "VE":
        low, high = mp.mpf(schedule.sigma_min), mp.mpf(schedule.sigma_max)
        return Point(t, mp.mpf(1), low * (1 + z) if t < 0 else low * (high / low) ** z)
    if name == "EDM":
        return Point(t, mp.mpf(1), z)
    if name == "Flow":
        shift = mp.mpf(schedule.shift)
        sigma = shift * z / (1 + (shift - 1) * z)
        return Point(t, 1 - sigma, sigma)
    if name == "TrigFlow":  # float64 pi/2 stands for the exact end, where alpha = 0
        alpha = mp.mpf(0) if t == float(mp.pi / 2) else mp.cos(z)
        return Point(t, alpha, mp.mpf(schedule.sigma_data) * (mp.sin(z) if alpha else 1))
    raise ValueError(f"point: {name} is not a schedule the derivations know")


def points(schedule, grid) -> list[Point]:
    return [point(schedule, t) for t in grid]
