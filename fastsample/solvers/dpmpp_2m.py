"""DPM-Solver++(2M)."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build, choice
from ._multistep import VARIANTS, Form, rows
from ._start import solver


@solver(
    "A",
    usual=True,
    diffusers="DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler",
    k_diffusion="sample_dpmpp_2m",
    comfyui="dpmpp_2m",
    diff_sampler="dpmpp",
)
def dpmpp_2m(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    variant="midpoint",
    lower_order_final=False,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (sigma'/sigma)·x + alpha' (1 - e^{-h})·[m + (h/2h_1)·(m - m_1)],
    h = lambda' - lambda, h_1 the step before; m is x0.

    variant "midpoint" (above); "heun" integrates the line through m and m_1 exactly: the weight of
    (m - m_1)·h/h_1 is h·phi_2(-h). Second order, one evaluation a step, one output kept; the first
    step, a step to sigma = 0 and the one after alpha = 0 are of first order (the limits).
    lower_order_final: the last step of first order whatever it ends in. Lu et al. 2022,
    arXiv:2211.01095, Alg. 2.

    compat="diffusers": lower_order_final for n < 15, as its default configuration.
    compat="comfyui": on Flow the line through m and m_1 is one in ln sigma, and h that of
    -ln sigma, from sigma = 1 on. k-diffusion's rows are the exact ones.
    """
    choice("dpmpp_2m: variant", variant, tuple(VARIANTS))
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    low = bool(lower_order_final) or (compat == "diffusers" and b.n < 15)
    words = {"variant": variant, "lower_order_final": bool(lower_order_final), "compat": compat}
    cite = "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, Alg. 2 (2M), arXiv:2211.01095"
    published = compat == "comfyui"
    reached = rows(b, Form(), 2, low=low, weigh=VARIANTS[variant], on_sigma=published)
    return build(b, "dpmpp_2m", words, reached, cite)
