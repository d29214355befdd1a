"""CFG++: the guided prediction is gone towards, the direction is the unguided one's.

With D the guided x0, D_u that of the base branch (the unconditional one) and a step
x' = a·x + b·D of another solver, whose x0 is to weigh alpha' and whose noise e^{-H} alpha' less::

    x' = a·x + b·D + e^{-H} alpha'·(D - D_u)

so that D weighs alpha' and eps is that of D_u. `guidance.guided` gives a plan its branches; with
one branch D = D_u and the step is the other solver's. Chung et al. 2024, arXiv:2406.08070, Alg. 2.
"""

from __future__ import annotations

import math
from itertools import pairwise

from ..model import to_kind
from ..plan import Plan
from ._begin import begin, build, number
from ._build import ZERO, Builder, F, Lin, M, R, X
from ._exponential import gain
from ._multistep import Form, Levels, halved, predicted
from ._renoise import Level, Step, ancestral, rise
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
    at = Level.on(b)
    for i in range(b.n):
        s, t = at[i], at[i + 1]
        kappa = ancestral(s, t, eta)
        x = Step.of(s, t, kappa).over(s_noise * b.noise(i)) + _turned(b, i, rise(s, t) + kappa)
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
    levels, at, orders = Levels.of(b), Level.on(b), []
    for i in range(b.n):
        x, order = predicted(levels, Form(), i, 2, weigh=halved)
        orders.append(order)
        x = x + _turned(b, i, rise(at[i], at[i + 1]))
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": _unguided(b, i)})
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
    at, orders = Level.on(b), []
    kappas = [ancestral(s, t, eta) for s, t in pairwise(at)]
    widths = [rise(*ends) + kappa for ends, kappa in zip(pairwise(at), kappas, strict=True)]
    halves = [at[i].half_log_snr + 0.5 * H for i, H in enumerate(widths) if 0.0 < H < math.inf]
    middles = iter(Level.between(b, halves))
    for i, (H, kappa) in enumerate(zip(widths, kappas, strict=True)):
        step, noise = Step.of(at[i], at[i + 1], kappa), s_noise * b.noise(i)
        orders.append(2 if 0.0 < H < math.inf else 1)
        if orders[-1] == 1:
            b.row(b.t[i], to=b.t[i + 1], x=step.over(noise) + _turned(b, i, H))
            continue
        time, mid = next(middles)
        u = X + at[i].alpha * (M - _unguided(b, i))
        half = (mid.sigma / at[i].sigma) * u + mid.alpha * gain(rise(at[i], mid)) * M
        b.row(b.t[i], to=time, x=half, keep={"u": u})
        b.row(time, to=b.t[i + 1], x=step.over(noise, R("u")))
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    said = {"order": 1 if eta else max(orders), "consistent": s_noise == 1.0 or not eta}
    return build(b, name, words, orders, CITE, direction=BASE, **said)


def _turned(b: Builder, i: int, H: float) -> Lin:
    """e^{-H} alpha'·(D - D_u); nothing from alpha = 0, to sigma = 0 and over no length."""
    share = math.exp(-H) * float(b.alpha[i + 1])
    return share * (M - _unguided(b, i)) if share and H else ZERO


def _unguided(b: Builder, i: int) -> Lin:
    """D_u, over x and the model's raw output."""
    levels = float(b.alpha[i]), float(b.sigma[i])
    p, q = to_kind("x0", b.model.prediction, *levels, b.model.sigma_data)
    return (float(p) * X if p else ZERO) + float(q) * F(0)
