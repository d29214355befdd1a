"""What the exact solution of the probability-flow ODE over lambda = ln(alpha/sigma) is made of, and
the steps of first order.
"""

from __future__ import annotations

import math

import numpy as np

# The recurrence for phi loses about k digits per power of ten below this; the series needs under
# 20 terms there.
SERIES_BELOW = 1.0


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
    """I_j = ∫_0^1 h e^{-(1-v)h} v^j dv = h·j!·phi_{j+1}(-h), j = 0..count-1; 1 for h = inf.

    By I_j = 1 - (j/h) I_{j-1}: upward from I_0, or where |h| < 1 downward from the last, a series.
    """
    if h == math.inf:
        return [1.0] * count
    found, last = [gain(h)], count - 1
    if abs(h) >= SERIES_BELOW:
        for j in range(1, count):
            found.append(1.0 - j / h * found[-1])
    elif last:
        total = term = h / count
        n = count
        while term * term > 1e-36 * total * total:
            n += 1
            term *= -h / n
            total += term
        down = [total]
        for j in range(last, 1, -1):
            down.append(h / j * (1.0 - down[-1]))
        found += down[::-1]
    return found


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
