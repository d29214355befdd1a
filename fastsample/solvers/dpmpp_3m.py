"""DPM-Solver++(3M), and its SDE."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build, number
from ._multistep import Form, halved, implemented, published, rows
from ._start import solver


@solver(
    "A",
    usual=True,
    diffusers="DPMSolverMultistepScheduler (solver_order=3)",
    diff_sampler="dpmpp (max_order=3)",
)
def dpmpp_3m(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    lower_order_final=False,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (sigma'/sigma)·x + alpha' [h phi_1·m + h phi_2·D1 + 2 h phi_3·D2],
    phi_k = phi_k(-h), h = lambda' - lambda; m is x0.

    r0 = h_1/h, r1 = h_2/h, D10 = (m - m_1)/r0, D11 = (m_1 - m_2)/r1,
    D1 = D10 + r0/(r0 + r1)·(D10 - D11), D2 = (D10 - D11)/(r0 + r1): the parabola through the last
    three outputs, integrated exactly. Orders 1, 2, 3, 3, ...; a step to sigma = 0 is of first
    order, and outputs at alpha = 0 drop out (the limits). lower_order_final: orders 2 and 1 in the
    last two steps. One evaluation a step, two outputs kept. Started at order 1 the whole run is of
    second order. Lu et al. 2022, arXiv:2211.01095, app. B, with 2 h phi_3 where every
    implementation has h phi_3: D2 is half of h² times the second derivative.

    compat="diffusers": h phi_3, the midpoint weight in the second-order step, and lower_order_final
    for n < 15, as its default configuration. compat="k-diffusion": h phi_3, as in its 3M SDE.
    """
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    low = bool(lower_order_final) or (compat == "diffusers" and b.n < 15)
    orders = rows(b, Form(), 3, low=low, weigh=WEIGHED[compat])
    cite = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, app. B (3M), arXiv:2211.01095"
    words = {"lower_order_final": bool(lower_order_final), "compat": compat}
    return build(b, "dpmpp_3m", words, orders, cite, order=min(2, max(orders)))


@solver("A", k_diffusion="sample_dpmpp_3m_sde", comfyui="dpmpp_3m_sde, dpmpp_3m_sde_gpu")
def dpmpp_3m_sde(
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
    """`dpmpp_3m` with the noise of `dpmpp_2m_sde`: H = (1 + eta) h in place of h in the weights,
    e^{-eta h} beside x, and sigma' sqrt(1 - e^{-2 eta h}) s_noise·n.

    eta >= 0 is the strength of the SDE's noise (0: dpmpp_3m). One evaluation a step, two outputs
    kept; no noise in a step to sigma = 0. Lu et al. 2022, arXiv:2211.01095, app. B, in the form of
    k-diffusion. s_noise other than 1 leaves the schedule by design.

    compat="k-diffusion" or "comfyui": half of the second difference's weight, as in `dpmpp_3m`.
    compat="diffusers": that with a sign the wrong way, which leaves a step of first order, the
    midpoint in the second-order step, and orders 2 and 1 in the last two for n < 15.
    """
    eta, s_noise = number("dpmpp_3m_sde: eta", eta), number("dpmpp_3m_sde: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    low = compat == "diffusers" and b.n < 15
    orders = rows(b, Form(eta=eta), 3, low=low, s_noise=s_noise, weigh=WEIGHED_SDE[compat])
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    cite = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, app. B (3M), arXiv:2211.01095"
    order, consistent = 1 if eta else min(2, max(orders)), s_noise == 1.0 or not eta
    return build(b, "dpmpp_3m_sde", words, orders, cite, order=order, consistent=consistent)


WEIGHED = {"exact": None, "k-diffusion": published, "comfyui": published}
WEIGHED_SDE = WEIGHED | {"diffusers": implemented(halved, wrong=True)}
WEIGHED |= {"diffusers": implemented(halved)}
