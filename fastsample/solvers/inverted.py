"""Inversion: from an image up to the noise that a sampler would have begun with."""

from __future__ import annotations

import math

import numpy as np

from ..grids import check
from ..plan import Plan
from ..plan.given import reals
from ..schedules import Flow, TrigFlow
from ._begin import choice
from ._build import Builder, M, R, X
from ._given import resolve

CITATIONS = {
    "ddim": "Song, Meng, Ermon 2021, Denoising Diffusion Implicit Models, sec. 4.3, "
    "arXiv:2010.02502",
    "euler": "Liu, Gong, Liu 2023, Flow Straight and Fast, arXiv:2209.03003",
    "heun": "Karras, Aittala, Aila, Laine 2022, Elucidating the Design Space, Alg. 1, "
    "arXiv:2206.00364",
    "dpmpp_2m": "Lu, Zhou, Bao, Chen, Li, Zhu 2022, DPM-Solver++, Alg. 2 (2M), arXiv:2211.01095",
}


def inverted(solver: str, model, grid, *, prediction=None, compat="exact") -> Plan:
    """The plan that takes an image up a rising grid, data to noise, by the steps of `solver`:
    "ddim", "euler", "heun" or "dpmpp_2m", with h = lambda' - lambda < 0.

        x' = a·x + e·m         m     a              e
        ddim, euler, heun      eps   alpha'/alpha   -sigma' expm1(h)
            the same on flows  v     n'/n           -(alpha sigma'/n) expm1(h), n = alpha + sigma
        dpmpp_2m               x0    sigma'/sigma   (alpha sigma'/sigma) expm1(h)

    All three are one map of x and x0, DDIM's; these are the forms of it that stay finite as the
    noise grows, up to alpha' = 0 (where v is carried too). heun adds ½ e (m1 - m), m1 asked at x';
    dpmpp_2m puts m + h/(2 h_1)·(m - m_1) for m, h_1 the step before, but in a first step and one
    to alpha' = 0. Orders and evaluations are the solver's, two a step for all of heun's.

        up = solvers.inverted("ddim", model, grid[::-1])     # grid: noise to data, to t_min
        z = Sampler(up, model)(latent=image)                 # the state at grid[0]
        again = Sampler(solvers.ddim(model, grid), model)(latent=z, start=1)

    The image is taken as the state at the first point. That may be sigma = 0 where the step is
    finite and the time one of the network's: VP, Flow and TrigFlow, but for dpmpp_2m or a network
    that predicts x0. There and back returns to the image to the solver's order: each way asks at
    its own end of an interval.

    compat="diffusers", of ddim: the network is told the time at which each step ends, as by
    DDIMInverseScheduler, so that a table's -1 may be the first point. Its
    DPMSolverMultistepInverseScheduler has the rows of dpmpp_2m as they are. ValueError, one
    sentence, for what is refused. Plans have no `remake`.
    """
    choice("inverted: solver", solver, tuple(CITATIONS))
    choice("inverted: compat", compat, ("exact", "diffusers"))
    ahead = compat == "diffusers" and solver == "ddim"
    model = resolve(model, prediction)
    schedule, grid = model.schedule, _rising(model.schedule, grid)
    untold = schedule.t_zero < 0.0 and not ahead
    if schedule.sigma(grid[0]) == 0.0 and (solver == "dpmpp_2m" or untold):
        why = "where x says nothing of eps" if solver == "dpmpp_2m" else "which no network is told"
        raise ValueError(
            f"inverted: {solver} from sigma = 0 at t = {grid[0]:g}, {why}; a grid from t_min = "
            f"{schedule.t_min:g} is accepted"
        )
    flow = isinstance(schedule, (Flow, TrigFlow)) or schedule.alpha(grid[-1]) == 0.0
    stored = "x0" if solver == "dpmpp_2m" else "flow" if flow else "eps"
    b = Builder(model, grid, stored=stored, rising=True)
    orders = [_step(b, i, solver) for i in range(b.n)]
    words = {"compat": compat, "order": max(orders), "citations": [CITATIONS[solver]]}
    plan = b.build("inverted", arguments={"solver": solver}, orders=orders, **words)
    if ahead:
        told = np.append(model.times(grid[1:]), plan.t[b.n :, 0])[:, None]
        plan = plan.with_numbers(t=told).with_note(order=1, orders=orders)
    return plan


def _rising(schedule, grid) -> np.ndarray:
    """The grid as float64 [n+1], or a ValueError."""
    found = reals(grid)
    if found is not None and found.ndim == 1 and len(found) > 1 and found[0] > found[-1]:
        raise ValueError(
            f"inverted: the grid falls from {found[0]:g} to {found[-1]:g}; the same list from data "
            "to noise, grid[::-1], is accepted"
        )
    return check(schedule, grid if found is None else found[::-1])[::-1]


def _step(b: Builder, i: int, solver: str) -> int:
    """The rows of the step from point i; returns its order."""
    a, e = _map(b, i)
    t, to = b.t[i], b.t[i + 1]
    if solver == "heun":
        b.row(t, to=to, x=a * X + e * M, keep={f"m{i}": M})
        b.row(to, to=to, x=X + 0.5 * e * (M - R(f"m{i}")))
        return 2
    if solver != "dpmpp_2m" or i == 0 or b.alpha[i + 1] == 0.0:
        b.row(t, to=to, x=a * X + e * M, keep={f"m{i}": M})
        return 1
    c = 0.5 * b.rise(t, to) / b.rise(b.t[i - 1], t)
    x = a * X + e * (1.0 + c) * M - e * c * R(f"m{i - 1}")
    b.row(t, to=to, x=x, keep={f"m{i}": M})
    return 2


def _map(b: Builder, i: int) -> tuple[float, float]:
    """(a, e) of the step from point i in the kind that is stored."""
    (alpha, sigma), (target, noise) = b.level(b.t[i]), b.level(b.t[i + 1])
    gained = math.expm1(b.rise(b.t[i], b.t[i + 1]))
    if b.stored == "eps":
        return target / alpha, -noise * gained
    if b.stored == "x0":
        return noise / sigma, alpha * noise / sigma * gained
    n = alpha + sigma
    return (target + noise) / n, -alpha * noise / n * gained


inverted.elsewhere = {
    "diffusers": "DDIMInverseScheduler (ddim), DPMSolverMultistepInverseScheduler (dpmpp_2m)"
}
