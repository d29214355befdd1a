"""Runge-Kutta methods by their tableaux, classical and exponential."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from ..plan import Plan
from ._begin import begin, build
from ._build import Builder, resolve
from ._exponential import gain
from ._flow import begin_in, velocity_step
from ._multistep import Form, Levels, predicted
from ._stages import between, endless, of_slopes, of_x0, shrunk, stages
from ._start import solver
from ._tableau import Tableau, checked, coefficient, exact_on_constants, limit, listed


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
    alpha = 0 is the limit: stages below node 1 stand at the beginning and take no evaluation; of
    first order, too.
    lawson4 integrates a constant x0 by Simpson's rule, so its plans leave the schedule by as much
    (note: consistent). compat changes nothing here.
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
    else:
        b, space = begin_in("rk", space, known, grid, **words)
    orders = _rows(b, found, space)
    arguments = {"tableau": listed(tableau, found), "space": space, "compat": compat}
    return build(b, "rk", arguments, orders, found.source, consistent=exact_on_constants(found))


def _rows(b: Builder, tableau: Tableau, space: str | None) -> list[int]:
    """The rows of every step; returns their orders."""
    levels, step = {
        None: (_lambda_levels, partial(_lambda_step, whole=exact_on_constants(tableau))),
        "rho": (_rho_levels, _rho_step),
        "flow": (_flow_levels, _flow_step),
    }[space]
    nodes = tableau.nodes[1:]
    if tableau.exponential:
        full = [i for i in range(b.n) if not endless(b, i)]
    else:  # the model is not asked at sigma = 0
        full = [i for i in range(b.n) if b.sigma[i + 1] > 0.0 or 1.0 not in nodes]
    at = between(b, nodes, {i: levels(b, i, nodes) for i in full})
    for i in range(b.n):
        if i in at:
            step(b, i, tableau, at[i])
        elif not (tableau.exponential and b.alpha[i] == 0.0 and _limit_step(b, i, tableau)):
            _first_order(b, i)
    return [tableau.order if i in at else 1 for i in range(b.n)]


def _first_order(b: Builder, i: int) -> None:
    form = Form("v" if b.stored == "flow" else "x0")
    b.row(b.t[i], to=b.t[i + 1], x=predicted(Levels.of(b), form, i, 1)[0])


def _lambda_levels(b: Builder, i: int, nodes: Sequence[float]) -> list[float]:
    h = b.half_log_snr[i + 1] - b.half_log_snr[i]
    return [b.half_log_snr[i] + c * h for c in nodes]


def _rho_levels(b: Builder, i: int, nodes: Sequence[float]) -> list[float]:
    h = b.half_log_snr[i + 1] - b.half_log_snr[i]
    return [b.half_log_snr[i] - math.log(shrunk(h, c)) for c in nodes]


def _flow_levels(b: Builder, i: int, nodes: Sequence[float]) -> list[float]:
    """ln((1 - s)/s), 1 - s and s means of numbers >= 0: neither cancels near its end."""
    (a, a_next), (s, s_next) = b.alpha[i : i + 2], b.sigma[i : i + 2]
    n, n_next = a + s, a_next + s_next
    return [
        math.log(((1 - c) * a / n + c * a_next / n_next) / ((1 - c) * s / n + c * s_next / n_next))
        for c in nodes
    ]


def _lambda_step(
    b: Builder, i: int, tableau: Tableau, asked: Sequence[float], *, whole: bool
) -> None:
    """In lambda: the weights of x0 are h·a(-h)."""
    h = float(b.half_log_snr[i + 1] - b.half_log_snr[i])
    rows = [[h * coefficient(a, -h) for a in row] for row in (*tableau.stages, tableau.weights)]
    of_x0(b, i, asked, rows, whole)


def _limit_step(b: Builder, i: int, tableau: Tableau) -> bool:
    """`_lambda_step` from alpha = 0, where h is infinite and every stage before the end stands at
    the beginning; False where there is no such limit.
    """
    late = [c == 1.0 for c in tableau.nodes]
    rows = []
    for row, c in zip((*tableau.stages, tableau.weights), (*tableau.nodes[1:], 1.0), strict=True):
        if c == 1.0:
            w = [limit(a) for a in row]
            kept = [v for v, at_end in zip(w, late, strict=False) if at_end]
            rows.append([math.fsum(w) - math.fsum(kept), *kept])
    if b.sigma[i + 1] == 0.0 or not np.isfinite(np.concatenate(rows)).all():
        return False
    count = len(rows) - 1
    of_x0(b, i, [float(b.t[i + 1])] * count, rows)
    return True


def _rho_step(b: Builder, i: int, tableau: Tableau, asked: Sequence[float]) -> None:
    """In rho: (rho' - rho)/rho_j·a."""
    h = float(b.half_log_snr[i + 1] - b.half_log_snr[i])
    left = [shrunk(h, c) for c in tableau.nodes]
    slopes = [
        [-gain(h) * a / c for a, c in zip(row, left, strict=False)]
        for row in (*tableau.stages, tableau.weights)
    ]
    of_x0(b, i, asked, of_slopes(slopes))


def _flow_step(b: Builder, i: int, tableau: Tableau, asked: Sequence[float]) -> None:
    """In s = sigma/(alpha + sigma): x_k/n_k = x/n + (s_k - s) sum_j (a_kj/c_k)·v_j."""
    n, numbers = b.alpha[i] + b.sigma[i], []
    for t, c, row in zip(asked, tableau.nodes[1:], tableau.stages, strict=True):
        alpha, sigma = b.level(t)
        step = alpha * b.sigma[i] / n * -gain(b.rise(b.t[i], t))  # of the time as rounded
        numbers.append(((alpha + sigma) / n, [step * a / c for a in row]))
    lead, step = velocity_step(b, i, b.half_log_snr)
    stages(b, i, asked, [*numbers, (lead, [step * w for w in tableau.weights])])
