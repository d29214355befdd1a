"""Euler ancestral: a step to a lower level than asked, then noise back up to it."""

from __future__ import annotations

from ..plan import Plan
from ..schedules import Flow
from ._begin import begin, build, number
from ._renoise import Level, Step, falls
from ._start import solver


@solver(
    "A",
    diffusers="EulerAncestralDiscreteScheduler, LTXEulerAncestralRFScheduler",
    k_diffusion="sample_euler_ancestral",
    comfyui="euler_ancestral",
)
def euler_ancestral(
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
    """In rho = sigma/alpha: up = min(rho', eta·rho' sqrt(rho² - rho'²)/rho),
    down = sqrt(rho'² - up²);
    x' = (alpha'/alpha)(down/rho)·x + alpha'(1 - down/rho)·x0 + alpha' up·n.

    On Flow the rectified-flow form, which keeps alpha = 1 - sigma:
    down = sigma'(1 - eta(1 - sigma'/sigma)), q = alpha'/(1 - down);
    x' = q (down/sigma)·x + q (1 - down/sigma)·x0 + sqrt(sigma'² - (q·down)²)·n.

    eta >= 0 (on Flow at most 1); s_noise scales the noise, and other values than 1 leave the
    schedule by design. First order, one evaluation a step, stores nothing. Song et al. 2021,
    arXiv:2011.13456, app. F, in the form of k-diffusion's sample_euler_ancestral, and that form
    restated for alpha = 1 - sigma. compat changes nothing here.
    """
    eta, s_noise = number("euler_ancestral: eta", eta), number("euler_ancestral: s_noise", s_noise)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    if isinstance(b.schedule, Flow):
        number("euler_ancestral: eta on Flow", eta, 0.0, 1.0)
    at = Level.on(b)
    for i, kappa in enumerate(falls(b, at, eta)):
        step = Step.of(at[i], at[i + 1], kappa)
        b.row(b.t[i], to=b.t[i + 1], x=step.over(s_noise * b.noise(i)))
    cite = (
        "Song et al. 2021, Score-Based Generative Modeling through SDEs, app. F (ancestral "
        "sampling), arXiv:2011.13456"
    )
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    consistent = s_noise == 1.0 or not eta
    return build(b, "euler_ancestral", words, [1] * b.n, cite, consistent=consistent)
