"""Steps of exponential tableaux, in data and in noise form, and the tableaux of DPM-Solver."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ._build import Builder, Lin
from ._churn import raise_to
from ._grouped import ROUNDING
from ._renoise import Level, Step
from ._stages import between, endless, first_order, of_slopes, stages
from ._tableau import Tableau, coefficient, exact_on_constants, limit

VARIANTS = ("dpmsolver", "taylor")


def rows(
    b: Builder,
    tableaux: Sequence[Tableau],
    *,
    noise: bool = False,
    kappas: Sequence[float] = (),
    s_noise: float = 1.0,
) -> tuple[list[int], int]:
    """The rows of every step by the tableau of each; returns their orders and that of the run. In
    data form x0 is taken as a polynomial, in noise form eps: the coefficients are those at z = h.

    A step of infinite h is of first order, in data form from alpha = 0 the limit. kappas, in noise
    form: step i goes to lambda' + kappas[i], and s_noise times noise leads back up.
    """
    level, kappas = b.half_log_snr, kappas or [0.0] * b.n
    ends = level[1:] + np.asarray(kappas)
    finite = [i for i in range(b.n) if not endless(b, i) and math.isfinite(ends[i])]
    inner = lambda i: [*tableaux[i].nodes[1:], *[1.0] * (kappas[i] > 0.0)]
    share = lambda i, c: ends[i] if c == 1.0 else level[i] + c * (ends[i] - level[i])
    at = between(b, {i: [share(i, c) for c in inner(i)] for i in finite})
    unlike = {id(each): each for each in tableaux}
    whole = {key: noise or exact_on_constants(each) for key, each in unlike.items()}
    for i, tableau in enumerate(tableaux):
        if kappas[i]:
            _down_and_up(b, i, tableau, at.get(i), kappas[i], s_noise * b.noise(i))
        elif i not in at:
            if noise or not _limit_step(b, i, tableau):
                first_order(b, i)
        elif noise:
            stages(b, i, at[i], _noise_weights(b, tableau, at[i]))
        else:
            stages(b, i, at[i], _weights(b, tableau, at[i]), whole[id(tableau)])
    orders = [tableau.order if i in at else 1 for i, tableau in enumerate(tableaux)]
    return orders, _of_run(orders, [orders[i] for i in at])


def _down_and_up(
    b: Builder, i: int, tableau: Tableau, points: list[float] | None, kappa: float, noise: Lin
) -> None:
    """Step i in noise form over these points, the last but one of them below its end, and noise;
    without points, of first order.
    """
    if points is None:
        ends = (Level(b.alpha[j], b.sigma[j], b.half_log_snr[j]) for j in (i, i + 1))
        b.row(b.t[i], to=b.t[i + 1], x=Step.of(*ends, kappa).over(noise))
        return
    *points, end = points
    stages(b, i, points, _noise_weights(b, tableau, points))
    raise_to(b, points[-1], end, kappa, noise)


def _of_run(orders: Sequence[int], finite: Sequence[int]) -> int:
    """The order that steps reach together: a single one of order p leaves an error of h^{p+1}, one
    of infinite h the same whatever the number of steps.
    """
    return min(max(orders), min(finite, default=max(orders)) + 1)


def dpm_solver(order: int, variant: str, r1: float = 0.5, r2: float = 1.0) -> Tableau:
    """DPM-Solver of order 1 to 3, stages at r1 and r2. The weight of the one difference is half of
    a constant's (order 2, "dpmsolver"), else that of the line through it; "taylor" of order 3 has
    the parabola's too.
    """
    if order == 1:
        return Tableau(1, [0.0], [], [[(1.0, 1, 1.0)]], True)
    published = variant == "dpmsolver"
    first = [[(r1, 1, r1)]]
    if order == 2:
        end = _over_difference(1.0, r1, published)
        return Tableau(2, [0.0, r1], [first], end, True)
    second = _over_difference(r2, r1, False)
    # whatever the weights, the third order asks for the second stage at 2/3 of the step
    reached = 3 if abs(r2 - 2.0 / 3.0) <= ROUNDING else 2
    if published:
        rest, late = _over_difference(1.0, r2, False)
        return Tableau(reached, [0.0, r1, r2], [first, second], [rest, [], late], True)
    early = [(r2 / (r1 * (r2 - r1)), 2, 1.0), (-2.0 / (r1 * (r2 - r1)), 3, 1.0)]
    late = [(-r1 / (r2 * (r2 - r1)), 2, 1.0), (2.0 / (r2 * (r2 - r1)), 3, 1.0)]
    rest = [(1.0, 1, 1.0), *((-factor, k, at) for factor, k, at in (*early, *late))]
    return Tableau(reached, [0.0, r1, r2], [first, second], [rest, early, late], True)


def _over_difference(c: float, r: float, half: bool) -> list[list[tuple]]:
    """Coefficients of m_0 and m_r in c phi_1(cz)·m_0 + w·(m_r - m_0)/r, w = c² phi_2(cz), or half:
    c² phi_1(cz)/2.
    """
    w, k = (0.5 * c * c / r, 1) if half else (c * c / r, 2)
    return [[(c, 1, c), (-w, k, c)], [(w, k, c)]]


def _weights(
    b: Builder, tableau: Tableau, points: Sequence[float], sign: float = -1.0
) -> list[list[float]]:
    """h·a(z), then h·b(z), z = sign·h."""
    h = b.rise(points[0], points[-1])
    rows = (*tableau.stages, tableau.weights)
    return [[h * coefficient(a, sign * h) for a in row] for row in rows]


def _noise_weights(b: Builder, tableau: Tableau, points: Sequence[float]) -> list[list[float]]:
    """y_k = (..)·y - rho_k h sum_j a_kj(h)·eps_j as weights of x0: rho_k/rho_j = e^{-rise}."""
    found = _weights(b, tableau, points, 1.0)
    slopes = [
        [-w * math.exp(-b.rise(s, t)) for w, s in zip(row, points, strict=False)]
        for row, t in zip(found, points[1:], strict=True)
    ]
    return of_slopes(slopes)


def _limit_step(b: Builder, i: int, tableau: Tableau) -> bool:
    """A step in data form from alpha = 0, where h is infinite and every stage before the end stands
    at the beginning; False where there is no such limit.
    """
    late = [c == 1.0 for c in tableau.nodes]
    found = []
    for row, c in zip((*tableau.stages, tableau.weights), (*tableau.nodes[1:], 1.0), strict=True):
        if c == 1.0:
            w = [limit(a) for a in row]
            kept = [v for v, at_end in zip(w, late, strict=False) if at_end]
            found.append([math.fsum(w) - math.fsum(kept), *kept])
    if b.sigma[i + 1] == 0.0 or not np.isfinite(np.concatenate(found)).all():
        return False
    stages(b, i, [b.t[i], *[b.t[i + 1]] * len(found)], found)
    return True
