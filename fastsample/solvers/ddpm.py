"""DDPM: the posterior of a Markov chain, with the paper's two variances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ..plan import Plan
from ._begin import begin, build, choice
from ._build import ZERO, Builder
from ._exponential import gain
from ._renoise import Level, Step, rise
from ._start import solver

FLOOR = 1e-10  # of diffusers' deviations


@solver(
    "A",
    diffusers="DDPMScheduler, DDPMParallelScheduler, DDPMWuerstchenScheduler, "
    "UnCLIPScheduler (of a fixed variance; a learned one is no row)",
    comfyui="ddpm",
)
def ddpm(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    variance="fixed_small",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """x' = (e^{-h} sigma'/sigma)·x + alpha' (1 - e^{-2h})·x0 + d·n,  h = lambda' - lambda

    variance "fixed_small": d = sigma' sqrt(1 - e^{-2h}), which keeps to the schedule (ddim with
    eta = 1); "fixed_large": d = sigma sqrt(1 - e^{-2h}), in VP terms the root of
    beta = 1 - (alpha/alpha')², which leaves it by design. First order, one evaluation a step,
    stores nothing; no noise in a step to sigma = 0. compat="diffusers" draws in every step but one
    from t = 0, at least 1e-10·n. Ho et al. 2020, arXiv:2006.11239, eq. 7 and sec. 3.2, in the form
    that any schedule has.
    """
    choice("ddpm: variance", variance, ("fixed_small", "fixed_large"))
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    rows(b, variance, published=compat == "diffusers")
    cite = "Ho, Jain, Abbeel 2020, Denoising Diffusion Probabilistic Models, arXiv:2006.11239"
    words, still = {"variance": variance, "compat": compat}, variance == "fixed_small"
    return build(b, "ddpm", words, [1] * b.n, cite, consistent=still)


def rows(b: Builder, variance: str, *, published: bool, betas: Sequence[float | None] = ()) -> None:
    """The rows of every step; d = 1 for the variance "learned", which others multiply. betas: 1 -
    (alpha/alpha')² of each step for which it is told, in place of what the levels say, in

        x' = sqrt(1 - beta) (sigma'/sigma)²·x + alpha' beta/sigma²·x0 + d·n
    """
    for i, (s, t) in enumerate(pairwise(Level.on(b))):
        h = rise(s, t)
        step, renewed = Step.of(s, t, h), gain(2.0 * h)
        if betas and (beta := betas[i]) is not None:
            renewed = beta / s.sigma**2
            step = Step(math.sqrt(1.0 - beta) * (t.sigma / s.sigma) ** 2, t.alpha * renewed, 0.0)
        spread = math.sqrt(renewed)
        small = max(FLOOR, t.sigma * spread) if published else t.sigma * spread
        of = {"fixed_large": s.sigma * spread, "learned": 1.0}.get(variance, small)
        drawn = b.t[i] > 0.0 if published else t.sigma > 0.0
        x = step.over() + (of * b.noise(i) if drawn else ZERO)
        b.row(b.t[i], to=b.t[i + 1], x=x)
