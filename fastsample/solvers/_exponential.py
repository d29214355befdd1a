"""Weights of exponential integrators, and the steps made of them.

The probability-flow ODE in data form, over lambda = ln(alpha/sigma) with h = lambda_t - lambda_s
(Lu et al. 2022, arXiv:2211.01095, eq. 8):

    x_t = (sigma_t/sigma_s)·x_s + alpha_t·∫_0^1 H e^{-(1-u)H} x0(u) du

H = h here, (1 + eta) h for the SDE. With x0(u) the polynomial through outputs at nodes u_k (in
steps of h from the newest, which stands at 0) the integral is sum_k w_k·x0_k, w_k = sum_j L_kj I_j,
L_kj the monomial coefficients of the Lagrange basis, I_j = H·j!·phi_{j+1}(-H); phi_0 = e^z and
phi_{k+1} = (phi_k - 1/k!)/z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._build import Builder, Lin, M, R, X

# The recurrence for phi loses about k digits per power of ten below this; the series needs under
# 20 terms there.
SERIES_BELOW = 1.0


class Levels(NamedTuple):
    """alpha, sigma and half_log_snr at the points of a path, noise to data."""

    alpha: Sequence[float]
    sigma: Sequence[float]
    half_log_snr: Sequence[float]

    @classmethod
    def of(cls, b: Builder) -> Levels:
        return cls(b.alpha, b.sigma, b.half_log_snr)


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum_n z^n/(n+k)!, z finite or -inf; by the series for |z| < 1, else recurrence."""
    if abs(z) < SERIES_BELOW:
        total, term, n = 0.0, 1.0 / math.factorial(k), 0
        while abs(term) > 1e-18 * abs(total):
            total, n = total + term, n + 1
            term *= z / (n + k)
        return total
    if k == 0:
        return math.exp(z)
    if k == 1:
        return math.expm1(z) / z
    return (phi(k - 1, z) - 1.0 / math.factorial(k - 1)) / z


def gain(h: float) -> float:
    """I_0 = 1 - e^{-h}, the whole weight of the predictions; 1 for h = inf."""
    return -math.expm1(-h)


def moments(h: float, count: int) -> list[float]:
    """I_j = ∫_0^1 h e^{-(1-u)h} u^j du = h·j!·phi_{j+1}(-h), j = 0..count-1; 1 for h = inf."""
    if math.isinf(h):
        return [1.0] * count
    return [gain(h)] + [h * math.factorial(j) * phi(j + 1, -h) for j in range(1, count)]


def weights(at: Sequence[float], h: float) -> list[float]:
    """w_k with sum_k w_k·y(u_k) = ∫_0^1 h e^{-(1-u)h} y(u) du for every polynomial y of
    degree < len(at); u_k = at[k], in steps of h.
    """
    integrals, found = moments(h, len(at)), []
    for k, node in enumerate(at):
        basis = np.ones(1)  # prod_{i != k} (u - u_i)/(u_k - u_i), lowest power first
        for i, other in enumerate(at):
            if i != k:
                basis = np.convolve(basis, [-other, 1.0]) / (node - other)
        found.append(float(sum(c * integral for c, integral in zip(basis, integrals, strict=True))))
    return found


def history(levels: np.ndarray, i: int, order: int) -> list[int]:
    """Grid points whose outputs a multistep row of this order reads at point i, newest first:
    i, i-1, ...

    A point with alpha = 0 (lambda = -inf) drops out: as its node goes to -inf its weight goes to 0,
    and the rest become those of one order less. So does one at the level of the next, on a grid
    with a step of length 0.
    """
    older = range(i - 1, max(-1, i - order), -1)
    return [i, *(j for j in older if np.isfinite(levels[j]) and levels[j] != levels[j + 1])]


def nodes(levels: np.ndarray, seen: Sequence[int], h: float) -> list[float]:
    """Where the outputs of these grid points stand, in steps of h from the newest, at 0."""
    return [0.0, *(float(levels[j] - levels[seen[0]]) / h for j in seen[1:])]


def multistep(
    at: Levels | Builder, i: int, seen: Sequence[int], w: Sequence[float], here: Lin = X
) -> Lin:
    """x' = (sigma'/sigma)·here + alpha' sum_k w_k·m_k from grid point i to i+1, over the outputs of
    the grid points seen; without the first term where sigma' = 0.
    """
    step = Lin() if at.sigma[i + 1] == 0.0 else (at.sigma[i + 1] / at.sigma[i]) * here
    for j, weight in zip(seen, w, strict=True):
        step = step + at.alpha[i + 1] * weight * (M if j == max(seen) else R(f"m{j}"))
    return step


def ancestral(b: Builder, i: int, h: float, eta: float) -> tuple[Lin, float]:
    """The step (k sigma'/sigma)·x + alpha' (1 - k e^{-h})·x0 from grid point i to i+1, and the
    noise it leaves room for, sigma' sqrt(1 - k²); k² = max(0, 1 - eta² (1 - e^{-2h})).
    """
    left = math.exp(-2.0 * h)
    alpha, sigma = b.alpha[i + 1], b.sigma[i + 1]
    rest = (1.0 - eta) * (1.0 + eta) + eta**2 * left
    if sigma == 0.0 or rest <= 0.0:
        return alpha * M, sigma
    k = math.sqrt(rest)
    # alpha' (1 - k e^{-h}), rationalised
    of_x0 = alpha * -math.expm1(-2.0 * h) * (1.0 + eta**2 * left) / (1.0 + k * math.exp(-h))
    return (k * sigma / b.sigma[i]) * X + of_x0 * M, sigma * eta * math.sqrt(-math.expm1(-2.0 * h))


def jump(schedule, t_from, t_to):
    """(a, b) of the one-step map x' = a·x + b·x0 from time t_from to t_to < t_from; arrays
    broadcast, float64.

    a = sigma'/sigma, b = -alpha'·expm1(lambda - lambda'): DDIM (Song et al. 2021, arXiv:2010.02502,
    eq. 12 with sigma_t = 0), which is also Euler in sigma/alpha on x/alpha, and Euler on rectified
    flow. Finite at both ends: a = 0, b = alpha' where sigma' = 0; b = alpha' where alpha = 0.
    """
    level, target = schedule.half_log_snr(t_from), schedule.half_log_snr(t_to)
    with np.errstate(invalid="ignore"):
        step = np.where(level == target, 0.0, target - level)
    return schedule.sigma(t_to) / schedule.sigma(t_from), -schedule.alpha(t_to) * np.expm1(-step)
