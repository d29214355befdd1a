"""DPM-Solver, multistep."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build, choice, number
from ._multistep import VARIANTS, Form, implemented, rows
from ._start import solver


@solver("A", usual=True, diffusers="DPMSolverMultistepScheduler (dpmsolver, sde-dpmsolver)")
def dpm_solver(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    order=2,
    variant="midpoint",
    eta=0.0,
    s_noise=1.0,
    lower_order_final=False,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (alpha'/alpha)·x - (1 + eta) sigma' (e^h - 1)·[e + (h/2h_1)·(e - e_1)]
         + sigma' sqrt(eta (e^{2h} - 1)) s_noise·n,  h = lambda' - lambda; e is eps.

    h_1 is the step before. order 1..3: outputs in the polynomial in lambda that is integrated
    exactly; variant "midpoint" has the weight above in a second-order step, "heun" the exact one.
    eta >= 0 is the strength of the noise (0: the ODE); with it exact outputs leave the schedule by
    O(h²), as the published form does. From alpha = 0, and into sigma = 0, a step is DDIM's (with
    eta the renewal of `dpmpp_2m_sde` from alpha = 0); outputs at alpha = 0 drop out.
    lower_order_final: order at most n - i in step i. One evaluation a step, order - 1 outputs kept.
    The data form is `dpmpp_2m`. Lu et al. 2022, arXiv:2206.00927, sec. 3; its noise: Lu et al.
    2022, arXiv:2211.01095, eq. 18.

    compat="diffusers": lower_order_final for n < 15, as its default configuration, and half of the
    second difference's weight in a third-order step, as in `dpmpp_3m`.
    """
    order = choice("dpm_solver: order", order, (1, 2, 3))
    choice("dpm_solver: variant", variant, tuple(VARIANTS))
    eta, s_noise = number("dpm_solver: eta", eta), number("dpm_solver: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    low = bool(lower_order_final) or (compat == "diffusers" and b.n < 15)
    form = Form("eps", eta=eta)
    weigh = VARIANTS[variant]
    if compat == "diffusers":
        weigh = implemented(weigh)
    orders = rows(b, form, order, low=low, s_noise=s_noise, weigh=weigh)
    words = {"order": order, "variant": variant, "eta": eta, "s_noise": s_noise}
    words |= {"lower_order_final": bool(lower_order_final), "compat": compat}
    cite = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver, sec. 3, arXiv:2206.00927"
    reached = 1 if eta else min(2, max(orders))
    return build(b, "dpm_solver", words, orders, cite, order=reached, consistent=not eta)
