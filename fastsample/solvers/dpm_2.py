"""DPM-2: the midpoint rule at the middle of ln sigma, as k-diffusion has it."""

from __future__ import annotations

import math

from ..plan import Plan
from ._begin import build
from ._build import Builder
from ._churn import LARGEST, Churn
from ._exponential import gain
from ._flow import begin_in
from ._given import resolve
from ._stages import first_order, of_slopes, stages
from ._start import solver


@solver(
    "A",
    diffusers="KDPM2DiscreteScheduler",
    k_diffusion="sample_dpm_2",
    comfyui="dpm_2",
    diff_sampler="dpm",
)
def dpm_2(
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
    """y1 = y + (u1 - u)·f, u1 = sqrt(u·u');  y' = y + (u' - u)·f1.

    y = x/alpha, u = rho = sigma/alpha, f = (y - x0)/rho on VP, VE and EDM (space "rho"), where it
    is `dpm_solver_singlestep` of order 2; y = x/(alpha + sigma), u = sigma/(alpha + sigma),
    f = eps - x0 on Flow, TrigFlow and from alpha = 0 (space "flow"); space overrides. In space
    "rho" the other words add noise first, as in `heun`. Second order, two evaluations a step; a
    step to sigma = 0, where u1 = u' = 0, is of first order with one. Keeps one output. compat
    changes nothing here. Karras et al. 2022, arXiv:2206.00364, Alg. 2 with the midpoint of Lu et
    al. 2022, arXiv:2206.00927, Alg. 1, in the form of k-diffusion's sample_dpm_2.
    """
    found = resolve(model, prediction)
    words = {"s_churn": s_churn, "s_tmin": s_tmin, "s_noise": s_noise, "max_gamma": max_gamma}
    churn = Churn.given("dpm_2", s_tmax=s_tmax, **words)
    words = {"start": start, "inpaint": inpaint, "clip": clip, "compat": compat}
    b, kind = begin_in("dpm_2", space, found, grid, s_churn=churn.s_churn, **words)
    for i in range(b.n):
        begin = float(b.t[i]) if kind == "flow" else churn.lift(b, i)
        if b.sigma[i + 1] == 0.0:
            first_order(b, i, begin)
        elif kind == "flow":
            stages(b, i, [begin, _middle(b, i), float(b.t[i + 1])], [[1.0], [0.0, 1.0]])
        else:
            h = b.rise(begin, float(b.t[i + 1]))
            middle = float(b.schedule.time(b.half_log_snr[i + 1] - 0.5 * h))
            slopes = [[0.0], [0.0, -gain(h) * math.exp(0.5 * h)]]
            stages(b, i, [begin, middle, float(b.t[i + 1])], of_slopes(slopes))
    orders = [1 if b.sigma[i + 1] == 0.0 else 2 for i in range(b.n)]
    cite = "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, arXiv:2206.00364"
    arguments = {"space": space, **churn.words(), "compat": compat}
    return build(b, "dpm_2", arguments, orders, cite, consistent=churn.consistent)


def _middle(b: Builder, i: int) -> float:
    """The time at s_1 = sqrt(s·s'), where 1 - s_1 = ((1 - s) + s (1 - s'))/(1 + s_1)."""
    n = b.alpha[i : i + 2] + b.sigma[i : i + 2]
    (s, target), (clean, cleaner) = b.sigma[i : i + 2] / n, b.alpha[i : i + 2] / n
    middle = math.sqrt(s * target)
    rest = (clean + s * cleaner) / (1.0 + middle)
    return float(b.schedule.time(math.log(rest / middle)))
