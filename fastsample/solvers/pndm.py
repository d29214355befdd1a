"""PNDM: the linear multistep method of even steps, with a first step made twice or three
Runge-Kutta steps to warm up.
"""

from __future__ import annotations

import numpy as np

from ..plan import Plan
from ._begin import build, choice
from ._build import Builder, R, X
from ._flow import on_slopes
from ._multistep import Form, Levels, carried, first, predicted, whole
from ._start import solver

ORDER, WARM = 4, 3  # of the sum; steps of the Runge-Kutta method


@solver("A", diffusers="PNDMScheduler")
def pndm(
    model,
    grid,
    *,
    prediction=None,
    start=None,
    warm_up="plms",
    inpaint=False,
    clip=0.0,
    compat="exact",
) -> Plan:
    """y' = y + (u' - u)·(b_1 d + b_2 d_1 + ...), as `ipndm` of fourth order has it, except for the
    first steps; y = x/alpha, u = sigma/alpha, d = eps, and as in `lms` on a flow.

    warm_up "plms": the first step is made again from its start with the mean of d and of the slope
    where it landed, which is kept nowhere; n + 1 evaluations. "runge-kutta": the first three are

        d_1 at y; d_2 at y + (u_m - u) d_1; d_3 at y + (u_m - u) d_2; d_4 at y + (u' - u) d_3;
        y' = y + (u' - u)·(d_1 + 2 d_2 + 2 d_3 + d_4)/6

    u_m at the middle of the two times; only their d_1 is kept; n + 9 evaluations. Fewer than four
    steps begin as "plms" does. Of second order (the note's smooth_order) where the ratio of
    neighbouring steps goes to 1, of first (its order) on others, as `ipndm` is. Liu et al. 2022,
    arXiv:2202.09778, eq. 9, 12, 13 and Alg. 2. compat changes nothing here.
    """
    choice("pndm: warm_up", warm_up, ("plms", "runge-kutta"))
    b, carry = on_slopes(model, grid, prediction, start, inpaint=inpaint, clip=clip, compat=compat)
    at, form = Levels.of(b), Form(carry, "index")
    kutta = warm_up == "runge-kutta" and b.n > WARM
    for i in range(b.n):
        if kutta and i < WARM:
            _runge_kutta(b, form, i)
            continue
        x, _ = predicted(at, form, i, ORDER)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": carried(at, form, i)})
        if not kutta and i == 0 and b.n > 1:
            # the base and the mean of both slopes, from where the first alone led
            other = carried(at, form, 1) - R("m0")
            b.row(b.t[1], to=b.t[1], x=X + 0.5 * whole(at, form, 0) * other)
    cite = "Liu, Ren, Lin, Zhao 2022, Pseudo Numerical Methods for Diffusion Models on Manifolds, "
    cite += "eq. 9, 12, 13, arXiv:2202.09778"
    words, smooth = {"warm_up": warm_up, "compat": compat}, min(2, b.n)
    return build(b, "pndm", words, [1] * b.n, cite, smooth_order=smooth)


def _runge_kutta(b: Builder, form: Form, i: int) -> None:
    """The four rows of step i, each written from where the one before led, not from y."""
    begin, end = float(b.t[i]), float(b.t[i + 1])
    middle = (begin + end) / 2.0
    half, late = _between(b, begin, middle), _between(b, middle, end)
    full = _between(b, begin, end)
    d1, d2, d3 = R(f"m{i}"), R("second"), R("third")
    own = [carried(half, form, 0), carried(half, form, 1), carried(late, form, 1)]
    b.row(begin, to=middle, x=first(half, form, 0, X, own[0]), keep={f"m{i}": own[0]})
    onward = first(late, form, 0, X, own[1])
    to_middle = whole(half, form, 0)
    scales = [late.alpha[k] + (late.sigma[k] if form.carry == "v" else 0.0) for k in (0, 1)]
    again = to_middle * scales[1] / scales[0]
    b.row(middle, to=middle, x=X + to_middle * (own[1] - d1), keep={"second": own[1]})
    b.row(middle, to=end, x=onward + again * (own[1] - d2), keep={"third": own[1]})
    mean = (d1 + 2.0 * d2 - 4.0 * d3 + own[2]) / 6.0
    b.row(end, to=end, x=X + whole(full, form, 0) * mean)


def _between(b: Builder, begin: float, end: float) -> Levels:
    found = (each.tolist() for each in b.visit(np.array([begin, end])))
    return Levels(*found, [begin, end], b.schedule, b.stored)
