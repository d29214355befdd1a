"""Stand-ins for samplers that no library installed here has: each a loop in float64, written from
the rule that ComfyUI, or the paper where ComfyUI lacks it, publishes, and probed by superposition
as the peers of test_peers.py are.

A rule steps y = x/alpha over the levels rho = sigma/alpha, or x over a flow's sigma. ask(y, level)
is (D, D_u), the guided x0 and the base's: two vectors of the basis, weighed by the scale of the
run, or one twice where the plan has one branch.
"""

from __future__ import annotations

from itertools import pairwise
from math import exp, expm1, inf, log, sqrt

import numpy as np
import pytest
import torch
from oracle.peers import Trace
from test_peers import SIGMAS, compare, pytestmark  # noqa: F401

from fastsample import grids
from fastsample.guidance import guided
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS

SCALE = 0.6
KARRAS = 7.0


def split(s, t, eta):
    """(down, up): the level gone down to, and the noise that leads back up from there to t."""
    up = min(t, eta * sqrt(t * t * (s * s - t * t) / (s * s)))
    return sqrt(t * t - up * up), up


def euler(y, levels, ask, noise, *, eta=0.0):
    """euler_cfg_pp, euler_ancestral_cfg_pp."""
    for s, t in pairwise(levels):
        D, free = ask(y, s)
        down, up = split(s, t, eta)
        y = D + down * ((y - free) / s)
        y = y + up * noise() if up else y
    return y


def two_steps(y, levels, ask, noise):
    """dpmpp_2m_cfg_pp."""
    old, last = None, None
    for s, t in pairwise(levels):
        D, free = ask(y, s)
        h = log(s / t) if t else inf
        mixed = -exp(-h) * free
        if old is not None and t:
            mixed = mixed - expm1(-h) / (2 * last / h) * (D - old)
        y, old, last = D + mixed + exp(-h) * y, free, h
    return y


def two_stages(y, levels, ask, noise, *, eta=1.0):
    """dpmpp_2s_ancestral_cfg_pp."""
    for s, t in pairwise(levels):
        D, free = ask(y, s)
        down, up = split(s, t, eta)
        if not down:
            y = D
        else:
            h = log(s / down)
            inner = exp(-h / 2) * (y + D - free) - expm1(-h / 2) * D
            late, _ = ask(inner, s * exp(-h / 2))
            y = exp(-h) * (y + D - free) - expm1(-h) * late
        y = y + up * noise() if up else y
    return y


def refined(y, levels, ask, noise, *, eta=0.0):
    """res_multistep, its ancestral and its CFG++ forms."""
    old, back = None, None
    for s, t in pairwise(levels):
        D, free = ask(y, s)
        down, up = split(s, t, eta)
        if old is None or not down:
            y = D + down * ((y - free) / s)
        else:
            h = log(s / down)
            c2 = -back / h
            phi_1 = -expm1(-h) / h
            phi_2 = (phi_1 - 1) / -h
            own = (phi_1 - phi_2 / c2) * free + (phi_2 / c2) * old
            y = exp(-h) * (y + D - free) + h * own
        y = y + up * noise() if up else y
        old, back = free, log(s / down) if down else inf
    return y


def estimated(y, levels, ask, noise, *, gamma=2.0):
    """gradient_estimation, gradient_estimation_cfg_pp."""
    old = None
    for s, t in pairwise(levels):
        D, free = ask(y, s)
        d = (y - free) / s
        if not t:
            return D
        y = D + t * d
        y = y if old is None else y + (gamma - 1) * (t - s) * (d - old)
        old = d
    return y


