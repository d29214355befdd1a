"""The multistep solvers on the generator: what each plan must be (case.py says how).

One loop says it all: the last outputs are carried as x0, eps or v = eps - x0, and the polynomial
through them, in lambda, in the level (rho = sigma/alpha, or s = sigma/(alpha + sigma) for v), in
time or in the index, is integrated: in time by quadrature, else by parts.
"""

from __future__ import annotations

import math
from itertools import pairwise

from fastsample.schedules import EDM, Flow

from . import derivations as d
from . import loops
from .carried import level, scale, value, weights
from .case import Case
from .linear import mp
from .marginals import Point, point


def multistep(
    points,
    x,
    ask,
    draw,
    *,
    carry="x0",
    variable="lambda",
    order=3,
    eta=0,
    low=False,
    schedule=None,
    change=None,
):
    """low: order at most the steps left. change(W, past, t, asked, carry): other weights in
    their place, of a step that asked for so many outputs."""
    if carry == "flow":
        line = type(schedule).__name__ in ("Flow", "TrigFlow") or points[0].alpha == 0
        carry = "v" if line else "eps"
    rate, n, history = 1 + mp.mpf(eta), len(points) - 1, []
    for i, (s, t) in enumerate(pairwise(points)):
        x, m = ask(x, s)
        history = [(s, value(x, m, s, carry)), *history]
        if t.sigma == 0 and (variable == "lambda" or carry != "v" and eta):
            x = t.alpha * m
            continue
        if s.alpha == 0 and carry != "v":
            kept = t.sigma if not eta else 0
            x = (kept / s.sigma) * x + t.alpha * m
            x = x + t.sigma * draw() if eta else x
            continue
        asked = min(order, i + 1, n - i if low else order)
        far = variable == "lambda" or (variable == "level" and carry != "v")
        used = [(p, y) for p, y in history[:asked] if p.alpha or not far]
        past = [p for p, _ in used]
        W = weights(s, t, past, carry, variable, rate, schedule)
        W = change(W, past, t, asked, carry) if change else W
        a = t.sigma / s.sigma * mp.exp(-(rate - 1) * (t.lam - s.lam)) if carry == "x0" else None
        a = scale(t, carry) / scale(s, carry) if a is None else a
        x = loops.combine(a, x, W, [y for _, y in used])
        if eta:
            up = 1 - mp.exp(-2 * (rate - 1) * (t.lam - s.lam))
            up = up if carry == "x0" else (rate - 1) * (mp.exp(2 * (t.lam - s.lam)) - 1)
            x = x + t.sigma * mp.sqrt(up) * draw()
    return x


def unipc_eps(points, x, ask, draw, *, order=3, variant="bh2"):
    """UniPC on eps: alpha and sigma change places. Where alpha is 0 the first step is DDIM's and
    nothing comes back to that point.
    """
    history, n, anchor, asked = [], len(points) - 1, None, 0
    flip = lambda p: Point(p.t, p.sigma, p.alpha)

    def moved(x, count, s, t, more=()):
        used = [pair for pair in history[:count] if pair[0].alpha]
        kind = variant if len(used) == count else "vary"
        W = d.unipc_weights([flip(p) for p, _ in used], flip(t), kind, bool(more))
        values = [*(e for _, e in used), *more]
        return loops.combine(t.alpha / s.alpha, x, [t.sigma * w for w in W], values)

    for i, (s, t) in enumerate(pairwise(points)):
        x, m = ask(x, s)
        eps, corrected = value(x, m, s, "eps"), x
        if i and points[i - 1].alpha:
            corrected = moved(anchor, asked, points[i - 1], s, (eps,)).through(x)
        history, anchor = [(s, eps), *history], corrected
        asked = min(order, i + 1, n - i, 1 if t.sigma == 0 else order)
        if t.sigma == 0:
            x = t.alpha * m
        elif not s.alpha:
            x = (t.sigma / s.sigma) * x + t.alpha * m
        else:
            x = moved(corrected, asked, s, t)
    return x


