"""STORK: what each plan must be (case.py says how). The stages are asked one by one, by the
recurrence over Gegenbauer's polynomials; the plan has their sum.
"""

from __future__ import annotations

from itertools import pairwise

from fastsample.schedules import EDM, Flow

from .carried import level
from .linear import mp
from .loops import combine
from .multistep import SLOPE, _case


def rkg2(stages: int, velocity, nodes):
    """y at 1 of y' = velocity(v), y(0) = 0 (Skaras et al. 2021), stage j asked at nodes(j)."""
    b = lambda j: mp.mpf(4 * (j - 1) * (j + 4)) / (3 * j * (j + 1) * (j + 2) * (j + 3))
    b = [mp.mpf(1), mp.mpf(1) / 3, *map(b, range(2, stages + 1))]
    first, own = mp.mpf(6) / ((stages + 4) * (stages - 1)), velocity(mp.mpf(0))
    before, y = mp.mpf(0), first * own
    for j in range(2, stages + 1):
        mu, nu = (2 * j + 1) * b[j] / (j * b[j - 1]), -(j + 1) * b[j] / (j * b[j - 2])
        rest = 1 - mp.mpf(j * (j + 1)) / 2 * b[j - 1]
        moved = mu * first * (velocity(nodes(j - 1)) - rest * own)
        before, y = y, mu * y + nu * before + moved
    return y


def own_nodes(stages: int):
    """Where the stages of RKG2 stand."""
    width = mp.mpf(stages - 1) * (stages + 4)
    return lambda j: (j - 1) * (j + 4) / width if j > 1 else 6 / width


def extrapolated(stages: int):
    """The polynomial through the last slopes, in place of the model."""

    def change(W, past, t, asked, carry):
        u = [level(p, carry) for p in (*past, t)]
        places = [(each - u[0]) / (u[-1] - u[0]) for each in u[:-1]]

        def basis(k, v):
            others = [place for j, place in enumerate(places) if j != k]
            return mp.fprod((v - place) / (places[k] - place) for place in others)

        nodes = own_nodes(stages)
        return [sum(W) * rkg2(stages, lambda v, k=k: basis(k, v), nodes) for k in range(len(W))]

    return change


def published(points, x, ask, draw, *, stage, stages, degree):
    """The authors' scheduler on a flow, in its sigma: half of Euler's step, a line's other half,
    lines, then stages on derivatives as it forms them.
    """
    nodes = lambda j: mp.mpf(j * j + j - 2) / (stages**2 + stages - 2)
    nodes = lambda j, of=nodes: of(2) / 3 if j == 1 else of(j)
    past, steps = [], []

    def asked(x, p):
        x, m = ask(x, p)
        return x, (1 / p.sigma) * (x - m)  # x = m + sigma v

    for i, (s, t) in enumerate(pairwise(points)):
        x, v = asked(x, s)
        dt = s.sigma - t.sigma
        if i == 0:
            middle = stage(mp.log((s.alpha + t.alpha) / (s.sigma + t.sigma)))
            x, late = asked(x - (dt / 2) * v, middle)
            x = x - (dt / 2) * (mp.mpf(3) / 2 * late - mp.mpf(1) / 2 * v)
        elif i < degree:
            x = x - dt * v - (dt**2 / (2 * steps[-1])) * (v - past[-1])
        else:
            rows = zip(*_derivatives(degree, *steps[::-1][:3]), strict=True)
            W = [_staged(stages, nodes, dt, k == 0, each) for k, each in enumerate(rows)]
            x = combine(1, x, W, [v, *past[::-1][: len(W) - 1]])
        past, steps = [*past, v], [*steps, dt]
    return x


def _staged(stages, nodes, dt, value, derivatives):
    """What the stages of a step make of a Taylor polynomial about its start."""

    def velocity(v):
        terms = enumerate(derivatives, 1)
        return value + sum((-v * dt) ** n / mp.factorial(n) * each for n, each in terms)

    return -dt * rkg2(stages, velocity, nodes)


def _derivatives(degree, h1, h2, h3=None):
    """By sigma, over the newest output and those before: D_1, D_2, .. as the scheduler has them."""
    if degree == 2:
        one = [mp.mpf(c) / (2 * h1) for c in (-3, 4, -1)]
        return one, [2 * c / (h1 * h2 * (h1 + h2)) for c in (h2, -h1 - h2, h1)]
    over = lambda c: [-sum(c) / (h1 * h2 * h3), *(each / (h1 * h2 * h3) for each in c)]
    return (
        over([h2 * h3, -h1 * h3, h1 * h2]),
        over([2 * (h2 + h3), -2 * (h1 + h3), 2 * (h1 + h2)]),
        over([6 * (h2 - h3), 6 * (h3 - h1), 6 * (h1 - h2)]),
    )


CASES: list = [
    _case("stork", {}, **SLOPE, order=3, change=extrapolated(50)),
    _case("stork", {"derivative_order": 3, "stages": 7}, **SLOPE, order=4, change=extrapolated(7)),
]
# two stages are the trapezoid, from 4 to 3 after 8 and 6: x' = x - (e + p)/2 with e = (x - m)/4 and
# p = 15/8 e - 5/4 r1 + 3/8 r0, the parabola at 3
LITERALS: list = [
    (
        "stork",
        EDM(),
        [8, 6, 4, 3],
        "eps",
        {"stages": 2},
        {
            1: {"x": 0.75, "m": 0.25},
            3: {"x": 1 - 23 / 64, "m": 23 / 64, "r1": 5 / 8, "r0": -3 / 16},
        },
    ),
    # .8 to .6 in halves, to .4 by a line: of v, -h/2 twice, with 3/2 and -1/2 in the second
    (
        "stork",
        Flow(),
        [0.8, 0.6, 0.4],
        "flow",
        {"variant": "published"},
        {
            1: {"x": 1, "m": -0.1},
            2: {"x": 1, "m": -0.15, "r0": 0.05},
            3: {"x": 1, "m": -0.3, "r0": 0.1},
        },
    ),
]
METHODS: list = [
    ("stork", {}, 2, 3),
    ("stork", {"variant": "published"}, 1, 3, {"schedule": Flow(3.0)}),
]
