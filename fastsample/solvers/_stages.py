"""Rows of one-step methods with stages.

Every stage, and the end, is x_k = a_k·x + sum_j w_kj·m_j with x the state the step begins at. Where
m is x0, with y = x/alpha, rho = sigma/alpha and e_j = (y_j - m_j)/rho_j the slope at stage j,

    x_k = (sigma_k/sigma)·x + alpha_k·[(1 - rho_k/rho)·m_0 + d_k],

and d_k is what the method adds to the first-order step. A method in slopes, y_k = y + sum_j B_kj
e_j with sum_j B_kj = rho_k - rho, has d_k = sum_j (B_kj/rho_j)·(m_0 - m_j + d_j), j >= 1: in y and
e_j the terms would be of the size of rho and cancel. B = (rho' - rho)·a of a classical tableau,
-rho_k·h·a(h) of an exponential one in noise form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._build import ZERO, Builder, Lin, M, R, X
from ._exponential import gain

BASE = R("anchor")  # the x a step begins at


def stages(
    b: Builder, i: int, asked: Sequence[float], numbers: Sequence[tuple[float, Sequence[float]]]
) -> None:
    """The rows of one step from grid point i, which asks there and at the times of its stages;
    numbers: a_k and w_k of every stage and of the end.
    """
    points = [b.t[i], *asked, b.t[i + 1]]
    for k, (a, w) in enumerate(numbers):
        x = a * (BASE if k else X) if a else ZERO
        for j, weight in enumerate(w):
            if weight:
                x = x + weight * (M if j == k else R(f"m{i}.{j}"))
        last = k == len(asked)
        words = {} if last else {"keep": {f"m{i}.{k}": Lin(M)}, "anchor": None if k else Lin(X)}
        b.row(points[k], to=points[k + 1], x=x, **words)


def of_x0(
    b: Builder,
    i: int,
    asked: Sequence[float],
    added: Sequence[Sequence[float]],
    whole: bool = True,
) -> None:
    """`stages` over x0: added[k][j] is the weight of m_j in stage k beside alpha_k, in d_k for
    j >= 1. m_0 has what is left of 1 - rho_k/rho; whole=False: added[k][0], its own weight.
    """
    numbers = []
    for t, (own, *w) in zip([*asked, float(b.t[i + 1])], added, strict=True):
        alpha, sigma = b.level(t)
        first = gain(b.rise(b.t[i], t)) - sum(w) if whole else own
        numbers.append((sigma / b.sigma[i], [alpha * weight for weight in (first, *w)]))
    stages(b, i, asked, numbers)


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


def between(
    b: Builder, nodes: Sequence[float], levels: dict[int, Sequence[float]]
) -> dict[int, list[float]]:
    """When the steps from these grid points have their stages, at half log-SNRs levels[i]; a node
    of 1 is the step's end.
    """
    at = np.array([*levels.values()], float).reshape(len(levels), len(nodes))
    t = b.schedule.time(at)
    for k, node in enumerate(nodes):
        if node == 1.0:
            t[:, k] = b.t[[i + 1 for i in levels]]
    b.visit(t.ravel())
    return dict(zip(levels, t.tolist(), strict=True))


def endless(b: Builder, i: int) -> bool:
    """Is h infinite: does the step from grid point i begin at alpha = 0 or end at sigma = 0?"""
    return b.alpha[i] == 0.0 or b.sigma[i + 1] == 0.0


def shrunk(h: float, node: float) -> float:
    """rho_c/rho at rho + c (rho' - rho): 1 - c + c e^{-h}."""
    return 1.0 - node + node * math.exp(-h)