def sa_solver(points, x, ask, draw, *, p=2, c=2, tau=1, between=None, twice=False, simple=False):
    """Predict, evaluate, correct (and evaluate again): the corrector comes back to the corrected x
    of the point before and to the noise drawn there (Xue et al. 2023, algorithm 1).
    """
    rate_of = lambda s: 1 + (mp.mpf(tau) ** 2 if inside(s) else 0)
    inside = lambda s: between is None or between[0] <= s.rho <= between[1]
    history, anchor, noise = [], None, None

    def moved(x, past, values, s, t):
        rate = rate_of(s)
        W = d.exact_weights([q.lam for q in past], s.lam, t.lam, rate)
        if simple and len(past) == 2:
            w = rate * (t.lam - s.lam) / 2
            w *= 1 if past[0] is t else (t.lam - s.lam) / (past[1].lam - s.lam)
            W = [w, sum(W) - w] if past[0] is t else [sum(W) - w, w]
        return loops.combine(d.transfer(s, t, rate)[0], x, [t.alpha * w for w in W], values)

    for s, t in pairwise(points):
        x, m = ask(x, s)
        corrected = x
        if c and history and not (simple and history[0][0].alpha == 0):
            last, used = history[0][0], history[: c - 1]
            past, values = [s, *(q for q, _ in used)], [m, *(y for _, y in used)]
            pairs = [(q, y) for q, y in zip(past, values, strict=True) if q.alpha]
            corrected = moved(anchor, [q for q, _ in pairs], [y for _, y in pairs], last, s)
            corrected = (corrected + noise if noise is not None else corrected).through(x)
            if twice:
                corrected, m = ask(corrected, s)
        history = [(s, m), *history]
        used = history[:p] if t.sigma else history[:1]
        used = [used[0], *(pair for pair in used[1:] if pair[0].alpha)]
        up = d.transfer(s, t, rate_of(s))[1]
        noise = up * draw() if up else None
        anchor = corrected
        x = moved(corrected, [q for q, _ in used], [y for _, y in used], s, t)
        x = x + noise if noise is not None else x
    return x


def pndm(points, x, ask, draw, *, schedule, kutta=False):
    """The transfer along one slope, phi, and sums of four (Liu et al. 2022, eq. 9, 12, 13)."""
    line = type(schedule).__name__ in ("Flow", "TrigFlow") or points[0].alpha == 0
    carry, n, past = "v" if line else "eps", len(points) - 1, []
    kutta = kutta and n > 3
    adams = [(1,), (1.5, -0.5), (23, -16, 5), (55, -59, 37, -9)]

    def phi(x, s, t, slope):
        rise = scale(t, carry) * (level(t, carry) - level(s, carry))
        return (scale(t, carry) / scale(s, carry)) * x + rise * slope

    def slope_at(x, p):
        x, m = ask(x, p)
        return x, value(x, m, p, carry)

    for i, (s, t) in enumerate(pairwise(points)):
        x, d1 = slope_at(x, s)
        base, past = x, [d1, *past][:4]
        if kutta and i < 3:
            middle = point(schedule, (s.t + t.t) / 2)
            # a plan comes back to the base by way of where it went
            y2, d2 = slope_at(phi(base, s, middle, d1), middle)
            y3, d3 = slope_at(phi(base, s, middle, d2).through(y2), middle)
            y4, d4 = slope_at(phi(base, s, t, d3).through(y2).through(y3), t)
            mean = (mp.mpf(1) / 6) * (d1 + 2 * d2 + 2 * d3 + d4)
            x = phi(base, s, t, mean).through(y2).through(y3).through(y4)
            continue
        w = adams[len(past) - 1]
        shares = [mp.mpf(each) / mp.mpf(sum(w)) for each in w]
        mean = loops.combine(shares[0], d1, shares[1:], past[1:])
        x = phi(base, s, t, mean)
        if not kutta and i == 0 and n > 1:
            y, d2 = slope_at(x, t)
            x = phi(base, s, t, mp.mpf(0.5) * (d1 + d2)).through(y)
    return x


def halved(W, past, t, asked, carry):
    """The published half of the whole weight for the difference of two outputs."""
    if not asked == len(past) == 2:
        return W
    back = (past[1].lam - past[0].lam) / (t.lam - past[0].lam)
    w = sum(W) / 2 / back
    return [sum(W) - w, w]


def half(W, past, t, asked, carry):
    """Half of the second difference's weight, as published, at eta = 1."""
    found = d.half_third_weights(past, t, rate=2) if len(past) == 3 else None
    return [t.alpha * w for w in found] if found else W


def gradient(gamma):
    """gamma d + (1 - gamma) d_1, but the newest alone into sigma = 0."""

    def change(W, past, t, asked, carry):
        more = mp.mpf(gamma) if len(past) == 2 and t.sigma else 1
        return [sum(W) * more, sum(W) * (1 - more)][: len(past)]

    return change


