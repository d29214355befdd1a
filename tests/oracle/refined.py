"""RES of two steps, its ancestral form and CFG++'s, consistency models' own steps: what each plan
must be (case.py says how).
"""

from __future__ import annotations

import math
from itertools import pairwise

from fastsample.schedules import EDM, Flow

from . import derivations as d
from . import loops
from .case import Case
from .linear import mp
from .stochastic_loops import split


def ancestral(points, x, ask, draw, *, form, eta=1.0):
    """The line through two outputs integrated over lambda down to the ancestral level, the older as
    far back as the last step went down, then noise: "ve" in y = x/alpha and rho, "rf" in x and a
    flow's sigma.
    """
    eta, older, back = mp.mpf(eta), None, mp.inf
    for s, t in pairwise(points):
        x, m = ask(x, s)
        if form == "rf":
            low = t.sigma * (1 + (t.sigma / s.sigma - 1) * eta)
            scale = t.alpha / (1 - low)
            up = mp.sqrt(t.sigma**2 - (scale * low) ** 2)
            kept, clean = scale * low / s.sigma, t.alpha
            lam = mp.log((1 - low) / low) if low else mp.inf
        else:
            low, up = (t.alpha * v for v in split(s, t, eta)) if t.sigma else (mp.mpf(0),) * 2
            kept, clean = low / s.sigma, t.alpha
            lam = mp.log(t.alpha / low) if low else mp.inf
        H = lam - s.lam
        if not mp.isfinite(H):  # the straight line to the prediction
            x = kept * x + (clean - kept * s.alpha) * m
        else:
            seen, values = [s.lam, s.lam - back], [m, older]
            used = 2 if mp.isfinite(back) else 1
            W = d.exact_weights(seen[:used], s.lam, lam)
            x = loops.combine(kept, x, [clean * w for w in W], values[:used])
        x = x + up * draw() if up else x
        older, back = m, H
    return x


def cm(points, x, ask, draw, *, sigma_min=0.002, sigma_data=0.5):
    """Song et al. 2023, algorithm 1 in y = x/alpha and rho, of the network F whose x0 is EDM's."""
    low, sd = mp.mpf(sigma_min), mp.mpf(sigma_data)
    for s, t in pairwise(points):
        x, m = ask(x, s)
        if s.alpha == 0:
            y = m
        elif s.rho <= low:
            y = (1 / s.alpha) * x
        else:
            norm, y = mp.sqrt(s.rho**2 + sd**2), (1 / s.alpha) * x
            F = (norm / (sd * s.rho)) * (m - (sd**2 / norm**2) * y)
            y = (sd**2 / ((s.rho - low) ** 2 + sd**2)) * y + ((s.rho - low) * sd / norm) * F
        x = t.alpha * y
        if t.rho > low:
            x = x + (t.alpha * mp.sqrt(t.rho**2 - low**2)) * draw()
    return x


def _ancestral(name: str, options: dict, **expect) -> Case:
    def adds(schedule, grid):
        own = isinstance(schedule, Flow) and name == "res_multistep_ancestral"
        return {"form": "rf" if own else "ve"}

    return Case(name, ancestral, options, expect, adds)


CASES: list = [
    Case("res_multistep", loops.dpmpp_2m, {}, {"kind": "heun"}),
    _ancestral("res_multistep_ancestral", {}),
    _ancestral("res_multistep_ancestral", {"eta": 0.6}, eta=0.6),
    # with one branch; test_cfgpp.py has two
    _ancestral("res_multistep_cfgpp", {}, eta=0.0),
    _ancestral("res_multistep_cfgpp", {"eta": 0.6}, eta=0.6),
    Case("cm", cm, marginal=False),
    Case(
        "cm",
        cm,
        {"sigma_min": 0.3, "sigma_data": 1.0},
        {"sigma_min": 0.3, "sigma_data": 1.0},
        marginal=False,
    ),
]
# h phi_2(-h) of ln 2 and ln 4
LN2 = math.log(2.0)
LINE, TWICE = 1 - 0.5 / LN2, 1 - 0.75 / (2 * LN2)
# a flow from .8 to .4 goes down to .2, ln 16 in lambda; from .4 to .2 to .1, ln 6 (q = .8/.9)
DOWN, Q = (math.log(6) - 5 / 6) / math.log(16), 0.8 / 0.9
CFGPP = {"x": 0.5, "m": 1.0, "f0": -0.5}
LITERALS: list = [
    (
        "res_multistep",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {},
        {1: {"x": 0.5, "m": 0.5}, 2: {"x": 0.5, "m": 0.5 + LINE, "r0": -LINE}, 3: {"m": 1}},
    ),
    # from 4 to 2 by way of 1, ln 4; from 16 to 4 by way of 1, ln 16
    (
        "res_multistep_ancestral",
        EDM(),
        [16, 4, 2, 0],
        "x0",
        {},
        {2: {"x": 0.25, "m": 0.75 + TWICE / 2, "r0": -TWICE / 2, "n0": 3**0.5}, 3: {"m": 1}},
    ),
    (
        "res_multistep_ancestral",
        Flow(),
        [0.8, 0.4, 0.2, 0],
        "x0",
        {},
        {
            2: {
                "x": Q / 4,
                "m": 2 / 3 + 0.8 * DOWN,
                "r0": -0.8 * DOWN,
                "n0": math.sqrt(0.04 - (0.1 * Q) ** 2),
            }
        },
    ),
    # (x + D - D_u)/2, then D_u/2 and the line of D_u, the model's output as the base's too
    (
        "res_multistep_cfgpp",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {},
        {1: CFGPP, 2: {"x": 0.5, "m": 0.5, "f0": LINE, "r0": -LINE}, 3: {"m": 1}},
    ),
    # at 2, c_skip = 1/2 and c_out = 1/sqrt(5) where EDM's are 1/5 and 2/sqrt(5): x/2 + (m - x/5)/2
    (
        "cm",
        EDM(),
        [2, 1.25, 1, 0],
        "x0",
        {"sigma_min": 1.0, "sigma_data": 1.0},
        {1: {"x": 0.4, "m": 0.5, "n0": 0.75}, 3: {"x": 1}},
    ),
    # x/4 + D - D_u/4, and -3 (e_u - r0) with e_u = (x - D_u)/4
    (
        "gradient_estimation_cfgpp",
        EDM(),
        [8, 4, 1, 0],
        "x0",
        {},
        {1: CFGPP, 2: {"x": -0.5, "m": 1, "f0": 0.5, "r0": 3}, 3: {"m": 1}},
    ),
]
METHODS: list = [
    ("res_multistep", {}, 2, 2),
    ("res_multistep_ancestral", {"eta": 0.0}, 2, 2),
    ("res_multistep_cfgpp", {}, 2, 2),
    ("gradient_estimation_cfgpp", {}, 1, 2),
]
