"""The table of noise levels that a class on sigma scale has, where no falling grid is one: with
zero terminal SNR diffusers puts sigma = 4096 at the last training timestep, though with linear
betas the one before has 15,000. No torch, no diffusers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...model import Model
from ...plan import Plan
from ...schedules import Schedule
from ...solvers._build import Builder, M, X


@dataclass(frozen=True)
class Table(Schedule):
    """x = x0 + sigma eps, sigma = levels[t] at t = 0..T-1, in any order, and 0 at t = -1; linear
    between. Levels in no order have no inverse: time is not to be asked.
    """

    levels: tuple[float, ...]
    t_min, t_zero, sigma_data = 0.0, -1.0, 1.0
    t_max = property(lambda self: len(self.levels) - 1.0)

    def _point(self, t):
        sigma = np.interp(t, np.arange(-1.0, len(self.levels)), [0.0, *self.levels])
        return np.ones_like(sigma), sigma, -np.log(sigma)


def along(model: Model, grid, *, drawn: bool) -> Plan:
    """x' = (down/sigma) x + (1 - down/sigma) x0 + up n along the times of a Table: down = sigma',
    up = 0, Euler's; drawn, Euler ancestral's: up = (sigma'/sigma) sqrt(sigma² - sigma'²),
    down = sigma'²/sigma, but where a step rises, which leaves no room for noise (NaN in diffusers).
    """
    b = Builder(model, grid, stored="x0")
    for i, (sigma, to) in enumerate(zip(b.sigma[:-1], b.sigma[1:], strict=True)):
        falls = drawn and to < sigma
        down = to * to / sigma if falls else to
        x = (down / sigma) * X + (1.0 - down / sigma) * M
        up = to / sigma * math.sqrt((sigma - to) * (sigma + to)) if falls else 0.0
        b.row(b.t[i], to=b.t[i + 1], x=x + up * b.noise(i) if up else x)
    cite = "Karras et al. 2022, Elucidating the Design Space, Alg. 1, arXiv:2206.00364"
    words = {"drawn": drawn}
    return b.build("euler along a table", arguments=words, orders=[1] * b.n, citations=[cite])
