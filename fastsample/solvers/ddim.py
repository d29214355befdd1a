"""DDIM, and DDPM as its eta = 1."""

from __future__ import annotations

import math

from ..plan import Plan
from ._begin import begin, number
from ._build import M, N, X


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
    level = b.half_log_snr
    for i in range(b.n):
        if b.sigma[i + 1] == 0.0:
            b.row(b.t[i], to=b.t[i + 1], x=b.alpha[i + 1] * M)
            continue
        h = level[i + 1] - level[i]
        left = math.exp(-2.0 * h)
        k = math.sqrt((1.0 - eta) * (1.0 + eta) + eta**2 * left)
        # alpha' (1 - k e^{-h}), rationalised
        of_x0 = b.alpha[i + 1] * -math.expm1(-2.0 * h) * (1.0 + eta**2 * left)
        of_x0 /= 1.0 + k * math.exp(-h)
        step = (k * b.sigma[i + 1] / b.sigma[i]) * X + of_x0 * M
        if eta:
            step = step + b.sigma[i + 1] * eta * math.sqrt(-math.expm1(-2.0 * h)) * N(i + 1)
        b.row(b.t[i], to=b.t[i + 1], x=step)
    cite = ["Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, eq. 12, arXiv:2010.02502"]
    note = {"order": 1, "orders": [1] * b.n, "compat": compat, "citations": cite}
    return b.build("ddim", arguments={"eta": eta, "compat": compat}, **note)
