"""Rows that only diffusers' classes make: DDIM's steps of a fixed stride, DDPM's variances. No
torch, no diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...model import Model, to_eps
from ...plan import Plan
from ...solvers._begin import number
from ...solvers._build import Builder, Lin, M, X
from ...solvers._exponential import ancestral

RAW = Lin({"f": 1.0})  # the model's output as it is


def strided(
    model: Model, grid, *, ends: Sequence[float], eta: float = 0.0, clip: float = 0.0
) -> Plan:
    """DDIM from every point of the grid to its own of `ends` [n], wherever the next point lies.

    x' = alpha' m + sigma' (k eps + sqrt(1 - k²) n), k² = 1 - eta² (1 - e^{-2h}),
    h = lambda' - lambda: m is x0 within the clip, eps the direction of the model's raw output, not
    clipped. Where a step does not end at the next point, x stands off its label by that much. One
    evaluation a step. Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.
    """
    eta, b = number("ddim: eta", eta, 0.0, 1.0), Builder(model, grid, stored="x0", clip=clip)
    ends = np.asarray(ends, dtype=np.float64)
    b.visit(ends)
    p, q = to_eps(b.model.prediction, b.alpha[:-1], b.sigma[:-1])
    legs = zip(*(v.tolist() for v in (b.t[:-1], ends, p, q)), strict=True)
    for i, (t, to, of_x, of_raw) in enumerate(legs):
        left, at = math.exp(-2.0 * b.rise(t, to)), b.level(to)
        k = math.sqrt((1.0 - eta) * (1.0 + eta) + eta**2 * left)
        x = at[0] * M + (k * at[1]) * (of_x * X + of_raw * RAW)
        b.row(t, to=at, x=x + eta * at[1] * math.sqrt(1.0 - left) * b.noise(i) if eta else x)
    cite = ["Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, eq. 12, arXiv:2010.02502"]
    return b.build(
        "ddim with ends of its own",
        arguments={"ends": ends.tolist(), "eta": eta},
        consistent=False,
        order=1,
        orders=[1] * b.n,
        citations=cite,
    )


def posterior(model: Model, grid, *, variance: str, clip: float = 0.0) -> Plan:
    """DDPM's posterior: the mean of `solvers.ddim` with eta = 1, and a noise of variance

        small = max(1e-20, (sigma'/sigma)² beta),  beta = 1 - (alpha/alpha')²: "fixed_small", and
                "learned_range", whose noise is multiplied by what the model says (`learned`)
        large = beta: "fixed_large"
        1     "learned", as above

    None in a step from t = 0. One evaluation a step. Ho et al. 2020, arXiv:2006.11239, eq. 7 and
    sec. 3.2.
    """
    b = Builder(model, grid, stored="x0", clip=clip)
    for i, t in enumerate(b.t[:-1]):
        x, _ = ancestral(b, i, b.rise(t, b.t[i + 1]), 1.0)
        small, large = variances(b.level(t), b.level(b.t[i + 1]))
        of = {"fixed_large": large, "learned": 1.0}.get(variance, small)
        b.row(t, to=b.t[i + 1], x=0.0 * X + x + (math.sqrt(of) * b.noise(i) if t > 0.0 else Lin()))
    cite = ["Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239"]
    return b.build(
        f"ddpm, {variance}",
        consistent=variance == "fixed_small",
        order=1,
        orders=[1] * b.n,
        citations=cite,
    )


def variances(at: tuple[float, float], to: tuple[float, float]) -> tuple[float, float]:
    """DDPM's small and large variance of the step between two (alpha, sigma)."""
    beta = 1.0 - (at[0] / to[0]) ** 2 if to[0] else 0.0
    return max(1e-20, (to[1] / at[1]) ** 2 * beta), beta
