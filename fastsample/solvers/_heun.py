"""Heun's step between two times of a schedule, in the two spaces that `heun` says."""

from __future__ import annotations

import math

from ._build import Builder, M, R, X
from ._stages import of_velocity


def rho_step(b: Builder, t: float, to: float) -> None:
    """In rho space."""
    alpha, sigma = b.level(to)
    if sigma == 0.0:
        b.row(t, to=to, x=alpha * M)
        return
    h = b.rise(t, to)
    stage = (sigma / b.level(t)[1]) * X - alpha * math.expm1(-h) * M
    b.row(t, to=to, x=stage, keep={"m": M})
    # The Euler step keeps d, so d = (y1 - x0)/rho' too: d1 - d = (x0 - x0_1)/rho', and
    # rho^/rho' = e^h. In x0 every term is of the size of x; over d the stage x^ + (rho' - rho^) d
    # would round at the size of rho^, and d1 raise that by 1/rho'.
    b.row(to, to=to, x=X + 0.5 * alpha * math.expm1(h) * (M - R("m")))


def flow_step(b: Builder, t: float, to: float) -> None:
    """In flow coordinates."""
    a, e = of_velocity(b, t, to)
    if b.level(to)[1] == 0.0:
        b.row(t, to=to, x=a * X + e * M)
        return
    b.row(t, to=to, x=a * X + e * M, keep={"m": M})
    b.row(to, to=to, x=X + 0.5 * e * (M - R("m")))
