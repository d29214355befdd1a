"""CFG++: the guided prediction is gone towards, the direction is the unguided one's.

With D the guided x0, D_u that of the base branch (the unconditional one) and a step
x' = a·x + b·D of another solver, whose x0 is to weigh alpha' and whose noise e^{-H} alpha' less::

    x' = a·x + b·D + e^{-H} alpha'·(D - D_u)

so that D weighs alpha' and eps is that of D_u; or, of some solvers of second order as published,
their step by D_u from x + alpha·(D - D_u). `guidance.guided` gives a plan its branches; with one
branch D = D_u and the step is the other solver's. Chung et al. 2024, arXiv:2406.08070, Alg. 2.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from ..model import to_kind
from ..plan import Plan
from ._begin import begin, build, number
from ._build import ZERO, Builder, F, Lin, M, R, X
from ._exponential import gain
from ._flow import is_flow
from ._given import resolve
from ._multistep import Form, Levels, carried, halved, predicted, whole
from ._renoise import Level, Step, ancestral, bent, rise
from ._start import solver

CITE = "Chung, Kim, Park, Nam, Ye 2024, CFG++, arXiv:2406.08070"
BASE = "base branch"  # what a note says of a plan that reads it beside the guided output


@solver("A", comfyui="euler_cfg_pp, euler_ancestral_cfg_pp (eta=1)")
def euler_cfgpp(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=0.0,
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = alpha'·D + k sigma'·eps_u + sigma' sqrt(1 - k²) s_noise·n,
    eps_u = (x - alpha·D_u)/sigma

    D guided, D_u of the base branch, k² = max(0, 1 - eta² (1 - e^{-2h})), h = lambda' - lambda, on
    every schedule: euler_ancestral's noise in rho = sigma/alpha. eta >= 0, 0: euler. The scale of a
    run is classifier-free guidance's; 0 to 1 is the paper's range. clip bounds D alone. First
    order, one evaluation a step, stores nothing. s_noise other than 1 leaves the schedule by
    design; compat changes nothing here. Chung et al. 2024, arXiv:2406.08070, Alg. 2.
    """
    eta, s_noise = number("euler_cfgpp: eta", eta), number("euler_cfgpp: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    at, free = Level.on(b), _unguided(b)
    for i in range(b.n):
        kappa = ancestral(at[i], at[i + 1], eta)
        x = _euler(at[i], at[i + 1], free[i], kappa, s_noise * b.noise(i))
        b.row(b.t[i], to=b.t[i + 1], x=x)
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    said = {"consistent": s_noise == 1.0 or not eta, "direction": BASE}
    return build(b, "euler_cfgpp", words, [1] * b.n, CITE, **said)


@solver("A", comfyui="dpmpp_2m_cfg_pp")
def dpmpp_2m_cfgpp(
    model, grid, *, prediction=None, start=None, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """x' = alpha'·D + e^{-h}·(alpha'/alpha)·(x - alpha·D_u)
         + alpha' (1 - e^{-h}) (h/2h_1)·(D - D_u,1),  h = lambda' - lambda

    D guided, D_u of the base branch, D_u,1 and h_1 of the step before: dpmpp_2m where they are one.
    The first step, one to sigma = 0 and the one after alpha = 0 lack the last term. The scale of a
    run is classifier-free guidance's; clip bounds D alone. One evaluation a step, keeps one output.
    compat changes nothing here. Chung et al. 2024, arXiv:2406.08070, with ComfyUI's second order.
    """
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    levels, at, free, orders = Levels.of(b), Level.on(b), _unguided(b), []
    for i in range(b.n):
        x, order = predicted(levels, Form(), i, 2, weigh=halved)
        orders.append(order)
        x = x + _turned(at[i + 1], rise(at[i], at[i + 1]), free[i])
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": free[i]})
    return build(b, "dpmpp_2m_cfgpp", {"compat": compat}, orders, CITE, direction=BASE)


@solver("A", comfyui="dpmpp_2s_ancestral_cfg_pp")
def dpmpp_2s_ancestral_cfgpp(
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
    """u = x + alpha·(D - D_u);  x_s = (sigma_s/sigma)·u + alpha_s (1 - e^{lambda - lambda_s})·D,
    x' = (k sigma'/sigma)·u + alpha' (1 - e^{-H})·D_s + sigma' sqrt(1 - k²) s_noise·n

    D guided, D_u of the base branch, D_s guided at the stage, half-way from lambda to lambda + H,
    H = h - ln k, k as in `euler_cfgpp`, on every schedule: dpmpp_2s_ancestral in rho = sigma/alpha
    where D_u = D. A step from alpha = 0, to sigma = 0, or that keeps no noise (a great eta) is
    euler_cfgpp's. The scale of a run is classifier-free guidance's; clip bounds D and D_s alone.
    Two evaluations a step, keeps one value. s_noise other than 1 leaves the schedule by design;
    compat changes nothing here. Chung et al. 2024, arXiv:2406.08070, with ComfyUI's second order.
    """
    name = "dpmpp_2s_ancestral_cfgpp"
    eta, s_noise = number(f"{name}: eta", eta), number(f"{name}: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    at, free, orders = Level.on(b), _unguided(b), []
    kappas = [ancestral(s, t, eta) for s, t in pairwise(at)]
    widths = [rise(*ends) + kappa for ends, kappa in zip(pairwise(at), kappas, strict=True)]
    halves = [at[i].half_log_snr + 0.5 * H for i, H in enumerate(widths) if 0.0 < H < math.inf]
    middles = iter(Level.between(b, halves))
    for i, (H, kappa) in enumerate(zip(widths, kappas, strict=True)):
        step, noise = Step.of(at[i], at[i + 1], kappa), s_noise * b.noise(i)
        orders.append(2 if 0.0 < H < math.inf else 1)
        if orders[-1] == 1:
            b.row(b.t[i], to=b.t[i + 1], x=_euler(*at[i : i + 2], free[i], kappa, noise))
            continue
        time, mid = next(middles)
        u = X + at[i].alpha * (M - free[i])
        half = (mid.sigma / at[i].sigma) * u + mid.alpha * gain(rise(at[i], mid)) * M
        b.row(b.t[i], to=time, x=half, keep={"u": u})
        b.row(time, to=b.t[i + 1], x=step.over(noise, R("u")))
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    said = {"order": 1 if eta else max(orders), "consistent": s_noise == 1.0 or not eta}
    return build(b, name, words, orders, CITE, direction=BASE, **said)


@solver("A", comfyui="res_multistep_cfg_pp, res_multistep_ancestral_cfg_pp (eta=1)")
def res_multistep_cfgpp(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=0.0,
    s_noise=1.0,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """u = x + alpha·(D - D_u);  x' = (k sigma'/sigma)·u + alpha' (1 - e^{-H})·D_u
         + alpha' H phi_2(-H) (H/H_1)·(D_u - D_u,1) + sigma' sqrt(1 - k²) s_noise·n

    D guided, D_u of the base branch, D_u,1 and H_1 of the step before, H = h - ln k, k as in
    `euler_cfgpp`, on every schedule: res_multistep where D_u = D and eta = 0. The first step, one
    from alpha = 0, to sigma = 0, or that keeps no noise (a great eta) is euler_cfgpp's; the next
    after alpha = 0, or after no noise was kept, lacks the term of D_u,1. D weighs e^{-H} alpha', as
    published, where euler_cfgpp has alpha'. eta >= 0. The scale of a run is classifier-free
    guidance's; clip bounds D alone. One evaluation a step, keeps one output. s_noise other than 1
    leaves the schedule by design; compat changes nothing here. Chung et al. 2024,
    arXiv:2406.08070, with ComfyUI's second order.
    """
    name = "res_multistep_cfgpp"
    eta, s_noise = number(f"{name}: eta", eta), number(f"{name}: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    at, orders, before = Level.on(b), [], math.inf
    for i, (s, t, free) in enumerate(zip(at[:-1], at[1:], _unguided(b), strict=True)):
        kappa, noise = ancestral(s, t, eta), s_noise * b.noise(i)
        width = rise(s, t) + kappa
        w = bent(width, before)
        orders.append(2 if w else 1)
        if i and width < math.inf:
            x = Step.of(s, t, kappa).over(noise, X + s.alpha * (M - free), free)
            x = x + (t.alpha * w) * (R(f"m{i - 1}") - free) if w else x
        else:
            x = _euler(s, t, free, kappa, noise)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": free})
        before = width
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    said = {"order": 1 if eta else max(orders), "consistent": s_noise == 1.0 or not eta}
    return build(b, name, words, orders, CITE, direction=BASE, **said)


@solver("A", comfyui="gradient_estimation_cfg_pp")
def gradient_estimation_cfgpp(
    model, grid, *, prediction=None, start=None, gamma=2.0, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """x' = alpha'·D + sigma'·eps_u + n' (u' - u) (gamma - 1)·(d_u - d_u,1),
    eps_u = (x - alpha·D_u)/sigma

    D guided, D_u of the base branch, d_u its slope and d_u,1 that of the step before; n, u and d
    are alpha, sigma/alpha and eps, or, on a flow, alpha + sigma, sigma/n and eps - x0:
    gradient_estimation where D_u = D. The first step, and one to sigma = 0, is euler_cfgpp's. gamma
    from 1 (euler_cfgpp) to 5. The scale of a run is classifier-free guidance's; clip bounds D
    alone. First order, one evaluation a step, keeps one slope. compat changes nothing here. Chung
    et al. 2024, arXiv:2406.08070; Permenter and Yuan 2024, arXiv:2306.04848, Alg. 1.
    """
    gamma = number("gradient_estimation_cfgpp: gamma", gamma, 1.0, 5.0)
    found = resolve(model, prediction)
    carry = "v" if is_flow(found.schedule, grid) else "eps"
    b = begin(found, grid, None, start, inpaint=inpaint, clip=clip, compat=compat)
    levels, at, form = Levels.of(b), Level.on(b), Form(carry, "level")
    for i, (s, t, free) in enumerate(zip(at[:-1], at[1:], _unguided(b), strict=True)):
        x, slope = _euler(s, t, free), carried(levels, form, i).put("m", free)
        if i and t.sigma:
            x = x + ((gamma - 1.0) * whole(levels, form, i)) * (slope - R(f"d{i - 1}"))
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"d{i}": slope})
    words = {"gamma": gamma, "compat": compat}
    return build(b, "gradient_estimation_cfgpp", words, [1] * b.n, CITE, direction=BASE)


def _euler(s: Level, t: Level, free: Lin, kappa: float = 0.0, noise: Lin = ZERO) -> Lin:
    """euler_cfgpp's step."""
    return Step.of(s, t, kappa).over(noise) + _turned(t, rise(s, t) + kappa, free)


def _turned(t: Level, H: float, free: Lin) -> Lin:
    """e^{-H} alpha'·(D - D_u); nothing from alpha = 0, to sigma = 0 and over no length."""
    share = math.exp(-H) * t.alpha
    return share * (M - free) if share and H else ZERO


def _unguided(b: Builder) -> list[Lin]:
    """D_u at every point but the last [n], over x and the model's raw output."""
    levels = b.alpha[:-1], b.sigma[:-1]
    p, q = to_kind("x0", b.model.prediction, *levels, b.model.sigma_data)
    pairs = zip(*(np.broadcast_to(v, b.n).tolist() for v in (p, q)), strict=True)
    return [(of_x * X if of_x else ZERO) + of_raw * F(0) for of_x, of_raw in pairs]
