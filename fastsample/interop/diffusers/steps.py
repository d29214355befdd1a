"""Rows that only diffusers' classes make: DDIM's steps of a fixed stride, DDPM's variances, Heun's
and LCM's steps of length 0. No torch, no diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...model import Model, to_eps
from ...plan import Plan
from ...solvers._begin import number
from ...solvers._build import Builder, Lin, M, R, X
from ...solvers._exponential import gain
from ...solvers.ddpm import rows
from ...solvers.lcm import bounded

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


def posterior(
    model: Model,
    grid,
    *,
    variance: str,
    betas: Sequence[float | None] = (),
    clip: float = 0.0,
) -> Plan:
    """`solvers.ddpm` as diffusers has it, on levels that may repeat; variance beside its own

        "learned_range"   the small one, whose noise is multiplied by what the model says
        "learned"         1, as above

    None in a step from t = 0. betas: those of steps that a class takes from a table of its own,
    not from their levels, None for the others. One evaluation a step. Ho et al. 2020,
    arXiv:2006.11239, eq. 7 and sec. 3.2.
    """
    b = Builder(model, grid, stored="x0", clip=clip)
    rows(b, variance, published=True, betas=betas)
    cite = ["Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239"]
    return b.build(
        f"ddpm, {variance}",
        consistent=variance == "fixed_small" and not betas,
        order=1,
        orders=[1] * b.n,
        citations=cite,
    )


def heun(model: Model, grid, *, clip: float = 0.0) -> Plan:
    """`solvers.heun` in rho = sigma/alpha, on levels that may repeat: a step of length 0 changes
    nothing, and asks the model twice like any other. Karras et al. 2022, arXiv:2206.00364, Alg. 1.
    """
    b = Builder(model, grid, stored="x0", clip=clip)
    for i, (t, to) in enumerate(zip(b.t, b.t[1:], strict=False)):
        h, (alpha, sigma), x = b.rise(t, to), b.level(to), X
        if h:
            x = alpha * gain(h) * M + ((sigma / b.sigma[i]) * X if sigma else Lin())
        b.row(t, to=to, x=x, keep={f"m{i}": M})
        if i < b.n - 1:
            slope = 0.5 * alpha * math.expm1(h) * (M - R(f"m{i}")) if h and sigma else Lin()
            b.row(to, to=to, x=X + slope)
    cite = ["Karras, Aittala, Aila, Laine 2022, Alg. 1, arXiv:2206.00364"]
    return b.build("heun of diffusers", order=2, orders=[2] * b.n, citations=cite)


def consistency(
    model: Model, grid, *, labels: Sequence[float], timestep_scaling: float, clip: float = 0.0
) -> Plan:
    """`solvers.lcm` with the boundary at the timesteps `labels` [n], on levels that may repeat: a
    step to its own level noises x0 back up to it. Luo et al. 2023, arXiv:2310.04378, sec. 4.
    """
    b = Builder(model, grid, stored="x0", clip=clip)
    for i, t in enumerate(b.t[:-1]):
        (alpha, sigma), clean = b.level(b.t[i + 1]), bounded(timestep_scaling * labels[i])
        drawn = b.noise(i) if sigma or i < b.n - 1 else Lin()
        b.row(t, to=b.t[i + 1], x=alpha * clean + sigma * drawn, reads=drawn)
    cite = ["Luo, Tan, Huang, Li, Zhao 2023, Latent Consistency Models, arXiv:2310.04378"]
    words = {"consistent": False, "order": 1, "orders": [1] * b.n, "citations": cite}
    return b.build("lcm of diffusers", **words)


def variances(at: tuple[float, float], to: tuple[float, float]) -> tuple[float, float]:
    """DDPM's small and large variance of the step between two (alpha, sigma)."""
    beta = 1.0 - (at[0] / to[0]) ** 2 if to[0] else 0.0
    return max(1e-20, (to[1] / at[1]) ** 2 * beta if at[1] else 0.0), beta
