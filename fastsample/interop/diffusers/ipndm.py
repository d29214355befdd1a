"""IPNDMScheduler: its levels, which no table of betas has, and its rows. No torch, no diffusers.

x = cos(phi) x0 + sin(phi) eps with sin(phi) = sin²(pi s/2), s = 1, 1 - 1/n, .., 0, or with
trained_betas for the sines; the model is told 2 phi/pi and predicts v. (diffusers calls the sines
betas and the cosines alphas.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ...model import Model
from ...plan import Plan
from ...plan.given import numbers
from ...schedules import TrigFlow
from ...solvers._build import Builder, M, R, X
from ...solvers._exponential import gain
from ...solvers._multistep import lagrange
from .grids import Points, checked, count, falling

NAME = "IPNDMScheduler"
CITE = [
    "Zhang, Chen 2023, Fast Sampling of Diffusion Models with Exponential Integrator, app. H "
    "(iPNDM), arXiv:2204.13902"
]


def ipndm_points(config: Mapping, steps: int | None, timesteps=None, sigmas=None) -> Points:
    """The grid of `steps` steps, or of these timesteps [n], 2 phi/pi, or of these sigma/alpha
    [n+1], their end included.
    """
    if timesteps is not None:
        grid = np.append(falling("timesteps", timesteps, 1.0) * (math.pi / 2), 0.0)
    elif sigmas is not None:
        grid = np.arctan(falling("sigmas", sigmas, math.inf))
    elif config["trained_betas"] is not None:
        grid = np.arcsin(falling("trained_betas", _sines(config), 1.0))
        return checked(grid, grid[:-1] * (2 / math.pi))
    else:
        s = np.linspace(1.0, 0.0, count(steps) + 1) * (math.pi / 2)
        sine, cosine = np.sin(s), np.append(0.0, np.cos(s[1:]))
        grid = np.arctan2(sine**2, cosine * np.sqrt(1.0 + sine**2))
    count(steps, len(grid) - 1)
    return checked(grid, grid[:-1] * (2 / math.pi))


def ipndm_peer_points(peer) -> Points:
    """Those of the class itself."""
    sine, cosine = (np.asarray(v.cpu(), np.float64) for v in (peer.betas, peer.alphas))
    labels = np.asarray(peer.timesteps.cpu(), np.float64)
    return checked(np.arctan2(sine, cosine)[: len(labels) + 1], labels)


def ipndm_model(grid, labels) -> Model:
    """grid [n+1], labels [n] of a run; the class's own labels have its float32 rounding."""
    exact = np.array_equal(labels, grid[:-1] * (2 / math.pi))
    time = 2 / math.pi if exact else lambda t: np.interp(t, grid[-2::-1], labels[::-1])
    return Model(None, SCHEDULE, "v", time=time, model_id="unknown")


def ipndm(model: Model, grid) -> Plan:
    """x' = (alpha'/alpha)(x - sigma e) + sigma' e, e the Adams-Bashforth sum of the last four eps
    for even steps; from alpha = 0, where x = eps, x' = sigma' x, as diffusers has it.

    `solvers.ipndm` carries v on these levels, and so asks for x0 at alpha = 0 too. One evaluation
    a step. Zhang and Chen 2023, arXiv:2204.13902, app. H.
    """
    b = Builder(model, grid, stored="flow")
    for i, (alpha, sigma) in enumerate(
        zip(b.alpha[:-1].tolist(), b.sigma[:-1].tolist(), strict=True)
    ):
        here, older = (X + alpha * M) / (alpha + sigma), range(i - 1, max(-1, i - 4), -1)
        w = lagrange([float(j - i) for j in older], [1.0, 1 / 2, 1 / 3, 1 / 4])
        e = (1.0 - sum(w)) * here
        for weight, j in zip(w, older, strict=True):
            e = e + weight * R(f"m{j}")
        to, (target, noise) = b.t[i + 1], b.level(b.t[i + 1])
        x = noise * e
        if alpha:
            x = (target / alpha) * X - target / alpha * sigma * gain(b.rise(b.t[i], to)) * e
        b.row(b.t[i], to=to, x=x, keep={f"m{i}": here})
    words = {"order": min(2, b.n), "orders": [min(4, i + 1) for i in range(b.n)]}
    return b.build("ipndm of diffusers", consistent=bool(b.alpha[0]), citations=CITE, **words)


# -- inside ----------------------------------------------------------------------------------------
SCHEDULE = TrigFlow(t_min=1e-9)  # its lowest timestep of 1000 is 2.5e-6


def _sines(config: Mapping) -> np.ndarray:
    return numbers("FsScheduler: trained_betas", config["trained_betas"])
