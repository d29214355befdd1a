"""Ancestral solvers of two stages: to a lower level than asked by way of a level half-way there,
then noise back up.

With kappa of `_renoise`, lambda_d = lambda' + kappa the level gone down to, m_s the prediction at
the stage s and w a solver's own weight::

    x_s = (sigma_s/sigma)·x + alpha_s (1 - e^{lambda - lambda_s})·m
    x'  = (k sigma'/sigma)·x + alpha' (1 - e^{lambda - lambda_d})·[m + w (m_s - m)]
        + sigma' sqrt(1 - k²) s_noise·n,  k = e^{-kappa}
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from ..plan import Plan
from ..schedules import Flow
from ._begin import begin, build, number
from ._build import ZERO, Builder, M, R, X
from ._exponential import gain
from ._renoise import Level, Step, falls, rise
from ._start import solver

NUDGED = 0.9999  # where ComfyUI asks in place of a flow's sigma = 1
# lambda_s, w, 1 - w; None for a step of one evaluation
Stage = tuple[float, float, float] | None


@solver(
    "A",
    k_diffusion="sample_dpmpp_2s_ancestral",
    comfyui="dpmpp_2s_ancestral",
)
def dpmpp_2s_ancestral(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=1.0,
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (k sigma'/sigma)·x + alpha' (1 - e^{lambda - lambda_d})·m_s
    + sigma' sqrt(1 - k²) s_noise·n,
    m_s asked at x_s = (sigma_s/sigma)·x + alpha_s (1 - e^{lambda - lambda_s})·m.

    k = e^{-kappa} and the noise are those of `euler_ancestral`, on Flow of its rectified-flow form;
    lambda_d = lambda' + kappa, and lambda_s is half-way to it: DPM-Solver++(2S) down, and the noise
    back up.

    eta >= 0 (on Flow at most 1), 0: dpmpp_2s; s_noise scales the noise, and other values than 1
    leave the schedule by design. Of weak order 2; two evaluations a step. A step from alpha = 0, to
    sigma = 0, or that keeps no noise (a great eta) is euler_ancestral's, with one: its limit. Keeps
    one output.
    Lu et al. 2022, arXiv:2211.01095, Alg. 1, in the form of k-diffusion's
    sample_dpmpp_2s_ancestral. compat="comfyui" takes a stage at sigma = .9999 from a flow's
    sigma = 1; else it changes nothing here.
    """
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    given = {"prediction": prediction, "start": start, "inpaint": inpaint, "clip": clip}
    cite = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, Alg. 1 (2S), arXiv:2211.01095"
    stage = _half_or_nudged if compat == "comfyui" else _half
    return _plan("dpmpp_2s_ancestral", model, grid, words, given, stage, cite)


@solver(
    "A",
    diffusers="KDPM2AncestralDiscreteScheduler",
    k_diffusion="sample_dpm_2_ancestral",
    comfyui="dpm_2_ancestral",
)
def dpm_2_ancestral(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=1.0,
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """`dpmpp_2s_ancestral`'s x' with m + w (m_s - m) for m_s, the midpoint rule in
    rho = sigma/alpha on x/alpha: rho_s = sqrt(rho·rho_d), w = rho/rho_s. On Flow, as
    `euler_ancestral` there, in sigma on x: sigma_s = sqrt(sigma·sigma_d), w = sigma/sigma_s.

    eta >= 0 (on Flow at most 1); s_noise scales the noise, and other values than 1 leave the
    schedule by design. Of weak order 2; two evaluations a step. A step from alpha = 0 (but on
    Flow), to sigma = 0, or that keeps no noise (a great eta) is euler_ancestral's, with one. Keeps
    one output; w is large in a step over decades. Karras et al. 2022, arXiv:2206.00364, app. D.2,
    in the form of k-diffusion's sample_dpm_2_ancestral. compat changes nothing here.
    """
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    given = {"prediction": prediction, "start": start, "inpaint": inpaint, "clip": clip}
    cite = (
        "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, app. D.2, "
        "arXiv:2206.00364"
    )
    return _plan("dpm_2_ancestral", model, grid, words, given, _midpoint, cite)


def _plan(
    name: str, model, grid, words: dict, given: dict, stage: Callable[..., Stage], citation: str
) -> Plan:
    """stage(b, level, H, lambda_d): that of a step H wide in lambda, to lambda_d."""
    eta, s_noise = (number(f"{name}: {word}", words[word]) for word in ("eta", "s_noise"))
    b = begin(model, grid, compat=words["compat"], **given)
    if isinstance(b.schedule, Flow):
        number(f"{name}: eta on Flow", eta, 0.0, 1.0)
    at = Level.on(b)
    kappas = falls(b, at, eta)
    widths = [rise(*ends) + kappa for ends, kappa in zip(pairwise(at), kappas, strict=True)]
    stages = [
        stage(b, at[i], H, at[i + 1].half_log_snr + kappas[i]) if H else None
        for i, H in enumerate(widths)
    ]
    middles = iter(Level.between(b, [found[0] for found in stages if found]))
    for i, found in enumerate(stages):
        step, noise = Step.of(at[i], at[i + 1], kappas[i]), s_noise * b.noise(i)
        if found is None:
            b.row(b.t[i], to=b.t[i + 1], x=step.over(noise))
            continue
        (_, w, rest), (time, mid) = found, next(middles)
        half = (mid.sigma / at[i].sigma) * X + mid.alpha * gain(rise(at[i], mid)) * M
        mean = w * M + (rest * R(f"m{i}") if rest else ZERO)
        b.row(b.t[i], to=time, x=half, keep={f"m{i}": M}, anchor=X)
        b.row(time, to=b.t[i + 1], x=step.over(noise, R("anchor"), mean))
    words = {"eta": eta, "s_noise": s_noise, "compat": words["compat"]}
    orders = [1 if found is None else 2 for found in stages]
    order, consistent = 1 if eta else max(orders), s_noise == 1.0 or not eta
    return build(b, name, words, orders, citation, order=order, consistent=consistent)


def _half(b: Builder, s: Level, H: float, lower: float) -> Stage:
    return None if math.isinf(H) else (s.half_log_snr + 0.5 * H, 1.0, 0.0)


def _half_or_nudged(b: Builder, s: Level, H: float, lower: float) -> Stage:
    """`_half`, and from a flow's sigma = 1 a stage at NUDGED."""
    if s.alpha == 0.0 and math.isfinite(lower) and isinstance(b.schedule, Flow):
        return math.log(1.0 - NUDGED) - math.log(NUDGED), 1.0, 0.0
    return _half(b, s, H, lower)


def _midpoint(b: Builder, s: Level, H: float, lower: float) -> Stage:
    if not isinstance(b.schedule, Flow):
        h = 0.5 * H
        return None if math.isinf(H) else (s.half_log_snr + h, math.exp(h), -math.expm1(h))
    if math.isinf(lower):
        return None
    root = 1.0 / math.sqrt(s.sigma * (1.0 + math.exp(lower)))  # sigma_s/sigma
    fall = gain(H) / ((1.0 + math.exp(-lower)) * (1.0 + root))  # 1 - sigma_s/sigma
    middle = math.log(s.alpha + s.sigma * fall) - math.log(s.sigma * root)
    return middle, 1.0 / root, -fall / root
