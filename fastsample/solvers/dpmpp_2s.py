"""DPM-Solver++(2S): a stage half-way in lambda, then the step."""

from __future__ import annotations

import math

from ..plan import Plan
from ._begin import begin, build, number
from ._build import M, R, X
from ._exponential import gain
from ._multistep import Form, Levels, predicted
from ._start import solver

BASE = R("anchor")  # the x a step starts from


@solver(
    "A",
    diffusers="DPMSolverSinglestepScheduler",
    k_diffusion="sample_dpmpp_2s_ancestral (eta=0)",
    comfyui="dpmpp_2s_ancestral",
)
def dpmpp_2s(
    model, grid, *, prediction=None, start=None, r=0.5, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """x1 = (sigma1/sigma)·x + alpha1 (1 - e^{-rh})·m at lambda + r h;
    x' = (sigma'/sigma)·x + alpha' (1 - e^{-h})·[m + (m1 - m)/(2r)].

    m is x0, h = lambda' - lambda, 0 < r < 1. Second order, two evaluations a step. A step that
    starts at alpha = 0 or ends at sigma = 0 is of first order, with one evaluation: h is infinite
    there, and the limit of the two-stage step is that one. Keeps one output. Lu et al. 2022,
    arXiv:2211.01095, Alg. 1. compat changes nothing here (diffusers walks grid points in pairs
    instead of half steps).
    """
    r = number("dpmpp_2s: r", r, 0.0, 1.0)
    if r in (0.0, 1.0):
        raise ValueError(f"dpmpp_2s: r = {r:g}; a number inside (0, 1) is accepted")
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    at, level, orders = Levels.of(b), b.half_log_snr, []
    for i in range(b.n):
        h = float(level[i + 1] - level[i])
        orders.append(1 if math.isinf(h) else 2)
        if math.isinf(h):
            b.row(b.t[i], to=b.t[i + 1], x=predicted(at, Form(), i, 1)[0])
            continue
        mid = float(b.schedule.time(level[i] + r * h))
        stage = float(b.schedule.half_log_snr(mid) - level[i])  # of the time as rounded
        alpha_mid, sigma_mid = b.level(mid)
        half = (sigma_mid / b.sigma[i]) * X + alpha_mid * gain(stage) * M
        b.row(b.t[i], to=mid, x=half, keep={f"m{i}": M}, anchor=X)
        weight = 0.5 * h / stage
        mean = (1.0 - weight) * R(f"m{i}") + weight * M
        step = (b.sigma[i + 1] / b.sigma[i]) * BASE + b.alpha[i + 1] * gain(h) * mean
        b.row(mid, to=b.t[i + 1], x=step)
    cite = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, Alg. 1 (2S), arXiv:2211.01095"
    return build(b, "dpmpp_2s", {"r": r, "compat": compat}, orders, cite)
