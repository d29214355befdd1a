"""Runge-Kutta methods by their tableaux, classical and exponential."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..plan import Plan
from ._begin import begin, build
from ._build import Builder
from ._exponential import gain
from ._flow import begin_in
from ._given import resolve
from ._stages import between, first_order, of_slopes, stages
from ._start import solver
from ._tableau import Tableau, checked, exact_on_constants, listed
from ._tableau_steps import rows as exponential_rows


@solver("B", comfyui="exp_heun_2_x0 (tableau='exp_heun')")
def rk(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    tableau="rk4",
    space=None,
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """y_k = y + (u' - u) sum_j a_kj·f_j at u + c_k (u' - u), y' = y + (u' - u) sum_j b_j·f_j.

    Classical tableaux: y = x/alpha, u = rho = sigma/alpha, f = (y - x0)/rho on VP, VE and EDM
    (space "rho"); y = x/(alpha + sigma), u = sigma/(alpha + sigma), f = eps - x0 on Flow, TrigFlow
    and from alpha = 0 (space "flow"); space overrides. Exponential ones: y = x/alpha, u = lambda,
    e^{-(u' - u)} y and f = x0, with a(z) and b(z) at z = -(lambda' - lambda).

    tableau: midpoint, heun2, ralston2, heun3, kutta3, ralston3, ssprk3, rk4, rk38,
    bogacki_shampine, dormand_prince (six stages of fifth order); etdrk2, exp_heun (the same),
    etdrk3, etdrk4, res_2s, res_3s, lawson4; or a `Tableau` of your own. As many evaluations a step
    as stages, one output kept for each but the last. A step to sigma = 0 is the limit of the
    formula where every node is below 1; where the model would be asked at sigma = 0, and in every
    exponential step to there, it is of first order with one evaluation. An exponential step from
    alpha = 0 is the limit, of first order too: stages below node 1 stand at the beginning and take
    no evaluation. lawson4 integrates a constant x0 by Simpson's rule, so its plans leave the
    schedule by as much (note: consistent). compat changes nothing here.
    """
    found = checked(tableau)
    known = resolve(model, prediction)
    words = {"start": start, "inpaint": inpaint, "clip": clip, "compat": compat}
    if found.exponential:
        if space is not None:
            raise ValueError(
                f"rk: space = {space!r:.40} with an exponential tableau, which runs in lambda; "
                "None is accepted"
            )
        b = begin(known, grid, None, **words)
        orders, _ = exponential_rows(b, [found] * b.n)
    else:
        b, kind = begin_in("rk", space, known, grid, **words)
        orders = _rows(b, found, kind)
    arguments = {"tableau": listed(tableau, found), "space": space, "compat": compat}
    return build(b, "rk", arguments, orders, found.source, consistent=exact_on_constants(found))


def _rows(b: Builder, tableau: Tableau, space: str) -> list[int]:
    """The rows of every step; returns their orders."""
    levels = {"rho": _rho_levels, "flow": _flow_levels}[space]
    rows, nodes = (*tableau.stages, tableau.weights), tableau.nodes[1:]
    # the model is not asked at sigma = 0
    full = [i for i in range(b.n) if b.sigma[i + 1] > 0.0 or 1.0 not in nodes]
    at = between(b, {i: levels(b, i, nodes) for i in full})
    # of velocities: the weights of a stage over its own share of the step
    shares = [[a / c for a in row] for row, c in zip(rows, (*nodes, 1.0), strict=True)]
    for i in range(b.n):
        if i not in at:
            first_order(b, i)
        elif space == "flow":
            stages(b, i, at[i], shares)
        else:  # (rho' - rho)/rho_j·a
            h = b.rise(b.t[i], b.t[i + 1])
            left = [_shrunk(h, c) for c in tableau.nodes]
            slopes = [[-gain(h) * a / c for a, c in zip(row, left, strict=False)] for row in rows]
            stages(b, i, at[i], of_slopes(slopes))
    return [tableau.order if i in at else 1 for i in range(b.n)]


def _shrunk(h: float, node: float) -> float:
    """rho_c/rho at rho + c (rho' - rho): 1 - c + c e^{-h}."""
    return 1.0 - node + node * math.exp(-h)


def _rho_levels(b: Builder, i: int, nodes: Sequence[float]) -> list[float]:
    here, end = b.half_log_snr[i : i + 2]
    return [end if c == 1.0 else here - math.log(_shrunk(end - here, c)) for c in nodes]


def _flow_levels(b: Builder, i: int, nodes: Sequence[float]) -> list[float]:
    """ln((1 - s)/s), 1 - s and s means of numbers >= 0: neither cancels near its end."""
    n = b.alpha[i : i + 2] + b.sigma[i : i + 2]
    (far, near), (noisy, clean) = b.sigma[i : i + 2] / n, b.alpha[i : i + 2] / n
    mean = lambda c, first, second: (1.0 - c) * first + c * second
    return [
        b.half_log_snr[i + 1] if c == 1.0 else math.log(mean(c, noisy, clean) / mean(c, far, near))
        for c in nodes
    ]
