"""Rows that only diffusers' classes make: steps of a fixed stride, DDPM's variances, PLMS. No
torch, no diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...model import Model, to_eps
from ...plan import Plan
from ...solvers._begin import number
from ...solvers._build import Builder, Lin, M, R, X
from ...solvers._exponential import ancestral, gain

RAW = Lin({"f": 1.0})  # the model's output as it is
# Adams-Bashforth, newest first
PLMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


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
    for i, (t, to) in enumerate(zip(b.t[:-1], map(float, ends), strict=True)):
        (alpha, sigma), at = b.level(t), b.level(to)
        p, q = to_eps(b.model.prediction, alpha, sigma)
        left = math.exp(-2.0 * _rise(b, t, to))
        k = math.sqrt((1.0 - eta) * (1.0 + eta) + eta**2 * left)
        x = at[0] * M + (k * at[1]) * (float(p) * X + float(q) * RAW)
        b.row(t, to=at, x=x + eta * at[1] * math.sqrt(1.0 - left) * b.noise(i) if eta else x)
    cite = ["Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, eq. 12, arXiv:2010.02502"]
    return b.build(
        "ddim with ends of its own",
        arguments={"ends": list(map(float, ends)), "eta": eta},
        consistent=False,
        order=1,
        orders=[1] * b.n,
        citations=cite,
    )


def plms(model: Model, grid, *, stride: float | None = None, first: int = 0) -> Plan:
    """x' = (alpha'/alpha) x - (alpha'/alpha) sigma (1 - e^{-h}) e, h = lambda' - lambda.

    e: the Adams-Bashforth sum of the last four eps.

    Orders 1, 2, 3, 4, 4, .. The first step is made twice: grid [t0, t1, t1, t2, .., end], and the
    call at the first t1 goes from t0 to t1 again, with the mean of both outputs, which is kept
    nowhere. One evaluation a point. Liu et al. 2022, PNDM, arXiv:2202.09778, eq. 9, 12 and 13,
    without the Runge-Kutta steps.

    stride: as diffusers has it. A step goes from t to t - stride, to the grid's end where t <
    stride; the sum is of the model's raw outputs, with v made an eps afterwards; the second call is
    the repeated one wherever a run begins, and so goes from t + stride to t. Without it a step goes
    to the next point, and only a run from the start (first = 0) repeats.
    """
    b, kept = Builder(model, grid, stored="eps"), []
    raw = stride is not None
    out = RAW if raw else M
    for i, (begin, to, again) in enumerate(_legs(b.t, stride, first)):
        (alpha, sigma), at = b.level(begin), b.level(to)
        if not raw and begin == to:
            # a run that begins at the repeated point asks there twice; the second call is used
            b.row(b.t[i], to=at, x=Lin(X))
            continue
        if again:
            combined, source, keep = 0.5 * out + 0.5 * R(kept[0]), R("begin"), {}
        else:
            seen = [out, *(R(name) for name in reversed(kept[-3:]))]
            combined = sum((w * f for w, f in zip(PLMS[len(seen) - 1], seen, strict=True)), Lin())
            kept.append(f"f{i}")
            source, keep = Lin(X), {kept[-1]: out} | ({"begin": Lin(X)} if i == 0 else {})
        p, q = to_eps(b.model.prediction, alpha, sigma) if raw else (0.0, 1.0)
        eps = float(p) * source + float(q) * combined if p else float(q) * combined
        x = (at[0] / alpha) * source - (at[0] / alpha * sigma * gain(_rise(b, begin, to))) * eps
        b.row(b.t[i], to=at, x=x, keep=keep)
    cite = [
        "Liu, Ren, Lin, Zhao 2022, Pseudo Numerical Methods for Diffusion Models on Manifolds, eq. "
        "9, 12, 13, arXiv:2202.09778"
    ]
    orders = [min(4, k + 1) for k in range(len(kept))]
    return b.build(
        "plms",
        arguments={"stride": stride},
        consistent=not raw,
        order=min(2, max(orders)),
        orders=orders,
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
        x, _ = ancestral(b, i, _rise(b, t, b.t[i + 1]), 1.0)
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


# -- inside ----------------------------------------------------------------------------------------
def _legs(
    times: np.ndarray, stride: float | None, first: int
) -> Iterator[tuple[float, float, bool]]:
    """(begin, to, again) of every step of plms: again, the first step for the second time."""
    for i, t in enumerate(times[:-1]):
        again = i == 1 and (stride is not None or first == 0)
        if stride is None:
            begin, to = (times[0], t) if again else (t, times[i + 1])
        elif again:
            begin, to = t + stride, t
        else:
            begin, to = t, t - stride if t >= stride else times[-1]
        yield begin, to, again


def _rise(b: Builder, t: float, to: float) -> float:
    """lambda(to) - lambda(t); 0 for a step of length 0."""
    return float(b.schedule.half_log_snr(to) - b.schedule.half_log_snr(t)) if t != to else 0.0
