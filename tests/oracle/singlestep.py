"""The Runge-Kutta solvers, exponential and classical: what each plan must be (case.py says how)."""

from __future__ import annotations

import math

from fastsample.schedules import EDM, Flow

from .case import Case
from .linear import mp
from .marginals import point
from .stages import dpm_2, dpm_fast, dpm_solver, etdrk4, exponential, heunpp2, lawson4, rk, walk

TAYLOR, SHARES = {"variant": "taylor"}, {"r1": 0.25, "r2": 0.8}
SECOND = {"order": 2} | TAYLOR
LN2 = math.log(2.0)
LINE, WIDE = 2 - 0.75 / LN2, 1.5 - 0.4375 / LN2  # of the literal case of dpmpp_3s
BACK = 1.5 / LN2 - 1  # of that of dpm_fast


def _line(schedule, grid) -> bool:
    return type(schedule).__name__ in ("Flow", "TrigFlow") or schedule.alpha(grid[0]) == 0


def _single(name: str, options: dict, orders, **expect) -> Case:
    adds = lambda schedule, grid: {"stage": "of the plan"}
    return Case(name, dpm_solver, options, {"orders": orders} | expect, adds)


def _walk(name: str, options: dict, order: int, **expect) -> Case:
    return Case(name, walk, options | {"compat": "diffusers"}, {"order": order} | expect)


def _classical(options: dict, name: str) -> Case:
    adds = lambda schedule, grid: {
        "stage": "of the plan",
        "frame": "line" if _line(schedule, grid) else "rho",
    }
    return Case("rk", rk, options, {"name": name}, adds)


def _framed(name: str, loop, options: dict, **expect) -> Case:
    def adds(schedule, grid):
        line = _line(schedule, grid) and "space" not in options
        words = {"end": _end(schedule)} if "churn" in expect else {}
        words |= {"stage": "of the plan"} if loop is dpm_2 else {}
        return words | {"frame": "line" if line else "rho"}

    return Case(name, loop, options, expect, adds)


def _end(schedule):
    return -mp.inf if isinstance(schedule, EDM) else point(schedule, schedule.t_max).lam


def _exponential(name: str, step, nodes, marginal: bool = True) -> Case:
    adds = lambda schedule, grid: {"stage": "of the plan"}
    words = {"nodes": nodes, "step": step, "limit": marginal}
    return Case("rk", exponential, {"tableau": name}, words, adds, marginal)


CASES: list = [
    _classical({}, "rk4"),
    _classical({"tableau": "midpoint"}, "midpoint"),
    _exponential("etdrk4", etdrk4, [0.5, 0.5, 1]),
    _exponential("lawson4", lawson4, [0.5, 0.5, 1], marginal=False),
    _single("dpmpp_2s", {"variant": "taylor"}, lambda n: [2] * n, **TAYLOR),
    _walk("dpmpp_2s", {}, 2),
    _single("dpmpp_3s", {}, lambda n: [3] * n),
    _single(
        "dpmpp_3s", {"r1": 0.25, "r2": 0.8} | TAYLOR, lambda n: [3] * n, r=(0.25, 0.8), **TAYLOR
    ),
    _walk("dpmpp_3s", {}, 3),
    _walk("dpmpp_3s", TAYLOR, 3, **TAYLOR),
    _single("dpm_solver_singlestep", {}, lambda n: [3] * n, noise=True),
    _single(
        "dpm_solver_singlestep", {"order": 2} | TAYLOR, lambda n: [2] * n, noise=True, **TAYLOR
    ),
    _walk("dpm_solver_singlestep", {}, 3, noise=True),
    _single("dpm_fast", {}, lambda n: [3] * (n - 1) + [1], noise=True),
    Case(
        "dpm_fast",
        dpm_fast,
        {"eta": 0.6},
        {"orders": lambda n: [3] * (n - 1) + [1], "eta": 0.6},
        lambda schedule, grid: {"stage": "of the plan", "schedule": schedule},
    ),
    _framed("dpm_2", dpm_2, {}),
    _framed("dpm_2", dpm_2, {"space": "rho", "s_churn": 2.0}, churn=2.0),
    _framed("heunpp2", heunpp2, {}),
]