def misplaced(W, past, t, asked, carry):
    """iPNDM_v as its implementations have it: the factor of the second sum's 1/2 left out of the
    product with h (h + h_1)/(h_1 (h_1 + h_2)).
    """
    if len(past) < 3:
        return W
    u = [level(p, carry) for p in (t, *past)]
    h, h1, h2, *more = [b - a for b, a in pairwise(u)]
    bend = (1 - h / (3 * (h + h1)) * (h * (h + h1)) / (h1 * (h1 + h2))) / 2
    found = [(2 + h / h1) / 2 + bend, -(h / h1) / 2 - (1 + h1 / h2) * bend, bend * h1 / h2, 0]
    if more:
        h3 = more[0]
        late = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        late *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        q = h1 * (h1 + h2) / (h2 * (h2 + h3))
        more = [1, -(1 + h1 / h2 + q), h1 / h2 + q * (1 + h2 / h3), -q * h1 / h2]
        found = [a + late * b for a, b in zip(found, more, strict=True)]
    return [sum(W) * w for w in found[: len(past)]]


def _case(name: str, options: dict, marginal: bool = True, **expect) -> Case:
    return Case(
        name,
        multistep,
        options,
        expect,
        adds=lambda schedule, grid: {"schedule": schedule},
        marginal=marginal,
    )


