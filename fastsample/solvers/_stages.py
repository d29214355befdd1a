"""Rows of one-step methods with stages.

Every stage, and the end, is x_k = a_k·x + sum_j w_kj·m_j with x the state the step begins at. Where
m is x0, with y = x/alpha, rho = sigma/alpha and e_j = (y_j - m_j)/rho_j the slope at stage j,

    x_k = (sigma_k/sigma)·x + alpha_k·[(1 - rho_k/rho)·m_0 + d_k],

and d_k is what the method adds to the first-order step. A method in slopes, y_k = y + sum_j B_kj
e_j with sum_j B_kj = rho_k - rho, has d_k = sum_j (B_kj/rho_j)·(m_0 - m_j + d_j), j >= 1: in y and
e_j the terms would be of the size of rho and cancel. B = (rho' - rho)·a of a classical tableau,
-rho_k·h·a(h) of an exponential one in noise form.

Where m is v = eps - x0, with n = alpha + sigma and s = sigma/n,

    x_k = (n_k/n)·x + n_k sum_j B_kj·m_j,  sum_j B_kj = s_k - s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._build import ZERO, Builder, Lin, M, R, X
from ._exponential import gain
from ._multistep import ROUNDING

BASE = R("anchor")  # the x a step begins at


def first_order(b: Builder, i: int, begin: float | None = None) -> None:
    """The step of order 1 from grid point i, or from time begin: DDIM's, over what is stored."""
    begin = b.t[i] if begin is None else begin
    a, w = (of_velocity if b.stored == "flow" else _of_x0)(b, begin, b.t[i + 1])
    b.row(begin, to=b.t[i + 1], x=a * X + w * M if a else w * M)


def stages(
    b: Builder,
    i: int,
    points: Sequence[float],
    added: Sequence[Sequence[float]],
    whole: bool = True,
) -> None:
    """The rows of step i: points are the times where it begins and asks, of its stages, where it
    asks too, and of its end. x_k of every stage and of the end, as the module's docstring has it.

    added[k][j], over x0: the weight of m_j in stage k beside alpha_k, in d_k for j >= 1; m_0 has
    what is left of 1 - rho_k/rho, or with whole=False added[k][0]. Over v: B_kj/(s_k - s).
    """
    for k, (own, *w) in enumerate(added):
        here, to = points[k : k + 2]
        if b.stored == "flow":
            a, scale = of_velocity(b, points[0], to)
        else:
            (a, first), scale = _of_x0(b, points[0], to), b.level(to)[0]
            own = first / scale - sum(w) if whole else own
        x = a * (BASE if k else X) if a else ZERO
        for j, weight in enumerate((own, *w)):
            if weight:
                x = x + scale * weight * (M if j == k else R(f"m{i}.{j}"))
        last = k == len(added) - 1
        words = {} if last else {"keep": {f"m{i}.{k}": Lin(M)}, "anchor": None if k else Lin(X)}
        b.row(here, to=to, x=x, **words)


def _of_x0(b: Builder, begin: float, to: float) -> tuple[float, float]:
    """(a, w) of x' = a·x + w·x0 of first order."""
    (alpha, sigma), before = b.level(to), b.level(begin)[1]
    return sigma / before, alpha * gain(b.rise(begin, to))


def of_velocity(b: Builder, begin: float, to: float) -> tuple[float, float]:
    """(a, w) of x' = a·x + w·v of first order: a = n'/n, w = n'(s' - s) without cancelling."""
    (alpha, sigma), (before, noise) = b.level(to), b.level(begin)
    n = before + noise
    a, w = (alpha + sigma) / n, alpha * noise / n * math.expm1(-b.rise(begin, to))
    return 1.0 if abs(a - 1.0) <= ROUNDING else a, w


def of_slopes(B: Sequence[Sequence[float]]) -> list[list[float]]:
    """w_kj of d_k = sum_j w_kj·(m_j - m_0) from B_kj/rho_j; numbers at j = 0 play no part."""
    weights: list[list[float]] = []
    for row in B:
        w = [0.0] * len(row)
        for j, slope in enumerate(row[1:], 1):
            w[j] -= slope
            for n, inner in enumerate(weights[j - 1]):
                w[n] += slope * inner
        weights.append(w)
    return weights


def between(b: Builder, levels: dict[int, Sequence[float]]) -> dict[int, list[float]]:
    """The points of the steps from these grid points whose stages stand at half log-SNRs levels[i];
    at that of the step's end it is the grid's time.
    """
    at = [(i, level) for i, row in levels.items() for level in row]
    times = b.schedule.time(np.array([level for _, level in at], float))
    b.visit(times)
    found = {i: [float(b.t[i])] for i in levels}
    for (i, level), t in zip(at, times.tolist(), strict=True):
        found[i].append(float(b.t[i + 1]) if level == b.half_log_snr[i + 1] else t)
    return {i: [*points, float(b.t[i + 1])] for i, points in found.items()}


def endless(b: Builder, i: int) -> bool:
    """Is h infinite: does the step from grid point i begin at alpha = 0 or end at sigma = 0?"""
    return b.alpha[i] == 0.0 or b.sigma[i + 1] == 0.0
