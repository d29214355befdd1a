"""The stochastic solvers: what each plan must be (case.py says how).

Their loops speak each paper's own frame: y = x/alpha and rho = sigma/alpha, as k-diffusion, a
flow's sigma, or lambda; stages, noises and states stand under their own names.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

from fastsample.schedules import EDM, Flow

from . import derivations as d
from .case import Case
from .linear import mp
from .marginals import level

LN2, ROOT3 = math.log(2.0), math.sqrt(3.0)


# -- ancestral steps of two stages -----------------------------------------------------------------
def split(s, t, eta):
    """(rho_down, rho_up) of k-diffusion's ancestral step; the limits for rho = infinity."""
    if s.alpha == 0:
        up = min(t.rho, eta * t.rho)
    else:
        up = min(t.rho, eta * mp.sqrt(t.rho**2 * (s.rho**2 - t.rho**2) / s.rho**2))
    return mp.sqrt(t.rho**2 - up**2), up


def ancestral(points, x, ask, draw, *, stage, method, form, eta=1.0, nudged=False):
    """dpmpp_2s_ancestral ("2s") and dpm_2_ancestral ("2"), form "ve" in y and rho, "rf" in x and a
    flow's sigma.
    """
    step = _flow_step if form == "rf" else _ve_step
    for s, t in pairwise(points):
        x, m = ask(x, s)
        if t.sigma == 0:
            x = t.alpha * m
        else:
            x = step(s, t, x, m, ask, draw, stage, method, mp.mpf(eta), nudged)
    return x


def _ve_step(s, t, x, m, ask, draw, stage, method, eta, nudged):
    down, up = split(s, t, eta)
    if s.alpha == 0:  # y = x/alpha at rho = infinity: x is all noise
        return t.alpha * m + (t.alpha * down / s.sigma) * x + (t.alpha * up) * draw()
    y = (1 / s.alpha) * x
    if down == 0:
        return t.alpha * m + (t.alpha * up) * draw()
    mid = stage((s.lam - mp.log(down)) / 2)
    slope = (1 / s.rho) * (y - m)
    late = ask(mid.alpha * (y + (mid.rho - s.rho) * slope), mid)
    inner, second = (1 / mid.alpha) * late[0], late[1]
    y = y.through((s.rho / mid.rho) * inner)  # a plan comes back to it from the stage
    if method == "2":
        y = y + (down - s.rho) * ((1 / mid.rho) * (inner - second))
    else:  # from rho to down along the straight line to the second prediction
        y = (down / s.rho) * y + (1 - down / s.rho) * second
    return t.alpha * (y + up * draw() if up else y)


def _flow_step(s, t, x, m, ask, draw, stage, method, eta, nudged):
    down = t.sigma * (1 + (t.sigma / s.sigma - 1) * eta)
    q = t.alpha / (1 - down)
    up = mp.sqrt(t.sigma**2 - (q * down) ** 2)
    if method == "2":
        sigma = mp.sqrt(s.sigma * down)
        mid = stage(mp.log((1 - sigma) / sigma))
        guess = x + (mid.sigma - s.sigma) * ((1 / s.sigma) * (x - m))
        guess, second = ask(guess, mid)
        x = x + (down - s.sigma) * ((1 / mid.sigma) * (guess - second))
    elif s.alpha == 0 and not nudged:
        x = (down / s.sigma) * x + (1 - down / s.sigma) * m
    else:
        lam = mp.log((1 - down) / down)
        # ComfyUI asks at sigma = .9999
        mid = stage((s.lam + lam) / 2 if s.alpha else mp.log(mp.mpf("0.0001") / mp.mpf("0.9999")))
        share = mid.sigma / s.sigma
        guess, second = ask(share * x + (1 - share) * m, mid)
        x = x.through((1 / share) * guess)  # a plan comes back to it from the stage
        x = (down / s.sigma) * x + (1 - down / s.sigma) * second
    return q * x + up * draw() if up else q * x