LITERALS: list = [
    # 4 -> 2 by way of 3: x' = x - 2 (x1 - m1)/3 with x = 4/3 x1 - m0/3; 2 -> 0 by way of 1:
    # x' = x - 2 (x1 - m1) with x = 2 x1 - m0
    (
        "rk",
        EDM(),
        [4, 2, 0],
        "x0",
        {"tableau": "midpoint"},
        {
            1: {"x": 0.75, "m": 0.25},
            2: {"x": 2 / 3, "m": 2 / 3, "r0": -1 / 3},
            3: {"x": 0.5, "m": 0.5},
            4: {"m": 2, "r0": -1},
        },
    ),
    # x1 = x - v0/4, x2 = x - v1/4, x3 = x - v2/2, x' = x - (v0 + 2 v1 + 2 v2 + v3)/12
    (
        "rk",
        Flow(),
        [1, 0.5, 0],
        "flow",
        {},
        {
            1: {"x": 1, "m": -1 / 4},
            2: {"x": 1, "m": -1 / 4, "r0": 1 / 4},
            3: {"x": 1, "m": -1 / 2, "r1": 1 / 4},
            4: {"x": 1, "m": -1 / 12, "r2": 1 / 3, "r1": -1 / 6, "r0": -1 / 12},
            5: {"x": 1, "m": -1 / 2},
        },
    ),
    # x' = x/2 + (1/2 - I_1) m + I_1 m1, I_1 = h phi_2(-h), with x = 2 x1 - m
    (
        "rk",
        EDM(),
        [4, 2, 0],
        "x0",
        {"tableau": "exp_heun"},
        {
            1: {"x": 0.5, "m": 0.5},
            2: {"x": 1, "m": 1 - 0.5 / LN2, "r0": 0.5 / LN2 - 1},
            3: {"m": 1},
        },
    ),
    # 8 -> 1 by way of 4 and 2, h = 3 ln 2. x2 = x/4 + 3/4 m + LINE (m1 - m) with x = 2 x1 - m,
    # LINE = (r2²/r1) h phi_2(-2 ln 2); x' = x/8 + 7/8 m + WIDE (m2 - m), WIDE = h phi_2(-h)/r2
    (
        "dpmpp_3s",
        EDM(),
        [8, 1, 0],
        "x0",
        {},
        {
            1: {"x": 0.5, "m": 0.5},
            2: {"x": 0.5, "m": LINE, "r0": 0.5 - LINE},
            3: {"x": 0.5, "m": WIDE, "r1": -LINE / 2, "r0": 0.5 + LINE / 2 - WIDE},
            4: {"m": 1},
        },
    ),
    # 4 -> 1 by way of 2: x' = x - 3 e1, e1 = (x1 - m1)/2, with x = 2 x1 - m
    (
        "dpm_solver_singlestep",
        EDM(),
        [4, 1, 0],
        "x0",
        {"order": 2},
        {1: {"x": 0.5, "m": 0.5}, 2: {"x": 0.5, "m": 1.5, "r0": -1}, 3: {"m": 1}},
    ),
    # x2 = x - 6 e - 4 BACK (e1 - e), BACK = (e^{2 ln 2} - 1)/(2 ln 2) - 1; e1 - e = (m - m1)/4
    (
        "dpm_fast",
        EDM(),
        [8, 1, 0.5],
        "x0",
        {},
        {
            1: {"x": 0.5, "m": 0.5},
            2: {"x": 0.5, "m": BACK, "r0": 0.5 - BACK},
            4: {"x": 0.5, "m": 0.5},
        },
    ),
    # down to 2²/4 = 1 as below, and up to 2; the last step stops at the end
    (
        "dpm_fast",
        EDM(),
        [4, 2, 1],
        "x0",
        {"eta": 1.0, "nfe": 3},
        {
            1: {"x": 0.5, "m": 0.5},
            2: {"x": 0.5, "m": 1.5, "r0": -1, "n0": 3**0.5},
            3: {"x": 0.5, "m": 0.5},
        },
    ),
    # 4 -> 1 by way of 2: x' = x - 3 (x1 - m1)/2 with x = 2 x1 - m
    (
        "dpm_2",
        EDM(),
        [4, 1, 0],
        "x0",
        {},
        {1: {"x": 0.5, "m": 0.5}, 2: {"x": 0.5, "m": 1.5, "r0": -1}, 3: {"m": 1}},
    ),
    # s = .64 -> .16 by way of .32
    (
        "dpm_2",
        Flow(),
        [0.64, 0.16, 0],
        "flow",
        {},
        {1: {"x": 1, "m": -0.32}, 2: {"x": 1, "m": -0.48, "r0": 0.32}, 3: {"x": 1, "m": -0.16}},
    ),
    # f1 - f = (m - m1)/4, x2 = x1 - 2 f1 = x1/2 + m1/2; f2 - f = (m - m2 + d2)/2 with
    # d2 = -2 (f1 - f) = (m1 - m)/2; x' = x1 - 4 (f1 - f)/6 - 4 (f2 - f)/12, x1 = 2 x2 - m1.
    # Then 4 -> 2, w1 = 1/8: x' = x1 - 2 (m - m1)/2/8
    (
        "heunpp2",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {},
        {
            1: {"x": 0.5, "m": 0.5},
            2: {"x": 0.5, "m": 0.5},
            3: {"x": 2, "m": 1 / 6, "r1": 1 / 6 - 1 / 12 - 1, "r0": -1 / 6 - 1 / 6 + 1 / 12},
            4: {"x": 0.5, "m": 0.5},
            5: {"x": 1, "m": 1 / 8, "r0": -1 / 8},
            6: {"m": 1},
        },
    ),
]
METHODS: list = [
    ("rk", {}, 4, 1),
    ("dpmpp_3s", {}, 3, 1),
    ("dpmpp_3s", TAYLOR, 3, 1),
    ("dpm_solver_singlestep", {}, 3, 1),
    ("dpm_solver_singlestep", {"order": 2}, 2, 1),
    ("dpm_fast", {}, 2, 1),
    ("dpm_2", {}, 2, 1),
    ("dpm_2", {}, 2, 1, {"schedule": Flow(3.0)}),
    ("heunpp2", {}, 1, 1),
]
