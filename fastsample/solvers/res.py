"""The refined exponential solver (RES) of two steps, and its ancestral form.

With kappa and k = e^{-kappa} of `_renoise`, H = h + kappa the width in lambda of the step down to
lambda' + kappa, and H_1 that of the step before::

    x' = (k sigma'/sigma)·x + alpha' (1 - e^{-H})·m + alpha' H phi_2(-H) (H/H_1)·(m - m_1)
       + sigma' sqrt(1 - k²) s_noise·n

which without noise, H = h, integrates the line through m and m_1 exactly. With noise m_1 stands
H_1 back too, and not h_1: what is expected of m - m_1 at x is H_1 times the slope along the
deterministic path, as x0's expectation is a martingale of the reverse equation with eta = 1.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ..plan import Plan
from ..schedules import Flow
from ._begin import begin, build, number
from ._build import M, R
from ._multistep import Form, rows
from ._renoise import Level, Step, bent, falls, rise
from ._start import solver

RES = (
    "Zhang, Song, Chen 2023, Improved Order Analysis and Design of Exponential Integrator for "
    "Diffusion Models Sampling, arXiv:2308.02157"
)


@solver("A", comfyui="res_multistep")
def res_multistep(
    model, grid, *, prediction=None, start=None, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """x' = (sigma'/sigma)·x + alpha' (1 - e^{-h})·m + alpha' h phi_2(-h) (h/h_1)·(m - m_1),
    h = lambda' - lambda, h_1 the step before; m is x0: dpmpp_2m's variant "heun".

    Second order, one evaluation a step, one output kept; first order where dpmpp_2m is. Zhang, Song
    and Chen 2023, arXiv:2308.02157. compat="comfyui" on Flow: dpmpp_2m's there.
    """
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    orders = rows(b, Form(), 2, on_sigma=compat == "comfyui")
    return build(b, "res_multistep", {"compat": compat}, orders, RES)


@solver("A", comfyui="res_multistep_ancestral")
def res_multistep_ancestral(
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
    """x' = (k sigma'/sigma)·x + alpha' (1 - e^{-H})·m + alpha' H phi_2(-H) (H/H_1)·(m - m_1)
    + sigma' sqrt(1 - k²) s_noise·n, m is x0.

    k = e^{-kappa} and the noise are those of `euler_ancestral`, on Flow of its rectified-flow form;
    H = h + kappa, and H_1 that of the step before: RES down, and the noise back up.

    eta >= 0 (on Flow at most 1), 0: res_multistep; 1 is dpmpp_2m_sde's variant "heun" but on Flow.
    s_noise scales the noise, and other values than 1 leave the schedule by design. Of weak order 2;
    one evaluation a step, one output kept. The first step, one from or after alpha = 0, to
    sigma = 0, and one that keeps no noise (a great eta) and the next are euler_ancestral's. Zhang,
    Song and Chen 2023, arXiv:2308.02157, with ComfyUI's noise. compat changes nothing here.
    """
    name = "res_multistep_ancestral"
    eta, s_noise = number(f"{name}: eta", eta), number(f"{name}: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    if isinstance(b.schedule, Flow):
        number(f"{name}: eta on Flow", eta, 0.0, 1.0)
    at, orders, before = Level.on(b), [], math.inf
    for i, ((s, t), kappa) in enumerate(zip(pairwise(at), falls(b, at, eta), strict=True)):
        width = rise(s, t) + kappa
        x, w = Step.of(s, t, kappa).over(s_noise * b.noise(i)), bent(width, before)
        orders.append(2 if w else 1)
        x = x + (t.alpha * w) * (R(f"m{i - 1}") - M) if w else x
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M})
        before = width
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    said = {"order": 1 if eta else max(orders), "consistent": s_noise == 1.0 or not eta}
    return build(b, name, words, orders, RES, **said)
