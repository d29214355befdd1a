"""Euler: DDIM's step, carried as a velocity where the schedule is a flow."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build
from ._build import resolve
from ._flow import is_flow
from ._multistep import Form, rows
from ._start import solver


@solver(
    "A",
    diffusers="EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler",
    k_diffusion="sample_euler",
    comfyui="euler",
)
def euler(
    model, grid, *, prediction=None, start=None, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """VP, VE, EDM: y' = y + (rho' - rho)·(y - x0)/rho, y = x/alpha, rho = sigma/alpha.
    Flow, TrigFlow, alpha = 0: y' = y + (s' - s)·v, y = x/(alpha + sigma),
    s = sigma/(alpha + sigma), v = eps - x0.

    Both are the one map x' = (sigma'/sigma)·x - alpha' expm1(-h)·x0, h = lambda' - lambda. First
    order, one evaluation a step, stores nothing; m is x0, or v on a flow (unless clip is given,
    which bounds x0). Karras et al. 2022, arXiv:2206.00364, Alg. 1 without its second stage;
    Liu et al. 2023, arXiv:2209.03003. compat changes nothing here.
    """
    found = resolve(model, prediction)
    flow = is_flow(found.schedule, grid) and not clip
    stored = "flow" if flow else "x0"
    b = begin(found, grid, None, start, stored=stored, inpaint=inpaint, clip=clip, compat=compat)
    orders = rows(b, Form("v" if flow else "x0"), 1)
    cite = (
        "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, Alg. 1, arXiv:2206.00364"
    )
    if flow:
        cite = "Liu, Gong, Liu 2023, Flow Straight and Fast, Alg. 1, arXiv:2209.03003"
    return build(b, "euler", {"compat": compat}, orders, cite)
