"""DDIM, and DDPM as its eta = 1."""

from __future__ import annotations

from itertools import pairwise

from ..plan import Plan
from ._begin import begin, build, number
from ._build import ZERO, X
from ._renoise import Level, Step, ancestral
from ._start import solver


@solver(
    "A",
    usual=True,
    diffusers="DDIMScheduler, DDIMParallelScheduler, CogVideoXDDIMScheduler, DDPMScheduler (eta=1)",
    comfyui="ddim",
)
def ddim(
    model, grid, *, prediction=None, start=None, eta=0.0, inpaint=False, clip=0.0, compat="exact"
) -> Plan:
    """x' = (k sigma'/sigma)·x + (alpha' - k alpha sigma'/sigma)·x0 + sigma' sqrt(1 - k²)·n,
    k² = 1 - eta² (1 - e^{-2h}).

    h = lambda' - lambda; eta in [0, 1]: 0 deterministic, 1 ancestral (DDPM with the small
    variance). First order, one evaluation a step, stores nothing. In VP terms
    sigma' sqrt(1 - k²) = eta sqrt((1-a')/(1-a)) sqrt(1 - a/a'), a = alpha² (Song et al. 2021,
    arXiv:2010.02502, eq. 12 and 16); the form above is the same on any schedule. compat changes
    nothing here. Raises ValueError for an argument out of range.
    """
    eta = number("ddim: eta", eta, 0.0, 1.0)
    b = begin(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    for i, (s, t) in enumerate(pairwise(Level.on(b))):
        step = Step.of(s, t, ancestral(s, t, eta))
        # with noise x is read also where nothing of it is left: from alpha = 0, with eta = 1
        b.row(b.t[i], to=b.t[i + 1], x=(0.0 * X if step.c else ZERO) + step.over(b.noise(i)))
    cite = "Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, eq. 12, arXiv:2010.02502"
    return build(b, "ddim", {"eta": eta, "compat": compat}, [1] * b.n, cite)
