"""The rows of PNDM: linear multistep steps, with a first step made twice or three Runge-Kutta steps
to warm up. No torch, no diffusers.

A step of PNDM from time t to t' with the noise e, h = lambda' - lambda:

    phi(x, t, t', e) = (alpha'/alpha) x - (alpha'/alpha) sigma (1 - e^{-h}) e

A Runge-Kutta step, half-way at m, to whose first output the sums of the later steps go back:

    e1 at x, t; e2 at phi(x, t, m, e1), m; e3 at phi(x, t, m, e2), m; e4 at phi(x, t, t', e3), t';
    x' = phi(x, t, t', (e1 + 2 e2 + 2 e3 + e4)/6)

A run that begins inside one goes to the end of it by phi from point to point, and does not keep
those outputs.

These are not the multistep generator's steps, as those of `solvers.pndm` are: as diffusers has
them, a step ends at t - stride, wherever the next point lies, and adds up raw outputs.

Liu et al. 2022, Pseudo Numerical Methods for Diffusion Models on Manifolds, arXiv:2202.09778, eq. 9
(phi), 12 and 13 and Alg. 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...model import Model, to_eps
from ...plan import Plan
from ...solvers._build import Builder, Lin, M, R, X
from ...solvers._exponential import gain
from .steps import RAW

# Adams-Bashforth, newest first
PLMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
STEP = 4  # evaluations of a Runge-Kutta step
WARM = 3 * STEP
KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
CITE = [
    "Liu, Ren, Lin, Zhao 2022, Pseudo Numerical Methods for Diffusion Models on Manifolds, eq. "
    "9, 12, 13, arXiv:2202.09778"
]


def repeats(skip_prk_steps: bool, steps: int) -> int:
    """How many evaluations more than steps a run of so many steps makes."""
    return int(steps > 1) if skip_prk_steps else WARM - 3


def with_repeats(points: np.ndarray, skip_prk_steps: bool) -> np.ndarray:
    """The points p [n] of n steps, or those and the end [n+1], as the evaluations have them: p0,
    p1, p1, p2, .. or, with m half-way to the next, p0, m, m, p1 and p1, m, m, p2 and p2, m, m, p3
    and p3, p4, ...
    """
    if skip_prk_steps:
        return np.insert(points, 1, points[1])
    half = (points[:3] + points[1:4]) / 2
    warm = np.stack([points[:3], half, half, points[1:4]], axis=1)
    return np.append(warm, points[3:])


def plms(model: Model, grid, *, stride: float | None = None, first: int = 0) -> Plan:
    """x' = phi(x, t, t', e), e: the Adams-Bashforth sum of the last four eps.

    Orders 1, 2, 3, 4, 4, .. The first step is made twice: grid [t0, t1, t1, t2, .., end], and the
    call at the first t1 goes from t0 to t1 again, with the mean of both outputs, which is kept
    nowhere. One evaluation a point.

    stride: as diffusers has it. A step goes from t to t - stride, to the grid's end where t <
    stride; the sum is of the model's raw outputs, with v made an eps afterwards; the second call is
    the repeated one wherever a run begins, and so goes from t + stride to t. Without it a step goes
    to the next point, and only a run from the start (first = 0) repeats.
    """
    b, kept = Builder(model, grid, stored="eps"), []
    raw = stride is not None
    out = RAW if raw else M
    for i, (begin, to, again) in enumerate(_legs(b.t, stride, first)):
        if not raw and begin == to:
            # a run that begins at the repeated point asks there twice; the second call is used
            b.row(b.t[i], to=b.level(to), x=Lin(X))
            continue
        if again:
            combined, source, keep = 0.5 * out + 0.5 * R(kept[0]), R("begin"), {}
        else:
            combined, source = _adams(out, kept), Lin(X)
            kept.append(f"f{i}")
            keep = {kept[-1]: out} | ({"begin": Lin(X)} if i == 0 else {})
        b.row(b.t[i], to=b.level(to), x=_phi(b, begin, to, source, combined, raw), keep=keep)
    orders = [min(4, k + 1) for k in range(len(kept))]
    return b.build(
        "plms",
        arguments={"stride": stride},
        consistent=not raw,
        order=min(2, max(orders, default=1)),
        orders=orders,
        citations=CITE,
    )


def runge_kutta_plms(
    model: Model,
    grid,
    *,
    stride: float | None = None,
    half: float = 0.0,
    starts: Sequence[float] = (),
    first: int = 0,
) -> Plan:
    """Three Runge-Kutta steps, then `plms`, on a grid of `with_repeats` from point `first` on.

    stride, half, starts [3]: as diffusers has it. The first twelve calls, wherever a run begins,
    are Runge-Kutta's from `starts`, that at t leads to t - half and t by turns; all else as `plms`.
    """
    b, kept, orders = Builder(model, grid, stored="eps"), [], []
    raw = stride is not None
    out = RAW if raw else M
    for i, t in enumerate(b.t[:-1]):
        k, warm = (i + first) % STEP, i + first < WARM
        back = stride if not warm else half if k % 2 == 0 else 0.0
        to = b.t[i + 1] if not raw else t - back if t >= back else b.t[-1]
        begin, source, combined, keep = t, Lin(X), out, {}
        if not warm or k == 0:
            keep[f"f{i}"] = out
        if not warm:
            combined = _adams(out, kept)
            orders.append(min(4, len(kept) + 1))
        elif i >= k:
            begin = starts[i // STEP] if raw else b.t[i - k]
            source = R("begin") if k else source
            if k == 0:
                keep["begin"] = Lin(X)  # and the sum begins a row later: a row keeps two values
            else:
                before = R("sum") if k > 1 else KUTTA[0] * R(kept[-1])
                keep = {"sum": before + KUTTA[k] * out}
            if k == STEP - 1:
                combined, keep = keep["sum"], {}
                orders.append(4)
        else:
            orders += [1] if t != to else []
        kept += [name for name in keep if name[0] == "f"]
        b.row(t, to=b.level(to), x=_phi(b, begin, to, source, combined, raw), keep=keep)
    return b.build(
        "plms after Runge-Kutta",
        arguments={"stride": stride},
        consistent=not raw,
        order=min(2, *orders) if orders else 1,
        orders=orders,
        citations=CITE,
    )


# -- inside ----------------------------------------------------------------------------------------
def _adams(out: Lin, kept: Sequence[str]) -> Lin:
    """The Adams-Bashforth sum of an output and of those kept before, the newest last."""
    seen = [out, *(R(name) for name in reversed(kept[-3:]))]
    return sum((w * f for w, f in zip(PLMS[len(seen) - 1], seen, strict=True)), Lin())


def _phi(b: Builder, begin: float, to: float, source: Lin, combined: Lin, raw: bool) -> Lin:
    """phi(source, begin, to, e), e read off a sum of the model's raw outputs, or the sum itself."""
    if begin == to:
        return source
    (alpha, sigma), at = b.level(begin), b.level(to)
    p, q = to_eps(b.model.prediction, alpha, sigma) if raw else (0.0, 1.0)
    eps = float(p) * source + float(q) * combined if p else float(q) * combined
    return (at[0] / alpha) * source - (at[0] / alpha * sigma * gain(b.rise(begin, to))) * eps


def _legs(
    times: np.ndarray, stride: float | None, first: int
) -> Iterator[tuple[float, float, bool]]:
    """(begin, to, again) of every step of plms: again, the first step for the second time."""
    for i, t in enumerate(times[:-1]):
        again = i == 1 and (stride is not None or first == 0)
        if stride is None:
            begin, to = (times[0], t) if again else (t, times[i + 1])
        elif again:
            begin, to = t + stride, t
        else:
            begin, to = t, t - stride if t >= stride else times[-1]
        yield begin, to, again