EPS, SLOPE = {"carry": "eps"}, {"carry": "flow", "variable": "level"}
CASES: list = [
    _case("dpmpp_3m_sde", {}, eta=1),
    _case("dpmpp_3m_sde", {"eta": 0.4}, eta=0.4),
    _case("dpmpp_3m_sde", {"compat": "k-diffusion"}, eta=1, change=half),
    _case("dpm_solver", {}, **EPS, order=2, change=halved),
    _case("dpm_solver", {"variant": "heun"}, **EPS, order=2),
    _case("dpm_solver", {"order": 3, "lower_order_final": True}, **EPS, low=True, change=halved),
    _case("dpm_solver", {"eta": 1.0}, marginal=False, **EPS, order=2, change=halved, eta=1),
    Case("unipc", unipc_eps, {"carry": "eps"}),
    Case(
        "unipc",
        unipc_eps,
        {"carry": "eps", "order": 2, "variant": "bh1"},
        {"order": 2, "variant": "bh1"},
    ),
    _case("deis", {}, **EPS),
    Case(
        "unipc",
        loops.unipc,
        {"order": 4, "variant": "vary"},
        {"order": 4, "fall": True, "variant": "vary"},
    ),
    _case("deis", {"variant": "tab", "order": 2}, **EPS, order=2, variable="time"),
    _case("deis", {"variant": "rhoab", "order": 4}, **EPS, order=4, variable="level"),
    _case("lms", {}, **SLOPE, order=4),
    _case("adams_bashforth", {}, carry="flow", variable="time"),
    _case("ipndm", {}, carry="flow", variable="index", order=4),
    _case("ipndm_v", {}, **SLOPE, order=4),
    _case("ipndm_v", {"compat": "comfyui"}, False, **SLOPE, order=4, change=misplaced),
    Case("pndm", pndm, adds=lambda schedule, grid: {"schedule": schedule}),
    Case(
        "pndm",
        pndm,
        {"warm_up": "runge-kutta"},
        {"kutta": True},
        adds=lambda schedule, grid: {"schedule": schedule},
    ),
    Case("sa_solver", sa_solver),
    Case(
        "sa_solver",
        sa_solver,
        {"predictor_order": 3, "corrector_order": 4, "between": (0.2, 3.0), "evaluations": 2},
        {"p": 3, "c": 4, "between": (0.2, 3.0), "twice": True},
    ),
    Case("sa_solver", sa_solver, {"corrector_order": 0, "tau": 0.7}, {"c": 0, "tau": 0.7}),
    Case("sa_solver", sa_solver, {"corrector_order": 1, "tau": 0.7}, {"c": 1, "tau": 0.7}),
    Case("sa_solver", sa_solver, {"compat": "diffusers"}, {"simple": True}),
    _case("gradient_estimation", {}, **SLOPE, order=2, change=gradient(2)),
    _case("gradient_estimation_cfgpp", {}, **SLOPE, order=2, change=gradient(2)),
]
LN2 = math.log(2.0)
LINE, RISE = 1 - 0.75 / (2 * LN2), 2 / LN2 - 2
# from 4 to 2 after 8: e = (x - m)/4; AB2 over -2 after -4 is -5/2 e + e_1/2, of even steps
# -3 e + e_1
BENT, AS_EVEN = {"x": 0.375, "m": 0.625, "r0": 0.5}, {"x": 0.25, "m": 0.75, "r0": 1}
BEND = 0.5 - 1 / 72  # of iPNDM_v over -1 after -2, -4
LITERALS: list = [
    (
        "dpmpp_3m_sde",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {},
        {2: {"x": 0.25, "m": 0.75 + LINE, "r0": -LINE, "n0": 3**0.5}, 3: {"m": 1}},
    ),
    ("dpm_solver", EDM(), [8, 4, 2, 0], "eps", {}, {2: AS_EVEN, 3: {"m": 1}}),
    (
        "deis",
        EDM(),
        [8, 4, 2, 0],
        "eps",
        {},
        {2: {"x": 0.5 - RISE / 4, "m": 0.5 + RISE / 4, "r0": RISE}, 3: {"m": 1}},
    ),
    ("deis", EDM(), [8, 4, 2], "eps", {"variant": "tab"}, {2: BENT}),
    ("lms", EDM(), [8, 4, 2], "eps", {}, {1: {"x": 0.5, "m": 0.5}, 2: BENT}),
    ("lms", Flow(), [0.8, 0.4, 0.2], "flow", {}, {2: {"x": 1, "m": -0.25, "r0": 0.05}}),
    ("adams_bashforth", EDM(), [8, 4, 2], "eps", {}, {2: BENT}),
    ("ipndm", EDM(), [8, 4, 2], "eps", {}, {2: AS_EVEN}),
    ("ipndm_v", EDM(), [8, 4, 2], "eps", {}, {2: BENT}),
    (
        "ipndm_v",
        EDM(),
        [8, 4, 2, 1],
        "eps",
        {"compat": "comfyui"},
        {
            3: {
                "x": 1 - (1.25 + BEND) / 2,
                "m": (1.25 + BEND) / 2,
                "r1": 0.25 + 1.5 * BEND,
                "r0": -0.5 * BEND,
            }
        },
    ),
    # from 8 to 4 along r0 = (x - m)/8; again with the mean of that and (x - m)/4: the base is
    # x + 4 r0, so x' = x + 4 r0 - 2 (x - m)/4 - 2 r0
    (
        "pndm",
        EDM(),
        [8, 4, 2],
        "eps",
        {},
        {1: {"x": 0.5, "m": 0.5}, 2: {"x": 0.5, "m": 0.5, "r0": 2}, 3: AS_EVEN},
    ),
    # from 8, to 4 by x_0/4 + 3/4 m_0 + sqrt(12) n; corrected by the line through m_0 and m, which
    # weighs H·phi_2(-H) = LINE at the newer one, H = 2 ln 2, before x_c/4 + (3/4 + LINE)·m - ...
    (
        "sa_solver",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {},
        {
            1: {"x": 0.25, "m": 0.75, "n0": 12**0.5},
            2: {"x": 0.25, "m": 0.75 + 1.25 * LINE, "r0": -1.25 * LINE, "n0": 3**0.5},
            3: {"m": 1},
        },
    ),
    # DDIM's 1/4 and 3/4, and 3 (e_1 - e)
    ("gradient_estimation", EDM(), [8, 4, 1], "eps", {}, {2: {"x": -0.5, "m": 1.5, "r0": 3}}),
]
METHODS: list = [
    ("dpmpp_3m_sde", {"eta": 0.0}, 3, 3),
    ("dpm_solver", {}, 2, 2),
    ("dpm_solver", {"order": 3}, 3, 3),
    ("deis", {}, 3, 3),
    ("deis", {"variant": "tab", "order": 4}, 4, 4),
    ("lms", {}, 4, 4),
    ("lms", {"order": 3}, 3, 3, {"schedule": Flow(3.0)}),
    ("adams_bashforth", {}, 3, 3, {"schedule": Flow(3.0)}),
    ("ipndm", {}, 2, 4),
    ("ipndm", {}, 1, 4, {"uneven": True}),
    ("ipndm_v", {"compat": "comfyui", "order": 2}, 2, 2, {"uneven": True}),
    ("ipndm_v", {}, 4, 4),
    ("gradient_estimation", {}, 1, 2),
    ("sa_solver", {"tau": 0.0}, 2, 1),
    ("pndm", {}, 2, 1),
    ("pndm", {}, 1, 1, {"uneven": True}),
]
