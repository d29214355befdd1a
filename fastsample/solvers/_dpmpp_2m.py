"""The rows of DPM-Solver++(2M) and of its SDE: `dpmpp_2m` is the one without noise."""

from __future__ import annotations

import math

from ._build import ZERO, Builder, Lin, M, X
from ._exponential import Levels, gain, history, multistep, weights


def step(
    at: Levels,
    i: int,
    variant: str = "midpoint",
    most: int = 2,
    eta: float = 0.0,
    noise: Lin = ZERO,
) -> tuple[Lin, int]:
    """(x', order) of the step from point i, of order `most` at most, by the formula of
    `dpmpp_2m_sde`, s_noise·n being `noise`.
    """
    level, sigma = at.half_log_snr, at.sigma[i + 1]
    seen = history(level, i, 1 if sigma == 0.0 else most)
    h = float(level[i + 1] - level[i])
    H = (1.0 + eta) * h
    found = [gain(H)]
    if len(seen) == 2:
        back = float(level[i] - level[i - 1]) / h
        w = gain(H) / (2.0 * back) if variant == "midpoint" else -weights((0.0, -back), H)[1]
        found = [gain(H) + w, -w]
    x = multistep(at, i, seen, found, math.exp(-eta * h) * X if eta else X)
    if eta and sigma > 0.0:
        x = x + sigma * math.sqrt(-math.expm1(-2.0 * eta * h)) * noise
    return x, len(seen)


def rows(
    b: Builder, variant: str, *, low: bool = False, eta: float = 0.0, s_noise: float = 1.0
) -> list[int]:
    """The rows of every step; returns their orders. low: the last step is of first order whatever
    it ends in.
    """
    at, orders = Levels.of(b), []
    for i in range(b.n):
        most = 1 if low and i == b.n - 1 else 2
        x, order = step(at, i, variant, most, eta, s_noise * b.noise(i))
        orders.append(order)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M})
    return orders
