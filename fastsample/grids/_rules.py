"""Spacing rules on bare numbers, which `fastsample.grids` puts on a schedule and
`interop.diffusers` on the levels of a config: n falling levels from high to low, or n falling
indices of a table of `size` levels.
"""

from __future__ import annotations

import numpy as np


def karras(low: float, high: float, n: int, rho: float = 7.0) -> np.ndarray:
    """Evenly in level^(1/rho)."""
    return np.linspace(high ** (1.0 / rho), low ** (1.0 / rho), n) ** rho


def exponential(low: float, high: float, n: int) -> np.ndarray:
    """Evenly in ln level."""
    return np.exp(np.linspace(np.log(high), np.log(low), n))


def polyexponential(low: float, high: float, n: int, rho: float = 1.0) -> np.ndarray:
    """ln level from high to low as u^rho, u even from 1 to 0."""
    return np.exp(np.log(low) + np.linspace(1.0, 0.0, n) ** rho * (np.log(high) - np.log(low)))


def kl_optimal(low: float, high: float, n: int) -> np.ndarray:
    """Evenly in arctan level."""
    return np.tan(np.linspace(np.arctan(high), np.arctan(low), n))


def beta(low: float, high: float, n: int, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """low + (high - low)·q, q the quantiles of Beta(a, b) at n even places from 1 to 0."""
    return low + quantiles(np.linspace(1.0, 0.0, n), a, b) * (high - low)


def quantiles(u: np.ndarray, a: float, b: float) -> np.ndarray:
    """The quantiles of Beta(a, b) at u. ImportError, one sentence, without scipy."""
    try:
        from scipy.special import betaincinv  # an optional dependency, of these grids alone
    except ImportError as error:
        raise ImportError(
            "grids: a beta spacing needs the quantiles of scipy; pip install 'fastsample[optimize]'"
        ) from error
    return betaincinv(a, b, u)


def linspace(size: float, n: int, extra: bool = False) -> np.ndarray:
    """Evenly from size - 1 to 0; one is size - 1. extra: of n + 1 the last is left out."""
    # upwards, so that halves are rounded as diffusers rounds them: 499.5 of 999/30 lies below
    return np.linspace(0.0 if n + extra > 1 else size - 1.0, size - 1.0, n + extra)[::-1][:n]


def leading(size: float, n: int, extra: bool = False, offset: float = 0.0) -> np.ndarray:
    """Multiples of floor(size/n), from 0 up, moved by an offset. extra: of n + 1 the first is left
    out.
    """
    return np.arange(n + extra)[::-1][:n] * float(size // (n + extra)) + offset


def trailing(size: float, n: int, last: float | None = None) -> np.ndarray:
    """Every size/n-th from the last, size by default, whose index is last - 1."""
    return (size if last is None else last) - np.arange(n) * (size / n) - 1.0


def linear_quadratic(n: int, threshold: float, linear: int) -> np.ndarray:
    """1 - f(i), i = 0..n: f = threshold·i/linear in the first `linear` steps, then the parabola
    that goes on from f(linear) = threshold to f(n) = 1 with the same slope.
    """
    i, rest = np.arange(n + 1.0), n - linear
    past = np.maximum(i - linear, 0.0)
    bend = (1.0 - threshold * n / linear) / rest**2 if rest else 0.0
    return 1.0 - (threshold / linear * i + bend * past**2)


def arctan_falls(n: int, middle: float, pivots: tuple, slopes: tuple) -> np.ndarray:
    """1 to middle to 0, n + 1 levels: each part an arctan about its pivot, a share of the n + 2
    places, of a slope a place that is 40/(n + 2) times the one given.
    """
    size = n + 2
    split = int((size * pivots[0] + size * pivots[1]) / 2.0)
    parts = []
    for count, pivot, slope, high, low in (
        (split, int(size * pivots[0]), slopes[0], 1.0, middle),
        (size - split, int(size * pivots[1]) - split, slopes[1], middle, 0.0),
    ):
        fall = -np.arctan(slope * 40.0 / size * (np.arange(count) - pivot))
        parts.append(low + (high - low) * (fall - fall[-1]) / (fall[0] - fall[-1]))
    return np.concatenate([parts[0][:-1], parts[1]])


def stretched(clean: np.ndarray, last: float, first: float = 0.0) -> np.ndarray:
    """1 - s of levels s stretched from 1 - first down so that their last is `last`; clean is 1 - s
    before.
    """
    return first + (clean - first) * ((1.0 - last - first) / (clean[-1] - first))


def vp(n: int, beta_d: float, beta_min: float, first: float) -> np.ndarray:
    """sqrt(e^(beta_d t²/2 + beta_min t) - 1), t even from 1 to `first`."""
    t = np.linspace(1.0, first, n)
    return np.sqrt(np.expm1(0.5 * beta_d * t * t + beta_min * t))


def laplace(n: int, mu: float, beta: float) -> np.ndarray:
    """e^(mu - beta·sign(½ - u)·ln(1 - 2|½ - u| + 1e-5)), u = 0..1, in n places: quantiles of a
    Laplace distribution of ln level.
    """
    u = np.linspace(0.0, 1.0, n)
    return np.exp(mu - beta * np.sign(0.5 - u) * np.log1p(1e-5 - 2.0 * np.abs(0.5 - u)))


def falls_to_data(n: int, mode: str, tail: int, finer: int, first: float = 1e-3) -> np.ndarray:
    """Levels s [n+1] of a flow, 1 - first to 0: 1 - t with t even in t^(1/2) ("power"), or with
    t + s_0 even in a logarithm from 10^first to 1/100 ("log"); the last `tail` steps are `finer`
    times as fine as the others.
    """
    coarse = n - (finer - 1) * tail
    fine = coarse * finer if tail else n
    if mode == "power":
        levels = 1.0 - np.linspace(first**0.5, 1.0, fine + 1) ** 2
    else:
        u = 10.0 ** np.linspace(first, -2.0, fine + 1)
        levels = (u - u[-1]) / (u[0] - u[-1] + first)
    if not tail:
        return levels
    split = (coarse - tail) * finer
    return np.concatenate([levels[:split:finer], levels[split:]])
