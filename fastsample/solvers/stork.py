"""STORK: steps of a stabilised Runge-Kutta method whose stages ask a polynomial through the last
outputs in place of the model.

With u, y and d of `lms` and h = u' - u, the polynomial p(v) through the last slopes, v = (w - u)/h
at level w, is summed over the nodes of RKG2, the second-order Runge-Kutta-Gegenbauer method of s
stages (Skaras, Saxton, Meyer, Aslam 2021, doi:10.1016/j.jcp.2020.109879)::

    y' = y + h·[w_0 p(0) + sum_{j=1}^{s-1} w_j p(c_j)],  w_0 = 1 - sum_j w_j
    c_j = (j - 1)(j + 4)/((s - 1)(s + 4)),  c_1 = 6/((s - 1)(s + 4))
    w_j = b_s c_1 (2j + 3)[(s + 1)(s + 2) - (j + 1)(j + 2)]/(2 (j + 1)(j + 2) b_j)
    b_j = 4 (j - 1)(j + 4)/(3 j (j + 1)(j + 2)(j + 3)),  b_1 = 1/3

The recurrence over the stages is linear in the slopes asked, and these are its weights: the model
is asked once a step.
"""

from __future__ import annotations

import math
from functools import lru_cache, partial

import numpy as np

from ..plan import Plan
from ..plan.given import integer
from ..schedules import Flow
from ._begin import build, choice
from ._build import Builder
from ._flow import on_slopes
from ._multistep import Form, Levels, Weigh, carried, lagrange, predicted, rows
from ._start import solver

MOST = 1000  # stages


@solver("A")
def stork(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    derivative_order=2,
    stages=50,
    variant="rkg2",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """y' = y + h·sum_j w_j p(c_j), p the polynomial of degree derivative_order through the last
    slopes, c_j and w_j the nodes and weights of RKG2 with so many stages (the source says them).

    derivative_order 1..3, stages 2..1000. The rule is exact for lines, so derivative_order=1 is
    `lms` of order 2; for ∫v² it has about 1/4 in place of 1/3, which leaves second order and
    smaller weights of older outputs than `lms` has. The first steps have lower degrees. Tan, Wang,
    Bertozzi, Ryu 2025, arXiv:2505.24210: its STORK-2 on a slope in its own level, not on eps in
    VP's time. Its STORK-4 has the stages of ROCK4, which are exact for cubics: that is `lms` of
    order derivative_order + 1.

    variant "published", on Flow: the rows of its authors' scheduler, of derivative_order 2 or 3.
    Nodes are those of another method, (j² + j - 2)/(s² + s - 2), and derivatives are those of even
    steps (2) or read the widths of single steps as distances (3): of first order. The first step is
    taken in two halves, so that there is one evaluation more. compat changes nothing here.
    """
    choice("stork: variant", variant, ("rkg2", "published"))
    theirs = variant == "published"
    degree = choice("stork: derivative_order", derivative_order, (2, 3) if theirs else (1, 2, 3))
    count = integer(stages)
    if count is None or not 2 <= count <= MOST:
        raise ValueError(
            f"stork: stages = {stages!r:.40}; a whole number from 2 to {MOST} is accepted"
        )
    b, carry = on_slopes(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    if theirs and not isinstance(b.schedule, Flow):
        raise ValueError(
            f"stork: variant = 'published' on {type(b.schedule).__name__}; Flow is accepted"
        )
    if theirs:
        orders = _published(b, degree, count)
    else:
        weigh = partial(_staged, moments(count))
        orders = [min(p, 2) for p in rows(b, Form(carry, "level"), degree + 1, weigh=weigh)]
    cite = "Tan, Wang, Bertozzi, Ryu 2025, STORK, arXiv:2505.24210"
    words = {"derivative_order": degree, "stages": count, "variant": variant, "compat": compat}
    return build(b, "stork", words, orders, cite)


@lru_cache(maxsize=64)
def moments(s: int, published: bool = False) -> list[float]:
    """What the rule of s stages makes of ∫_0^1 v^k dv, k = 0..3."""
    j = np.arange(1.0, s)
    width = (s - 1.0) * (s + 4.0)
    b = lambda j: 4.0 * (j - 1.0) * (j + 4.0) / (3.0 * j * (j + 1.0) * (j + 2.0) * (j + 3.0))
    inner, c = b(j), (j - 1.0) * (j + 4.0) / width
    inner[0], c[0] = 1.0 / 3.0, 6.0 / width
    pairs = (j + 1.0) * (j + 2.0)
    late = (s + 1.0) * (s + 2.0) - pairs
    w = b(s) * 6.0 / width * (2.0 * j + 3.0) * late / (2.0 * pairs * inner)
    if published:
        c = (j * j + j - 2.0) / (s * s + s - 2.0)
        c[0] = 4.0 / (3.0 * (s * s + s - 2.0))
    return [1.0, *(float(w @ c**k) for k in (1, 2, 3))]


def _staged(
    W: list[float], places: list[float], integrals: list[float], h: float, asked: int
) -> list[float]:
    """The weights of the outputs at these places, by the rule's integrals of v^k."""
    return lagrange(places, [integrals[0] * each for each in W[: len(integrals)]])


def _differences(W: list[float]) -> Weigh:
    """The published weights, of p(v) = d - v D_1 + v² D_2/2 - v³ D_3/6; a, b and c are the steps
    before, in this step's length.
    """

    def weigh(places: list[float], integrals: list[float], h: float, asked: int) -> list[float]:
        a, b, *more = (new - old for new, old in zip([0.0, *places], places, strict=False))
        if not more:
            one, two = (2.0 / a, -0.5 / a), (-2.0 / (a * b), 2.0 / (b * (a + b)))
            three = (0.0, 0.0)
        else:
            (c,), scale, width = more, a * b * more[0], -integrals[0]
            one = (1.0 / a, -1.0 / b, 1.0 / c)
            two = (2.0 * (b + c) / scale, -2.0 * (a + c) / scale, 2.0 * (a + b) / scale)
            # D_3 lacks a length below: the step's own, in sigma, is left
            three = (6.0 * width * each / scale for each in (b - c, c - a, a - b))
        return [
            integrals[0] * (-W[1] * d1 + W[2] / 2.0 * d2 - W[3] / 6.0 * d3)
            for d1, d2, d3 in zip(one, two, three, strict=True)
        ]

    return weigh


def _published(b: Builder, degree: int, stages: int) -> list[int]:
    """The first step in two halves, Euler's and a line's; lines while history is short. The orders
    of all steps.
    """
    weigh = _differences(moments(stages, True))
    form, at = Form("v", "level"), Levels.of(b)
    middle = b.schedule.time(math.log(b.alpha[:2].sum()) - math.log(b.sigma[:2].sum()))
    path = [float(b.t[0]), float(middle), float(b.t[1])]
    found = [np.asarray(values, float).tolist() for values in b.visit(np.array(path))]
    halves = Levels(*found, path, b.schedule, b.stored)
    for k in (0, 1):
        kept = {} if k else {"m0": carried(halves, form, 0)}
        b.row(path[k], to=path[k + 1], x=predicted(halves, form, k, 2)[0], keep=kept)
    for i in range(1, b.n):
        words = {"order": degree + 1, "weigh": weigh} if i >= degree else {"order": 2}
        x, _ = predicted(at, form, i, **words)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": carried(at, form, i)})
    return [1] * b.n
