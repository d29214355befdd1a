"""The rows of DPM-Solver++(2M) and of its SDE: `dpmpp_2m` is the one without noise."""

from __future__ import annotations

import math

from ._build import Builder, M, N, X
from ._exponential import gain, history, multistep, weights


def rows(
    b: Builder, variant: str, *, low: bool = False, eta: float = 0.0, s_noise: float = 1.0
) -> list[int]:
    """The rows of every step, by the formula of `dpmpp_2m_sde`; returns their orders. low: the last
    step is of first order whatever it ends in.
    """
    level, orders = b.half_log_snr, []
    for i in range(b.n):
        sigma = b.sigma[i + 1]
        seen = history(level, i, 1 if sigma == 0.0 or (low and i == b.n - 1) else 2)
        orders.append(len(seen))
        h = float(level[i + 1] - level[i])
        H = (1.0 + eta) * h
        found = [gain(H)]
        if len(seen) == 2:
            back = float(level[i] - level[i - 1]) / h
            w = gain(H) / (2.0 * back) if variant == "midpoint" else -weights((0.0, -back), H)[1]
            found = [gain(H) + w, -w]
        step = multistep(b, i, seen, found, math.exp(-eta * h) * X if eta else X)
        if eta and sigma > 0.0:
            step = step + sigma * math.sqrt(-math.expm1(-2.0 * eta * h)) * s_noise * N(i + 1)
        b.row(b.t[i], to=b.t[i + 1], x=step, keep={f"m{i}": M})
    return orders
