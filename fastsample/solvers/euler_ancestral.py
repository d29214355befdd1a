"""Euler ancestral: a step to a lower level than asked, then noise back up to it."""

from __future__ import annotations

import math

from ..plan import Plan
from ..schedules import Flow
from ._begin import begin, build, number
from ._build import Builder, Lin, M, X
from ._exponential import ancestral
from ._start import solver


@solver(
    "A",
    diffusers="EulerAncestralDiscreteScheduler",
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
    flow, level = isinstance(b.schedule, Flow), b.half_log_snr
    if flow:
        number("euler_ancestral: eta on Flow", eta, 0.0, 1.0)
    for i in range(b.n):
        move = _flow_step if flow and b.sigma[i + 1] > 0.0 else ancestral
        step, up = move(b, i, float(level[i + 1] - level[i]), eta)
        b.row(b.t[i], to=b.t[i + 1], x=step + up * s_noise * b.noise(i) if up else step)
    cite = (
        "Song et al. 2021, Score-Based Generative Modeling through SDEs, app. F (ancestral "
        "sampling), arXiv:2011.13456"
    )
    words = {"eta": eta, "s_noise": s_noise, "compat": compat}
    consistent = s_noise == 1.0 or not eta
    return build(b, "euler_ancestral", words, [1] * b.n, cite, consistent=consistent)


def _flow_step(b: Builder, i: int, h: float, eta: float) -> tuple[Lin, float]:
    """The step and its noise on Flow; every difference is written over g = sigma - sigma', which
    the levels give without cancelling.
    """
    sigma, target, alpha = b.sigma[i], b.sigma[i + 1], b.alpha[i + 1]
    g = alpha * sigma * -math.expm1(-h)
    lift = target * eta * g / sigma  # sigma' - down
    down, room = target - lift, alpha + lift  # room = 1 - down
    q = alpha / room
    # up² = (sigma' - q down)(sigma' + q down), sigma' - q down = lift/room
    up = math.sqrt(lift / room * (target + q * down))
    return (q * down / sigma) * X + q * (g / sigma) * (1.0 + eta * target / sigma) * M, up