# -- stages with one noise that grows along the step -----------------------------------------------
def staged(points, x, ask, draw, *, stage, shares, tables, keeps, path=None):
    """Runge-Kutta stages with noise, x_j = (k sigma_j/sigma) x + alpha_j sum w m + sigma_j z_j.

    shares: h_j/h of the stages before the last. keeps(s, p) -> k from s to p. tables(H) -> the
    weights of every stage, H_j = h_j - ln k_j. z_j has variance 1 - k_j^2 and is what is left of
    z_{j-1} with new noise; path(s, stage, t) -> the share of the last noise that the first made up.
    """
    for s, t in pairwise(points):
        x, m = ask(x, s)
        h = d.step(s, t)
        if h == mp.inf:
            k = keeps(s, t) if t.sigma else mp.mpf(0)
            x = (k * t.sigma / s.sigma) * x + t.alpha * (1 - (k and 0)) * m
            if k < 1 and t.sigma:
                x = x + (t.sigma * mp.sqrt(1 - k**2)) * draw()
            continue
        base, seen, z, before, first, middle = x, [m], None, mp.mpf(1), None, None
        for j in range(len(shares) + 1):
            last = j == len(shares)
            p = t if last or shares[j] == 1 else stage(s.lam + shares[j] * h)
            k = keeps(s, p)
            own = [mp.mpf(w) for w in tables(s, t, shares)[j]]
            guess = (k * p.sigma / s.sigma) * base
            for w, value in zip(own, seen, strict=False):
                guess = guess + (p.alpha * w) * value
            if k < before:
                n = draw()
                if z is not None and last and path is not None:
                    q = path(s, middle, t)
                    z = mp.sqrt(1 - k**2) * (mp.sqrt(q) * first + mp.sqrt(1 - q) * n)
                elif z is None:
                    z, first = mp.sqrt(1 - k**2) * n, n
                else:
                    z = (k / before) * z + mp.sqrt(1 - (k / before) ** 2) * n
            if z is not None:
                guess = guess + p.sigma * z
            before, middle = k, p
            if last:
                x = guess
            else:
                guess, value = ask(guess, p)
                seen.append(value)
                if k:  # a plan comes back to it from the stage
                    base = base.through((s.sigma / (k * p.sigma)) * guess)
    return x


def phi1(H):
    """H phi_1(-H)."""
    return -mp.expm1(-H)


def phi2(H):
    """H phi_2(-H)."""
    return (mp.expm1(-H) + H) / H


def even(eta):
    """k = e^{-eta h}; nothing is left over an infinite h."""
    eta = mp.mpf(eta)
    return lambda s, p: mp.exp(-eta * d.step(s, p)) if eta else mp.mpf(1)


def karras(eta):
    """k = rho_down/rho' of k-diffusion's split."""
    return lambda s, p: split(s, p, mp.mpf(eta))[0] / p.rho


def seeds_2(points, x, ask, draw, *, stage, eta=1.0, r=0.5, variant="phi_1"):
    r, rate = mp.mpf(r), 1 + mp.mpf(eta)

    def tables(s, t, shares):
        H = rate * d.step(s, t)
        second = (phi1(H) / 2 if variant == "phi_1" else phi2(H)) / r
        return [[phi1(r * H)], [phi1(H) - second, second]]

    words = {"stage": stage, "shares": [r], "tables": tables, "keeps": even(eta)}
    return staged(points, x, ask, draw, **words)


def seeds_3(points, x, ask, draw, *, stage, eta=1.0):
    # as floats, which the plan's arguments are
    r1, r2, rate = mp.mpf(1.0 / 3.0), mp.mpf(2.0 / 3.0), 1 + mp.mpf(eta)

    def tables(s, t, shares):
        H = rate * d.step(s, t)
        a, b = r2 / r1 * phi2(r2 * H), phi2(H) / r2
        return [[phi1(r1 * H)], [phi1(r2 * H) - a, a], [phi1(H) - b, 0, b]]

    words = {"stage": stage, "shares": [r1, r2], "tables": tables, "keeps": even(eta)}
    return staged(points, x, ask, draw, **words)


