"""The stochastic solvers: what each plan must be (case.py says how)."""

from __future__ import annotations

import math
from functools import partial

from fastsample.schedules import EDM, Flow

from . import stochastic_loops as loops
from .case import Case
from .loops import ddim, dpmpp_2m
from .marginals import point
from .stochastic_loops import ancestral, brownian, dpmpp_sde, er_sde, seeds_2, seeds_3

LN2, ROOT3 = math.log(2.0), math.sqrt(3.0)


def _form(schedule) -> str:
    return "rf" if isinstance(schedule, Flow) else "ve"


def frame(schedule, grid) -> str:
    """Where Heun steps: in rho, or on the line of a flow."""
    on_line = type(schedule).__name__ in ("Flow", "TrigFlow") or schedule.alpha(grid[0]) == 0
    return "line" if on_line else "rho"


def _tcd(options: dict, down, whole: bool = False) -> Case:
    """whole: of the table's entries."""

    def adds(schedule, grid):
        floor = whole and type(schedule).__name__ == "DiscreteVP"

        def lower(p):
            t = p.t if p.t <= 0 else math.floor(down(p.t)) if floor else down(p.t)
            return p if t == p.t else point(schedule, t)

        return {"lower": lower}

    return Case("tcd", loops.tcd, options, adds=adds)


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
    Case("er_sde", er_sde),
    Case("er_sde", er_sde, {"order": 2, "eta": 1.0}, {"order": 2, "eta": 1.0}),
    Case("er_sde", er_sde, {"compat": "comfyui"}, {"published": True}),
    Case("ddpm", loops.ddpm),
    Case("ddpm", loops.ddpm, {"variance": "fixed_large"}, {"large": True}, marginal=False),
    Case(
        "ddpm",
        loops.ddpm,
        {"variance": "fixed_large", "compat": "diffusers"},
        {"large": True, "published": True},
        marginal=False,
    ),
    _tcd({}, lambda t: (1.0 - 0.3) * t),
    _tcd({"gamma": 0.8, "compat": "diffusers"}, lambda t: (1.0 - 0.8) * t, whole=True),
    Case("flow_sde", loops.flow_sde, marginal=False),
    # with one branch; test_cfgpp.py has two
    Case("euler_cfgpp", ddim),
    Case("euler_cfgpp", ddim, {"eta": 0.6}, {"eta": 0.6}),
    Case("dpmpp_2m_cfgpp", dpmpp_2m),
    _staged("dpmpp_2s_ancestral_cfgpp", ancestral, {}, {"method": "2s", "form": "ve"}),
    Case(
        "restart",
        loops.restart,
        adds=lambda schedule, grid: STAGED | {"frame": frame(schedule, grid), "places": {}},
    ),
]

