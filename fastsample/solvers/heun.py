"""Heun: an Euler step, a second evaluation where it lands, the mean of both slopes; with churn.

rho space (VP, VE, EDM), y = x/alpha, rho = sigma/alpha, d = (y - x0)/rho::

    y^, rho^ = what churn makes of y and rho (`_churn`)
    y1   = y^ + (rho' - rho^)·d
    y'   = y1 + ½ (rho' - rho^)·(d1 - d)

flow space (Flow, TrigFlow, alpha = 0): the last two lines in y = x/(alpha + sigma),
s = sigma/(alpha + sigma) and v = eps - x0.

The stage's base is eliminated: x' = x1 + a multiple of (m1 - m), m = x0 in rho space and v in flow
space.
"""

from __future__ import annotations

import math

from ..grids import check
from ..plan import Plan
from ._begin import build
from ._churn import LARGEST, Churn
from ._flow import begin_in
from ._given import resolve
from ._heun import flow_step, rho_step
from ._start import solver


@solver(
    "A",
    usual=True,
    diffusers="HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler, KarrasVeScheduler "
    "(s_churn=80, s_noise=1.007)",
    k_diffusion="sample_heun",
    comfyui="heun",
    diff_sampler="heun",
)
def heun(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    space=None,
    s_churn=0.0,
    s_tmin=0.0,
    s_tmax=math.inf,
    s_noise=1.0,
    max_gamma=LARGEST,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """y' = y^ + ½ (rho' - rho^)·(d + d1), rho^ = (1 + gamma) rho the level after churn,
    gamma = min(s_churn/n, max_gamma) for s_tmin <= rho <= s_tmax.

    d = (y - x0)/rho, y = x/alpha, rho = sigma/alpha; on Flow and TrigFlow, and from alpha = 0,
    d = eps - x0, y = x/(alpha + sigma), and sigma/(alpha + sigma) for rho. d1 is d where an Euler
    step lands. space = "rho" or "flow" overrides. rho^ stays within the schedule (only EDM goes
    above its sigma_max). Second order, two evaluations a step,
    one for a last step to sigma = 0 (an Euler step): 2n - 1 in all. Keeps one output. s_noise other
    than 1 leaves the schedule by design; compat changes nothing here. Karras et al. 2022,
    arXiv:2206.00364, Alg. 1 and 2.
    """
    found = resolve(model, prediction)
    words = {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise, "max_gamma": max_gamma}
    churn = Churn.given("heun", s_tmax=s_tmax, **words)
    grid = check(found.schedule, grid)
    words = {"start": start, "inpaint": inpaint, "clip": clip, "compat": compat}
    b, kind = begin_in("heun", space, found, grid, s_churn=churn.s_churn, **words)
    step = flow_step if kind == "flow" else rho_step
    for i in range(b.n):
        step(b, b.t[i] if kind == "flow" else churn.lift(b, i), b.t[i + 1])
    words = {"space": space, **churn.words(), "compat": compat}
    orders = [1 if b.sigma[i + 1] == 0.0 else 2 for i in range(b.n)]
    cite = (
        "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, Alg. 1 and 2, "
        "arXiv:2206.00364"
    )
    return build(b, "heun", words, orders, cite, consistent=churn.consistent)