def dpmpp_sde(points, x, ask, draw, *, stage, eta=1.0, r=0.5, path=None):
    """With k-diffusion's weights: 1 - rho_down/rho of each stage, and the mean over 1/(2r)."""
    r = mp.mpf(r)

    def tables(s, t, shares):
        alpha, sigma = level(EDM(), s.lam + r * d.step(s, t))
        mid = type(s)(None, alpha, sigma)
        one, two = (1 - split(s, p, mp.mpf(eta))[0] / s.rho for p in (mid, t))
        return [[one], [two * (1 - 1 / (2 * r)), two / (2 * r)]]

    words = {"stage": stage, "shares": [r], "tables": tables, "keeps": karras(eta)}
    return staged(points, x, ask, draw, **words, path=path)


def brownian(form):
    """The part of a Brownian path over (s, t) that its part over (s, stage) is."""
    clock = (lambda p: p.sigma) if form == "rf" else (lambda p: p.rho)
    return lambda s, mid, t: (clock(s) - clock(mid)) / (clock(s) - clock(t))


def _form(schedule) -> str:
    return "rf" if isinstance(schedule, Flow) else "ve"


STAGED = {"stage": "of the plan"}
_staged = partial(Case, adds=lambda schedule, grid: STAGED)
_two = lambda name, method, options, **expect: Case(
    name,
    ancestral,
    options,
    {"method": method, **expect},
    lambda schedule, grid: STAGED | {"form": _form(schedule)},
)

CASES: list = [
    _two("dpm_2_ancestral", "2", {}),
    _two("dpm_2_ancestral", "2", {"eta": 0.6}, eta=0.6),
    _two("dpmpp_2s_ancestral", "2s", {}),
    _two("dpmpp_2s_ancestral", "2s", {"eta": 0.6}, eta=0.6),
    _two("dpmpp_2s_ancestral", "2s", {"compat": "comfyui"}, nudged=True),
    _staged("dpmpp_sde", dpmpp_sde),
    _staged("dpmpp_sde", dpmpp_sde, {"eta": 0.6, "r": 0.3}, {"eta": 0.6, "r": 0.3}),
    Case(
        "dpmpp_sde",
        dpmpp_sde,
        {"compat": "k-diffusion"},
        adds=lambda schedule, grid: STAGED | {"path": brownian(_form(schedule))},
    ),
    _staged("seeds_2", seeds_2),
    _staged(
        "seeds_2",
        seeds_2,
        {"eta": 0.4, "r": 1.0, "variant": "phi_2"},
        {"eta": 0.4, "r": 1.0, "variant": "phi_2"},
    ),
    _staged("seeds_3", seeds_3),
    _staged("seeds_3", seeds_3, {"eta": 0.4}, {"eta": 0.4}),
]

