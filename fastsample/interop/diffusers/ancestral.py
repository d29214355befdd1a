"""LTXEulerAncestralRF's rows as diffusers has them, and its grid where it is told the levels. No
torch, no diffusers.

A list of levels has its end in it, and the class asks the model there once more, for nothing: in
compat a run of n steps has n + 1 calls.
"""

from __future__ import annotations

import math

from ...model import Model
from ...plan import Plan
from ...solvers._begin import number
from ...solvers._build import ZERO, Builder, Lin, M, X
from .grids import Points, checked, count, falling

NAME = "LTXEulerAncestralRFScheduler"
TINY = 1e-12


def told_levels(config: dict, steps: int | None, timesteps, sigmas) -> Points:
    """The grid of these sigmas [n+1], their end included; timesteps are sigmas too, as there."""
    what, given = ("timesteps", timesteps) if sigmas is None else ("sigmas", sigmas)
    grid = falling(what, given, 1.0)
    count(steps, len(grid) - 1)
    return checked(grid, grid[:-1] * config["num_train_timesteps"])


def ancestral(model: Model, grid, *, eta: float, s_noise: float) -> Plan:
    """x' = q y + up s_noise n,  y = (down/sigma) x + (1 - down/sigma) x0,
    down = sigma' (1 - eta (1 - sigma'/sigma)),  q = alpha'/(1 - down),  up² = sigma'² - (q down)²

    as diffusers has it: with 1e-12 beside 1 - down and its square, on levels that may repeat, and
    where eta or s_noise is 0 with y itself, which with eta lies below sigma'. x' = x0 where
    sigma' = 0. `solvers.euler_ancestral` on Flow otherwise; one evaluation a step. Song et al.
    2021, arXiv:2011.13456, app. F, restated for alpha = 1 - sigma.
    """
    eta = number("euler_ancestral: eta on Flow", eta, 0.0, 1.0)
    s_noise, b = number("euler_ancestral: s_noise", s_noise), Builder(model, grid, stored="x0")
    for i, (s, to) in enumerate(zip(b.sigma[:-1].tolist(), b.sigma[1:].tolist(), strict=True)):
        idle, drawn = s == to and i == b.n - 1, ZERO
        x = Lin(X) if idle else M
        if to and not idle:
            down = to * (1.0 - eta * (1.0 - to / s))
            x = (down / s) * X + (1.0 - down / s) * M
            drawn = b.noise(i) if eta and s_noise else ZERO
        if drawn:
            q = (1.0 - to) / (1.0 - down + TINY)
            kept = down * down * (1.0 - to) ** 2 / ((1.0 - down) ** 2 + TINY)
            x = q * x + s_noise * math.sqrt(max(0.0, to * to - kept)) * drawn
        b.row(b.t[i], to=b.t[i + 1], x=x, reads=drawn)
    cite = "Song et al. 2021, Score-Based Generative Modeling through SDEs, app. F, "
    return b.build(
        "euler_ancestral of diffusers",
        arguments={"eta": eta, "s_noise": s_noise},
        consistent=False,
        order=1,
        orders=[1] * b.n,
        citations=[cite + "arXiv:2011.13456"],
    )
