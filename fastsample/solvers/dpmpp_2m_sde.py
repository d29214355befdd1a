"""DPM-Solver++(2M) SDE."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build, choice, number
from ._multistep import VARIANTS, Form, rows
from ._start import solver


@solver(
    "A",
    diffusers="DPMSolverMultistepScheduler (sde-dpmsolver++), CogVideoXDPMScheduler, "
    "CosineDPMSolverMultistepScheduler",
    k_diffusion="sample_dpmpp_2m_sde",
    comfyui="dpmpp_2m_sde, dpmpp_2m_sde_gpu, dpmpp_2m_sde_heun (variant='heun'), "
    "dpmpp_2m_sde_heun_gpu (variant='heun')",
)
def dpmpp_2m_sde(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    eta=1.0,
    s_noise=1.0,
    variant="midpoint",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (sigma'/sigma) e^{-eta h}·x + alpha' (1 - e^{-H})·[m + (h/2h_1)·(m - m_1)]
         + sigma' sqrt(1 - e^{-2 eta h}) s_noise·n,  h = lambda' - lambda, H = (1 + eta) h; m is x0.

    h_1 is the step before. variant "midpoint" (above); "heun" integrates the line through m and m_1
    exactly: the weight of (m - m_1)·h/h_1 is H·phi_2(-H). eta >= 0 is the strength of the SDE's
    noise (0: dpmpp_2m). One evaluation a step, one output kept; first order where dpmpp_2m is; no
    noise in a step to sigma = 0. Lu et al. 2022, arXiv:2211.01095, eq. 19 (eta = 1), with
    k-diffusion's eta. s_noise other than 1 leaves the schedule by design; compat changes nothing.
    """
    eta, s_noise = number("dpmpp_2m_sde: eta", eta), number("dpmpp_2m_sde: s_noise", s_noise)
    choice("dpmpp_2m_sde: variant", variant, tuple(VARIANTS))
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    orders = rows(b, Form(eta=eta), 2, s_noise=s_noise, weigh=VARIANTS[variant])
    words = {"eta": eta, "s_noise": s_noise, "variant": variant, "compat": compat}
    cite = (
        "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, eq. 19 (SDE-DPM-Solver++ 2M), "
        "arXiv:2211.01095"
    )
    order, consistent = 1 if eta else max(orders), s_noise == 1.0 or not eta
    return build(b, "dpmpp_2m_sde", words, orders, cite, order=order, consistent=consistent)