# from sigma to half of it; a flow from .8 to .4 goes down to .2 (q = .6/.8), then back up
CFGPP = {"x": 0.5, "m": 1.0, "f0": -0.5}
HALF, FLOW_UP = {"x": 0.5, "m": 0.5}, math.sqrt(0.16 - 0.0225)
# H phi_2(-H) = 1 - (1 - e^{-H})/H of H = ln 2, ln 4, ln 8
SECOND = [1 - (1 - 0.5**k) / (k * LN2) for k in (1, 2, 3)]
A, B = 2 * SECOND[1], 1.5 * SECOND[2]
# er_sde of phi = rho, from rho to half of it: J_1 = ln 2 - 1, J_2 = 3 - 4 ln 2, u_1 = 2, u_2 = 6
J, K = LN2 - 1, 5 - 6 * LN2
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
    # phi = rho²: r = 1/4, up = sqrt(4 - 1)
    ("er_sde", EDM(), [4, 2, 0], "x0", {"eta": 1.0}, {1: {"x": 0.25, "m": 0.75, "n0": ROOT3}}),
    (
        "er_sde",
        EDM(),
        [8, 4, 2, 1, 0],
        "x0",
        {"eta": 0.0},
        {
            1: HALF,
            2: {"x": 0.5, "m": 0.5 - J / 2, "r0": J / 2},
            3: {"x": 0.5, "m": 0.5 - J / 2 + K / 12, "r1": J / 2 - K / 8, "r0": K / 24},
            4: {"m": 1},
        },
    ),
    ("ddpm", EDM(), [4, 2, 0], "x0", {}, {1: {"x": 0.25, "m": 0.75, "n0": ROOT3}, 2: {"m": 1}}),
    (
        "ddpm",
        EDM(),
        [4, 2, 0],
        "x0",
        {"variance": "fixed_large"},
        {1: {"x": 0.25, "m": 0.75, "n0": 2 * ROOT3}, 2: {"m": 1}},
    ),
    # .8 to .2, then up to .4: q = .6/.8
    (
        "tcd",
        Flow(),
        [0.8, 0.4, 0],
        "flow",
        {"gamma": 0.5},
        {1: {"x": 0.1875, "m": 0.5625, "n0": FLOW_UP}, 2: {"m": 1}},
    ),
    # D = 1/3, a²/(2 (1 - s)) = 1/2: 1 - 1/3 - 1/6, (1 + 1/8)/3, 3/8 sqrt(4/3)
    (
        "flow_sde",
        Flow(),
        [0.75, 0.5, 0],
        "flow",
        {"a": 0.5},
        {1: {"x": 0.5, "m": 0.375, "n0": ROOT3 / 4}, 2: {"m": 1}},
    ),
    # from s = 1 with the next point's 1 - s = 1/2: D = 1/2, a²/(2/2) = 1/4
    (
        "flow_sde",
        Flow(),
        [1, 0.5, 0],
        "flow",
        {"a": 0.5},
        {1: {"x": 0.375, "m": 0.5, "n0": 0.5}, 2: {"m": 1}},
    ),
    # half of x, D, and half of D_u less: with the model's output as the base's too
    ("euler_cfgpp", EDM(), [4, 2, 0], "x0", {}, {1: CFGPP, 2: {"m": 1}}),
    (
        "dpmpp_2m_cfgpp",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {},
        {1: CFGPP, 2: {"x": 0.5, "m": 1.25, "f0": -0.5, "r0": -0.25}, 3: {"m": 1}},
    ),
    # down to 1 by way of 2: u = x + D - D_u, x1 = u/2 + D/2, x' = u/4 + 3/4 D1
    (
        "dpmpp_2s_ancestral_cfgpp",
        EDM(),
        [4, 2, 0],
        "x0",
        {},
        {1: CFGPP, 2: {"r0": 0.25, "m": 0.75, "n0": ROOT3}, 3: {"m": 1}},
    ),
    # from 2 back up to 4, sqrt(16 - 4) of noise, and down again in one step
    (
        "restart",
        EDM(),
        [4, 2, 1, 0],
        "x0",
        {"intervals": [(1, 1, 2.0, 4.0)]},
        {
            1: HALF,
            2: {"x": 1, "m": 0.5, "r0": -0.5, "n0": 2 * ROOT3},
            3: HALF,
            4: {"x": 1, "m": 0.5, "r0": -0.5},
            5: HALF,
            7: {"m": 1},
        },
    ),
]
METHODS: list = [
    ("dpm_2_ancestral", {"eta": 0.0}, 2, 1),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, 2, 1),
    ("dpmpp_sde", {"eta": 0.0, "r": 0.7}, 2, 1),
    ("seeds_2", {"eta": 0.0, "r": 1.0, "variant": "phi_2"}, 2, 1),
    ("seeds_3", {"eta": 0.0}, 3, 1),
    ("er_sde", {"eta": 0.0, "order": 2}, 2, 2),
    ("er_sde", {"eta": 0.0}, 3, 3),
    ("tcd", {"gamma": 0.0}, 1, 1),
    ("flow_sde", {"a": 0.0}, 1, 1),
    ("euler_cfgpp", {}, 1, 1),
    ("dpmpp_2m_cfgpp", {}, 2, 2),
    ("dpmpp_2s_ancestral_cfgpp", {"eta": 0.0}, 2, 1),
]
