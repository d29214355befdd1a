"""DEIS: eps as a polynomial, integrated exactly."""

from __future__ import annotations

from ..plan import Plan
from ._begin import begin, build, choice
from ._multistep import Form, rows
from ._start import solver

VARIANTS = {"logrho": "lambda", "tab": "time", "rhoab": "level"}


@solver("A", usual=True, diffusers="DEISMultistepScheduler", comfyui="deis", diff_sampler="deis")
def deis(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    order=3,
    variant="logrho",
    lower_order_final=False,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (alpha'/alpha)·x + alpha' sum_k w_k e_k,  w_k = ∫ l_k d rho from rho to rho', rho =
    sigma/alpha; e is eps, l_k the polynomial that is 1 at the output k steps back, 0 at the others.

    order 1..4 outputs. variant: the polynomial's variable, "logrho" (log rho, as diffusers has it;
    finite orders above 1 end at sigma > 0, a step into sigma = 0 is of first order), "tab" (the
    schedule's time, the paper's tAB; by Gauss's rule, to rounding) or "rhoab" (rho, which is `lms`
    where eps is carried). From alpha = 0 the first step is DDIM's. lower_order_final: order at most
    n - i in step i. One evaluation a step, order - 1 outputs kept. Zhang and Chen 2023,
    arXiv:2204.13902, eq. 15 and sec. 3.

    compat="diffusers": lower_order_final for n < 15, as its default configuration.
    """
    order = choice("deis: order", order, (1, 2, 3, 4))
    choice("deis: variant", variant, tuple(VARIANTS))
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    low = bool(lower_order_final) or (compat == "diffusers" and b.n < 15)
    orders = rows(b, Form("eps", VARIANTS[variant]), order, low=low)
    words = {"order": order, "variant": variant, "lower_order_final": bool(lower_order_final)}
    words |= {"compat": compat}
    cite = "Zhang, Chen 2023, Fast Sampling of Diffusion Models with Exponential Integrator, "
    cite += "eq. 15, arXiv:2204.13902"
    return build(b, "deis", words, orders, cite, order=min(2, max(orders)))