def er_sde(y, levels, ask, noise):
    """er_sde, with its sums of 200 points."""
    scaler = lambda v: v * (np.exp(v**0.3) + 10)
    old, slope, past = None, None, []
    for s, t in pairwise(levels):
        D, _ = ask(y, s)
        if not t:
            return D
        r, dt = float(scaler(t) / scaler(s)), t - s
        y = r * y + (1 - r) * D
        at = t - dt / 200 * np.arange(200)
        if past:
            new = (D - old) / (s - past[-1])
            y = y + (dt - dt / 200 * float((1 / scaler(at)).sum() * scaler(t))) * new
            if len(past) > 1:
                curve = (new - slope) / ((s - past[-2]) / 2)
                area = -dt / 200 * float(((at - s) / scaler(at)).sum() * scaler(t))
                y = y + (dt * dt / 2 + area) * curve
            slope = new
        old, past = D, [*past, s]
        y = y + sqrt(t * t - s * s * r * r) * noise()
    return y


def seeds(y, levels, ask, noise, *, shares, eta=1.0):
    """seeds_2 (one share, phi_1) and seeds_3 (two): the noise of a stage grows along the step."""
    for s, t in pairwise(levels):
        m, _ = ask(y, s)
        if not t:
            return m
        h, base, outputs, z, gone = log(s / t), y, [m], 0.0, 0.0
        for j, share in enumerate((*shares, 1.0)):
            H = share * h * (1 + eta)
            late = 0.0  # the weight of the newest output's difference from the first
            if j and len(shares) == 1:
                late = -expm1(-H) / (2 * shares[0])
            elif j:
                late = (expm1(-H) + H) / H * share / shares[j - 1]
            mean = -expm1(-H) * m + late * (outputs[-1] - m)
            step = (share - gone) * h * eta
            z, gone = exp(-step) * z + sqrt(-expm1(-2 * step)) * noise(), share
            rho = s * exp(-share * h)
            y = exp(-share * h * (1 + eta)) * base + mean + rho * z
            if share < 1.0:
                outputs.append(ask(y, rho)[0])
    return y


def heun(y, s, t, ask):
    d = (y - ask(y, s)[0]) / s
    if not t:
        return y - s * d
    late = y + (t - s) * d
    return y + (t - s) * (d + (late - ask(late, t)[0]) / t) / 2


def restart(y, levels, ask, noise, *, steps, times, low, high):
    """Algorithm 1 of the paper with one interval."""
    for s, t in pairwise(levels):
        y = heun(y, s, t, ask)
        for _ in range(times if t == low else 0):
            y = y + sqrt(high**2 - low**2) * noise()
            ends = high ** (1 / KARRAS), low ** (1 / KARRAS)
            down = [(ends[0] + k / steps * (ends[1] - ends[0])) ** KARRAS for k in range(steps)]
            for a, b in pairwise([*down, low]):
                y = heun(y, a, b, ask)
    return y


def heunpp2(y, levels, ask, noise):
    slope = lambda y, s: (y - ask(y, s)[0]) / s
    for i, (s, t) in enumerate(pairwise(levels)):
        d, more = slope(y, s), levels[i + 2 :]
        mean = d
        if more:
            late = y + (t - s) * d
            d2 = slope(late, t)
            w2 = t / ((2 if len(more) == 1 else 3) * levels[0])
            mean = (1 - w2) * d + w2 * d2
            if len(more) > 1:
                u = more[0]
                w3 = u / (3 * levels[0])
                mean = mean + w3 * (slope(late + (u - t) * d2, u) - d)
        y = y + (t - s) * mean
    return y


def flow_sde(x, levels, ask, noise, *, a=0.7):
    """Flow-GRPO's, in x over a flow's own sigma."""
    for s, t in pairwise(levels):
        D, _ = ask(x, s)
        if not t:
            return D
        v, g = (x - D) / s, a * sqrt(s / (1 - s))
        x = x + (t - s) * (v + g * g / (2 * s) * (x + (1 - s) * v)) + g * sqrt(s - t) * noise()
    return x


