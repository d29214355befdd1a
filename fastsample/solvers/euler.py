"""Euler: DDIM's step, carried as a velocity where the schedule is a flow."""

from __future__ import annotations

import math

from ..plan import Plan
from ._begin import begin, build, number
from ._build import ZERO, Builder, M, X
from ._churn import LARGEST, Churn
from ._exponential import gain
from ._flow import is_flow
from ._given import resolve
from ._multistep import Form, rows
from ._start import solver


@solver(
    "A",
    usual=True,
    diffusers="EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, EDMEulerScheduler, "
    "FlowMapEulerDiscreteScheduler (a Model told two times), MiniMaxH3Scheduler (velocity negated)",
    k_diffusion="sample_euler",
    comfyui="euler",
    diff_sampler="euler",
)
def euler(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=math.inf,
    s_noise=1.0,
    max_gamma=LARGEST,
    step_scale=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """VP, VE, EDM: y' = y + (rho' - rho)·(y - x0)/rho, y = x/alpha, rho = sigma/alpha.
    Flow, TrigFlow, alpha = 0: y' = y + (s' - s)·v, y = x/(alpha + sigma),
    s = sigma/(alpha + sigma), v = eps - x0.

    Both are the one map x' = (sigma'/sigma)·x - alpha' expm1(-h)·x0, h = lambda' - lambda. First
    order, one evaluation a step, stores nothing; m is x0, or v on a flow (unless clip is given,
    which bounds x0). Karras et al. 2022, arXiv:2206.00364, Alg. 1 and 2 without their second stage;
    Liu et al. 2023, arXiv:2209.03003. compat changes nothing here.

    With churn, as `heun` has it, or a step_scale > 0, which multiplies rho' - rho, it is the first
    form on any grid that starts at alpha > 0; another step_scale than 1, and another s_noise, leave
    the schedule by design. AlphaFold 3's sampler (Abramson et al. 2024, suppl. Alg. 18,
    doi:10.1038/s41586-024-07487-w) is step_scale=1.5, s_noise=1.003, max_gamma=.8, s_churn=.8·n
    and, since it looks at the level a step ends at, s_tmin = the level before the last one above 1.
    """
    found = resolve(model, prediction)
    words = {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise, "max_gamma": max_gamma}
    churn = Churn.given("euler", s_tmax=s_tmax, **words)
    scale = number("euler: step_scale", step_scale)
    if scale == 0.0:
        raise ValueError("euler: step_scale = 0 never moves; a number above 0 is accepted")
    stirred = churn.s_churn > 0.0 or scale != 1.0
    flow = is_flow(found.schedule, grid) and not clip and not stirred
    stored = "flow" if flow else "x0"
    b = begin(found, grid, None, start, stored=stored, inpaint=inpaint, clip=clip, compat=compat)
    orders = _stirred(b, churn, scale) if stirred else rows(b, Form("v" if flow else "x0"), 1)
    cite = (
        "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, Alg. 1, arXiv:2206.00364"
    )
    if flow:
        cite = "Liu, Gong, Liu 2023, Flow Straight and Fast, Alg. 1, arXiv:2209.03003"
    words = {**churn.words(), "step_scale": scale, "compat": compat}
    return build(b, "euler", words, orders, cite, consistent=churn.consistent and scale == 1.0)


def _stirred(b: Builder, churn: Churn, scale: float) -> list[int]:
    """The rows of every step with churn and a step_scale c:
    y' = (1 - c (1 - e^{-h}))·y^ + c (1 - e^{-h})·x0, e^{-h} = rho'/rho^.
    """
    if b.alpha[0] == 0.0:
        raise ValueError(
            f"euler: s_churn = {churn.s_churn:g} and step_scale = {scale:g} on a grid that starts "
            "at alpha = 0, where rho is infinite; 0 and 1, or a start at alpha > 0, are accepted"
        )
    for i in range(b.n):
        t, to = churn.lift(b, i), b.t[i + 1]
        h, alpha = b.rise(t, to), b.level(to)[0]
        kept = alpha / b.level(t)[0] * ((1.0 - scale) + scale * math.exp(-h))
        b.row(t, to=to, x=(kept * X if kept else ZERO) + alpha * scale * gain(h) * M)
    return [1] * b.n
