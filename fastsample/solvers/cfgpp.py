"""CFG++: the guided prediction is gone towards, the direction is the unguided one's.

With D the guided x0, D_u that of the base branch (the unconditional one) and a step
x' = a·x + b·D of another solver, whose x0 is to weigh alpha' and whose noise e^{-H} alpha' less::

    x' = a·x + b·D + e^{-H} alpha'·(D - D_u)

so that D weighs alpha' and eps is that of D_u. `guidance.guided` gives a plan its branches; with
one branch D = D_u and the step is the other solver's. Chung et al. 2024, arXiv:2406.08070, Alg. 2.
"""

from __future__ import annotations

import math

from ..model import to_kind
from ..plan import Plan
from ._begin import begin, build, number
from ._build import ZERO, Builder, F, Lin, M, X
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


def _turned(b: Builder, i: int, H: float) -> Lin:
    """e^{-H} alpha'·(D - D_u); nothing from alpha = 0, to sigma = 0 and over no length."""
    share = math.exp(-H) * float(b.alpha[i + 1])
    return share * (M - _unguided(b, i)) if share and H else ZERO


def _unguided(b: Builder, i: int) -> Lin:
    """D_u, over x and the model's raw output."""
    levels = float(b.alpha[i]), float(b.sigma[i])
    p, q = to_kind("x0", b.model.prediction, *levels, b.model.sigma_data)
    return (float(p) * X if p else ZERO) + float(q) * F(0)
