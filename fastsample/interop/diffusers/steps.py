"""Rows that only diffusers' classes make: steps on pairs of points, steps of a fixed stride, PLMS.
No torch, no diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ... import solvers
from ...model import Model, to_eps
from ...plan import Plan
from ...solvers._begin import number
from ...solvers._build import ANCHOR, Builder, Lin, M, N, R, X
from ...solvers._exponential import gain, weights

RAW = Lin({"f": 1.0})  # the model's output as it is
# Adams-Bashforth, newest first
PLMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pairs(
    model: Model, grid, *, variant: str = "midpoint", lower_order_final: bool = True, first: int = 0
) -> Plan:
    """DPM-Solver++(2S) on grid points in pairs, as diffusers' singlestep class walks them: point i
    is the stage of the step i-1 -> i+1.

    h = lambda_{i+1} - lambda_{i-1}, r = (lambda_i - lambda_{i-1})/h, m and m1 the outputs (x0) at
    i-1 and i:
    x_i = (sigma_i/sigma)·x + alpha_i (1 - e^{-rh})·m
    x_{i+1} = (sigma_{i+1}/sigma)·x + alpha_{i+1} (1 - e^{-h})·[m + (m1 - m)/(2r)], or "heun": the
    line through m and m1 integrated exactly.

    A step to sigma = 0, or from alpha = 0, is one of first order; lower_order_final makes the last
    two of an even number so. One evaluation a point. first: how many points of the whole grid were
    left out, so that the same points pair up. Lu et al. 2022, arXiv:2211.01095, Alg. 1.
    """
    b = Builder(model, grid, stored="x0")
    level, orders = b.half_log_snr, []
    for i in range(b.n):
        second = (
            i > 0
            and (i + first) % 2 == 1
            and bool(np.isfinite(level[[i - 1, i + 1]]).all())
            and not (lower_order_final and i == b.n - 1)
        )
        orders.append(2 if second else 1)
        alpha, sigma = b.alpha[i + 1], b.sigma[i + 1]
        if not second:
            h = float(level[i + 1] - level[i])
            x = alpha * gain(h) * M + (Lin() if sigma == 0.0 else (sigma / b.sigma[i]) * X)
            b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M}, anchor=X)
            continue
        h = float(level[i + 1] - level[i - 1])
        r = float(level[i] - level[i - 1]) / h
        w = gain(h) / (2.0 * r) if variant == "midpoint" else weights((0.0, r), h)[1]
        x = (sigma / b.sigma[i - 1]) * Lin({ANCHOR: 1.0}) + alpha * (
            (gain(h) - w) * R(f"m{i - 1}") + w * M
        )
        b.row(b.t[i], to=b.t[i + 1], x=x)
    cite = ["Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, Alg. 1 (2S), arXiv:2211.01095"]
    return b.build(
        "dpmpp_2s on pairs",
        arguments={"variant": variant},
        order=max(orders),
        orders=orders,
        citations=cite,
    )


def strided(model: Model, grid, *, stride: float, eta: float = 0.0, clip: float = 0.0) -> Plan:
    """DDIM from every point t of the grid to t - stride, wherever its next point lies; to the
    grid's end where t < stride.

    x' = alpha' m + sigma' (k eps + sqrt(1 - k²) n), k² = 1 - eta² (1 - e^{-2h}),
    h = lambda' - lambda: m is x0 within the clip, eps the direction of the model's raw output, not
    clipped. Where t - stride is not the next point, x stands off its label by that much. One
    evaluation a step. Song et al. 2021, arXiv:2010.02502, eq. 12 and 16.
    """
    eta, b = number("ddim: eta", eta, 0.0, 1.0), Builder(model, grid, stored="x0", clip=clip)
    for i, t in enumerate(b.t[:-1]):
        to = float(t - stride if t >= stride else b.t[-1])
        (alpha, sigma), at = b.level(t), b.level(to)
        p, q = to_eps(b.model.prediction, alpha, sigma)
        left = math.exp(-2.0 * _rise(b, t, to))
        k = math.sqrt((1.0 - eta) * (1.0 + eta) + eta**2 * left)
        x = at[0] * M + (k * at[1]) * (float(p) * X + float(q) * RAW)
        b.row(t, to=at, x=x + eta * at[1] * math.sqrt(1.0 - left) * N(i + 1) if eta else x)
    cite = ["Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, eq. 12, arXiv:2010.02502"]
    words = {"stride": stride, "eta": eta}
    return b.build(
        "ddim of a fixed stride",
        arguments=words,
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


def third(
    model: Model, grid, *, variant: str, lower_order_final: bool, euler_at_final: bool
) -> Plan:
    """dpmpp_3m with half the third-order weight, as implementations have it, and the variant's
    second step.

    lower_order_final: orders 2 and 1 in the last two steps; euler_at_final: 1 in the last.
    """
    # dpmpp_3m lowers shorter runs by itself, as the class does by default
    lowered = lower_order_final or len(grid) > 15
    compat = "diffusers" if variant == "midpoint" and lowered else "k-diffusion"
    made = solvers.dpmpp_3m(model, grid, lower_order_final=lower_order_final, compat=compat)
    if variant == "midpoint" and not lowered and made.nfe > 1:
        made = _with_row(made, 2, solvers.dpmpp_2m(model, grid))
    return _with_row(made, made.rows - 2, solvers.ddim(model, grid)) if euler_at_final else made


def sde_2m(model: Model, grid, *, variant: str) -> Plan:
    """dpmpp_2m_sde with a last step of first order."""
    made = solvers.dpmpp_2m_sde(model, grid, variant=variant)
    return _with_row(made, made.rows - 2, solvers.ddim(model, grid, eta=1.0))


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


def _with_row(made: Plan, row: int, other: Plan) -> Plan:
    """The plan with another's x' in one row. Both keep the same values in the same slots up to
    there.
    """
    table, reads, other = made.M.copy(), made.reads.copy(), other.padded(S=max(made.S, other.S))
    keeps = (made.dst[row] >= 0).any()
    table[row, 0] = other.M[row, 0]
    reads[row] = other.reads[row] | (reads[row] & 1 << (1 + made.S) if keeps else 0)
    solver = f"{made.note['solver']}, row {row} of {other.note['solver']}"
    return replace(made, M=table, reads=reads, note={**made.note, "solver": solver})


def _rise(b: Builder, t: float, to: float) -> float:
    """lambda(to) - lambda(t); 0 for a step of length 0."""
    return float(b.schedule.half_log_snr(to) - b.schedule.half_log_snr(t)) if t != to else 0.0