# from sigma to half of it; a flow from .8 to .4 goes down to .2 (q = .6/.8), then back up
HALF, FLOW_UP = {"x": 0.5, "m": 0.5}, math.sqrt(0.16 - 0.0225)
# H phi_2(-H) = 1 - (1 - e^{-H})/H of H = ln 2, ln 4, ln 8
SECOND = [1 - (1 - 0.5**k) / (k * LN2) for k in (1, 2, 3)]
A, B = 2 * SECOND[1], 1.5 * SECOND[2]
LITERALS: list = [
    # 4 to 2: down 1, up sqrt(3), stage 2; x' = x/4 + 3/4·(m + 2 (m1 - m)) with x = 2 x1 - m
    (
        "dpm_2_ancestral",
        EDM(),
        [4, 2, 0],
        "x0",
        {},
        {1: HALF, 2: {"x": 0.5, "m": 1.5, "r0": -1.0, "n0": ROOT3}, 3: {"m": 1}},
    ),
    # the stage of .8 and .2 is .4; x' = q/4·x + 3q/4·(m + 2 (m1 - m)) with x = 2 x1 - m
    (
        "dpm_2_ancestral",
        Flow(),
        [0.8, 0.4, 0],
        "flow",
        {},
        {1: HALF, 2: {"x": 0.375, "m": 1.125, "r0": -0.75, "n0": FLOW_UP}},
    ),
    (
        "dpmpp_2s_ancestral",
        EDM(),
        [4, 2, 0],
        "x0",
        {},
        {1: HALF, 2: {"x": 0.5, "m": 0.75, "r0": -0.25, "n0": ROOT3}, 3: {"m": 1}},
    ),
    # the stage of .8 and .2 is .5 in lambda: x1 = 5/8 x + 3/8 m, x' = q/4·x + 3q/4·m1
    (
        "dpmpp_2s_ancestral",
        Flow(),
        [0.8, 0.4, 0],
        "flow",
        {},
        {1: {"x": 0.625, "m": 0.375}, 2: {"x": 0.3, "m": 0.5625, "r0": -0.1125, "n0": FLOW_UP}},
    ),
    # 8 to 2 by way of 4: k = 1/2, then 1/4; x' = x/16 + 15/16 m1 + 2 (z1/2 + sqrt(3)/2 n2), in
    # which x = 4 x1 - 3 m - 8 sqrt(3) n1 takes z1 = sqrt(3)/2 n1 away
    (
        "dpmpp_sde",
        EDM(),
        [8, 2, 0],
        "x0",
        {},
        {
            1: {"x": 0.25, "m": 0.75, "n0": 2 * ROOT3},
            2: {"x": 0.25, "m": 15 / 16, "r0": -3 / 16, "n0": ROOT3},
            3: {"m": 1},
        },
    ),
    # of a Brownian path over 8 - 2 the first noise is 4/6: 2 sqrt(15/16)·(sqrt(2/3) n1 + ..)
    (
        "dpmpp_sde",
        EDM(),
        [8, 2, 0],
        "x0",
        {"compat": "k-diffusion"},
        {
            2: {
                "x": 0.25,
                "m": 15 / 16,
                "r0": -3 / 16,
                "n0": math.sqrt(2.5) - ROOT3 / 2,
                "n1": math.sqrt(1.25),
            }
        },
    ),
    ("seeds_2", EDM(), [8, 2, 0], "x0", {}, {1: {"x": 0.25, "m": 0.75, "n0": 2 * ROOT3}}),
    (
        "seeds_2",
        EDM(),
        [4, 2, 0],
        "x0",
        {"eta": 0.0, "r": 1.0, "variant": "phi_2"},
        {1: HALF, 2: {"x": 1, "m": SECOND[0], "r0": -SECOND[0]}, 3: {"m": 1}},
    ),
    # 8 to 1 by way of 4 and 2: x2 = x/4 + (3/4 - a) m + a m1, x' = x/8 + (7/8 - b) m + b m2
    (
        "seeds_3",
        EDM(),
        [8, 1, 0],
        "x0",
        {"eta": 0.0},
        {
            1: HALF,
            2: {"x": 0.5, "m": A, "r0": 0.5 - A},
            3: {"x": 0.5, "m": B, "r1": -A / 2, "r0": 0.5 - B + A / 2},
        },
    ),
]
METHODS: list = [
    ("dpm_2_ancestral", {"eta": 0.0}, 2, 1),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2, 1),
    ("dpmpp_sde", {"eta": 0.0, "r": 0.7}, 2, 1),
    ("seeds_2", {"eta": 0.0, "r": 1.0, "variant": "phi_2"}, 2, 1),
    ("seeds_3", {"eta": 0.0}, 3, 1),
]