LINE = Flow()  # where x is stepped over sigma
RHO = [EDM(), VP(), Flow(3.0)]
ETA, QUIET = {"eta": 1.0}, {"eta": 0.6}
AGAIN = {"steps": 2, "times": 2, "low": 0.6, "high": 4.1}
# rule, its options, our solver, its options, branches, evaluations and draws, schedules
CASES = [
    (euler, {}, "euler_cfgpp", {}, 2, 7, 0, RHO),
    (euler, ETA, "euler_cfgpp", ETA, 2, 7, 6, RHO),
    (two_steps, {}, "dpmpp_2m_cfgpp", {}, 2, 7, 0, RHO),
    (two_stages, QUIET, "dpmpp_2s_ancestral_cfgpp", QUIET, 2, 13, 6, RHO),
    (refined, {}, "res_multistep", {}, 1, 7, 0, RHO),
    (refined, {}, "res_multistep", {"compat": "comfyui"}, 1, 7, 0, [LINE]),
    (refined, ETA, "res_multistep_ancestral", {}, 1, 7, 6, RHO[:2]),
    (refined, QUIET, "res_multistep_ancestral", QUIET, 1, 7, 6, RHO[:2]),
    (refined, {}, "res_multistep_cfgpp", {}, 2, 7, 0, RHO),
    (refined, QUIET, "res_multistep_cfgpp", QUIET, 2, 7, 6, RHO),
    (estimated, {}, "gradient_estimation", {}, 1, 7, 0, [*RHO[:2], LINE]),
    (estimated, {"gamma": 1.5}, "gradient_estimation_cfgpp", {"gamma": 1.5}, 2, 7, 0, RHO[:2]),
    (er_sde, {}, "er_sde", {"compat": "comfyui"}, 1, 7, 6, RHO),
    (seeds, {"shares": (0.5,)}, "seeds_2", {}, 1, 13, 12, RHO),
    (seeds, {"shares": (0.3,)} | QUIET, "seeds_2", {"r": 0.3} | QUIET, 1, 13, 12, RHO),
    (seeds, {"shares": (1 / 3, 2 / 3)}, "seeds_3", {}, 1, 19, 18, RHO),
    (restart, AGAIN, "restart", {"intervals": [(2, 2, 0.6, 4.1)]}, 1, 21, 2, RHO[:2]),
    (heunpp2, {}, "heunpp2", {}, 1, 18, 0, [*RHO[:2], LINE]),
    (flow_sde, {}, "flow_sde", {}, 1, 7, 6, [LINE]),
]


def driven(rule, levels, branches: int, calls: int, draws: int, **options) -> Trace:
    """The rule's states and the levels that it asks at."""
    unit = iter(torch.eye(1 + branches * calls + draws, dtype=torch.float64))
    start, outputs = next(unit), [[next(unit) for _ in range(branches)] for _ in range(calls)]
    trace, answers = Trace(), iter(outputs)

    def ask(y, level):
        trace.states.append(y.numpy().copy())
        trace.asked.append(level)
        given, *free = next(answers)
        return (free[0] + SCALE * (given - free[0]), free[0]) if free else (given, given)

    end = rule(start, levels, ask, lambda: next(unit), **options)
    trace.states.append(end.numpy().copy())
    assert next(answers, None) is None and next(unit, None) is None
    return trace


@pytest.mark.parametrize(
    "rule, theirs, ours, options, branches, calls, draws, schedule",
    [(*case, schedule) for *case, schedules in CASES for schedule in schedules],
)
def test_equals_the_published_rule(rule, theirs, ours, options, branches, calls, draws, schedule):
    line = SIGMAS / (1 + SIGMAS)  # a flow's sigma
    grid = grids.from_sigmas(schedule, line if isinstance(schedule, Flow) else SIGMAS)
    plan = SOLVERS[ours](schedule, grid, prediction="x0", **options)
    plan = plan if branches == 1 else guided(plan)
    on_flow = schedule is LINE
    levels = (line if on_flow else SIGMAS).tolist()
    trace = driven(rule, levels, branches, calls, draws, **theirs)
    asked = plan.sigma / (1.0 if on_flow else plan.alpha)
    np.testing.assert_allclose(asked[plan.call >= 0], trace.asked, rtol=1e-11)
    scale = () if branches == 1 else (SCALE,)
    compare(plan, trace, scaled=not on_flow, scale=scale)
