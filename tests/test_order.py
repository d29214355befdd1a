"""The order of every deterministic solver, three ways.

(a) Algebra, no model: a row of order p integrates its prediction exactly when that is a polynomial
of degree < p in the row's own variable (lambda for
    the exponential solvers, sigma/alpha or the flow's sigma for Heun). The published shortcuts (2M
    midpoint, 2S, UniPC's 1/2) miss the top degree by O(h^{p+1}), within a bound of their own.
(b) Slope from exact history on a Gaussian mixture: the rows as such.
(c) Slope as users run it, started at order 1: what docs/orders.md prints.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import orders
from oracle.cases import SCHEDULES, grid, schedule_id
from oracle.derivations import moments
from oracle.linear import mp
from oracle.marginals import points
from oracle.probe import states

from fastsample.schedules import EDM
from fastsample.solvers import SOLVERS

CONTINUOUS = SCHEDULES[:6]
SIZES = (1, 2, 3, 10, 100)


def transitions(run, calls_a_step: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(a [n], W [n, 1+calls]): x_{i+1} = a_i x_i + sum_j W_ij m_j between the states before each
    step's first call (a from the start noise's share)."""
    at = run.states[::calls_a_step]
    a = at[1:, 0] / at[:-1, 0]
    return a, at[1:] - a[:, None] * at[:-1]


def exact_moment(s, t, degree: int):
    """alpha_t int_s^t e^{lambda - lambda_t} (lambda - lambda_s)^degree dlambda."""
    h = t.lam - s.lam
    raw = moments(h, mp.mpf(1), degree + 1)  # of (lambda - lambda_t)
    return t.alpha * sum(
        mp.binomial(degree, k) * h ** (degree - k) * raw[k] for k in range(degree + 1)
    )


def moment_gap(weights, nodes, s, t, degree: int) -> tuple[float, float]:
    """(|sum_j W_j (lambda_j - lambda_s)^degree - exact|, size of its terms)."""
    terms = [
        mp.mpf(float(w)) * (p.lam - s.lam) ** degree for w, p in zip(weights, nodes, strict=True)
    ]
    want = exact_moment(s, t, degree)
    return float(abs(sum(terms) - want)), float(sum(abs(v) for v in terms) + abs(want))


def rounding(t, nodes) -> float:
    """1e-12, or what float64 knows of the shortest spacing."""
    lam = [float(p.lam) for p in {id(p): p for p in (*nodes, t)}.values()]
    gap = min(abs(a - b) for i, a in enumerate(lam) for b in lam[:i])
    return max(1e-12, 8 * 2.0**-52 * (1 + max(map(abs, lam))) / gap)


def _unip(order: int, variant: str) -> dict:
    return {"order": order, "variant": variant, "corrector": False, "lower_order_final": False}


# name: (options, order, how far the published shortcut may miss the top degree of a second-order
# row, in alpha h^3)
MULTISTEP = {
    "ddim": ({}, 1, 0),
    "euler_ancestral": ({"eta": 0.0}, 1, 0),
    "dpmpp_2m": ({}, 2, 1 / 12),
    "dpmpp_2m heun": ({"variant": "heun"}, 2, 0),
    "dpmpp_2m_sde": ({"eta": 0.0}, 2, 1 / 12),
    "dpmpp_3m": ({}, 3, 0),
    "unipc 1": (_unip(1, "bh1"), 1, 0),
    "unipc 2 bh1": (_unip(2, "bh1"), 2, 1 / 6),
    "unipc 2 bh2": (_unip(2, "bh2"), 2, 1 / 12),
    "unipc 2 vary": (_unip(2, "vary"), 2, 0),
    "unipc 3 bh2": (_unip(3, "bh2"), 3, 1 / 12),
    "unipc 3 vary": (_unip(3, "vary"), 3, 0),
}


def multistep(name: str, schedule, n: int, **more):
    options, order, shortcut = MULTISTEP[name]
    t = grid(schedule, n, whole=False)
    return (
        SOLVERS[name.split()[0]](schedule, t, prediction="x0", **(options | more)),
        points(schedule, t),
        order,
        shortcut,
    )


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=schedule_id)
@pytest.mark.parametrize("name", MULTISTEP)
def test_a_multistep_rows_integrate_polynomials(name, schedule):
    for n in SIZES if schedule is CONTINUOUS[0] else SIZES[:-1]:
        plan, grid_points, order, shortcut = multistep(name, schedule, n)
        _, W = transitions(states(plan))
        for i in range(n):
            p = min(i + 1, order)
            s, t, past = *grid_points[i : i + 2], grid_points[max(0, i + 1 - order) : i + 1]
            for degree in range(p):
                gap, size = moment_gap(W[i, 1 + i + 1 - len(past) : 2 + i], past, s, t, degree)
                # the second-order row with the published shortcut
                top = bool(shortcut) and p == 2 and degree == 1
                room = shortcut * float(t.alpha * (t.lam - s.lam) ** 3) if top else 0.0
                assert gap <= room + rounding(t, past) * size, (
                    f"n = {n}, row {i + 1}, degree {degree}: off by {gap:.1e} of {size:.1e}"
                )
        if "orders" in plan.note:
            assert list(plan.note["orders"]) == [min(i + 1, order) for i in range(n)]


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=schedule_id)
@pytest.mark.parametrize(
    "order, variant",
    [(1, "bh1"), (1, "bh2"), (1, "vary"), (2, "bh1"), (2, "bh2"), (3, "bh1"), (3, "bh2")],
)
def test_a_correctors_integrate_one_degree_more(order, variant, schedule):
    """The corrector inside a UniPC plan: peel the predictor (the plan without corrector) off each
    row, what is left is x_c.
    """
    name = {1: "unipc 1", 2: f"unipc 2 {variant}", 3: "unipc 3 bh2"}[order]
    n = 10
    predictor, grid_points, _, _ = multistep(name, schedule, n, variant=variant)
    whole, *_ = multistep(name, schedule, n, variant=variant, corrector=True)
    a, W = transitions(states(predictor))
    x = states(whole).states
    corrected = (x[1:] - W) / a[:, None]  # x_c at points 0..n-1
    back = corrected[1:] - a[:-1, None] * corrected[:-1]
    for i in range(n - 1):
        p = min(i + 1, order)
        s, t, nodes = grid_points[i], grid_points[i + 1], grid_points[i + 1 - p : i + 2]
        for degree in range(p + 1):
            gap, size = moment_gap(back[i, 1 + i + 1 - p : 3 + i], nodes, s, t, degree)
            shortcut = {"bh1": 1 / 6, "bh2": 1 / 12, "vary": 0}[variant] if p == 1 == degree else 0
            room = shortcut * float(t.alpha * (t.lam - s.lam) ** 3)
            assert gap <= room + rounding(t, nodes) * size, (
                f"point {i + 1}, degree {degree}: off by {gap:.1e} of {size:.1e}"
            )


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=schedule_id)
def test_a_two_stage_rows_of_dpmpp_2s(schedule):
    t = grid(schedule, 10, whole=False)
    for r in (0.5, 0.3):
        _, W = transitions(states(SOLVERS["dpmpp_2s"](schedule, t, prediction="x0", r=r)), 2)
        grid_points = points(schedule, t)
        for i, (s, e) in enumerate(zip(grid_points, grid_points[1:], strict=False)):
            h = e.lam - s.lam
            w = [mp.mpf(float(v)) for v in W[i, 1 + 2 * i : 3 + 2 * i]]
            size = float(abs(w[0]) + abs(w[1]))
            assert abs(float(w[0] + w[1] - exact_moment(s, e, 0))) <= 1e-12 * size
            room = float(e.alpha * h**3) / 12
            assert (
                abs(float(w[1] * mp.mpf(r) * h - exact_moment(s, e, 1)))
                <= room + 1e-12 * float(h) * size
            )


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=schedule_id)
def test_a_heun_rows_integrate_a_linear_slope(schedule):
    """dy/du = c_0 + c_1 u is integrated exactly, u = sigma/alpha (y = x/alpha) or, on flows,
    sigma/(alpha + sigma) (y = x/(alpha + sigma)).
    """
    flow = type(schedule).__name__ in ("Flow", "TrigFlow")
    t = grid(schedule, 10, whole=False)
    plan = SOLVERS["heun"](schedule, t, prediction="x0")
    grid_points = points(schedule, t)
    scales = [float(p.alpha + p.sigma) if flow else float(p.alpha) for p in grid_points]
    frame = [(scale, float(p.sigma) / scale) for scale, p in zip(scales, grid_points, strict=True)]
    x = states(plan).states
    for c0, c1 in ((1.0, 0.0), (0.0, 1.0)):
        for i in range(10):
            (scale, u), (scale_next, u_next) = frame[i], frame[i + 1]
            slope, late = c0 + c1 * u, c0 + c1 * u_next
            start = 0.7 * scale
            first = slope if plan.stored != "x0" else start / scale - u * slope
            ratio = x[2 * i + 1, 0] / x[2 * i, 0]
            guess = ratio * start + x[2 * i + 1, 1 + 2 * i] * first
            assert abs(guess / scale_next - (0.7 + (u_next - u) * slope)) <= 1e-12 * (
                1 + abs(u * slope)
            )
            second = late if plan.stored != "x0" else guess / scale_next - u_next * late
            ratio = x[2 * i + 2, 0] / x[2 * i + 1, 0]
            rest = x[2 * i + 2] - ratio * x[2 * i + 1]
            end = (ratio * guess + rest[1 + 2 * i] * first + rest[2 + 2 * i] * second) / scale_next
            want = 0.7 + c0 * (u_next - u) + c1 * (u_next**2 - u**2) / 2
            assert abs(end - want) <= 1e-12 * (1 + u * abs(slope)), (
                f"step {i + 1}, slope {c0} + {c1} u"
            )


def test_a_half_weight_of_published_3m_is_told_apart():
    """The published weight of the second difference is half of what a parabola needs; the exact
    plan has it whole.
    """
    schedule, n = CONTINUOUS[3], 10
    t = grid(schedule, n, whole=False)
    past = points(schedule, t)
    gaps = {}
    for compat in ("exact", "k-diffusion"):
        _, W = transitions(states(SOLVERS["dpmpp_3m"](schedule, t, prediction="x0", compat=compat)))
        gap, size = moment_gap(W[5, 4:7], past[3:6], past[5], past[6], 2)
        gaps[compat] = gap / size
    assert gaps["exact"] < 1e-12 and gaps["k-diffusion"] > 1e-3


@pytest.mark.parametrize("method", [*orders.METHODS, *orders.unlisted()], ids=lambda m: m.id)
def test_b_slope_from_exact_history(method):
    slope, error, n = orders.slope(lambda n: method.error(n, exact_history=True))
    assert slope >= method.order - (0.15 if method.order <= 3 else 0.3), (
        f"order {slope:.2f} at n = {n}, error {error:.1e}"
    )


@pytest.mark.parametrize("method", [*orders.METHODS, *orders.unlisted()], ids=lambda m: m.id)
def test_c_slope_as_users_run_it(method):
    slope, error, n = orders.slope(lambda n: method.error(n, exact_history=False))
    print(f"{method.id}: order {slope:.2f} as run")
    assert slope >= method.as_run - 0.15, f"order {slope:.2f} at n = {n}, error {error:.1e}"
    note = method.plan(16).note
    promised = note["order"] if method.uneven else note.get("smooth_order", note["order"])
    assert promised == method.as_run


def test_notes_state_the_order_of_every_step():
    """note["order"] is that of a run as it is started, note["orders"] that of each step: 1 into
    sigma = 0. A run with noise has order 1.
    """
    schedule, t = CONTINUOUS[3], grid(CONTINUOUS[3], 4, whole=True)
    due = {
        "ddim": [1, 1, 1, 1],
        "euler": [1, 1, 1, 1],
        "euler_ancestral": [1, 1, 1, 1],
        "lcm": [1, 1, 1, 1],
        "heun": [2, 2, 2, 1],
        "dpmpp_2s": [2, 2, 2, 1],
        "dpmpp_2m": [1, 2, 2, 1],
        "dpmpp_2m_sde": [1, 2, 2, 1],
        "dpmpp_3m": [1, 2, 3, 1],
        "unipc": [1, 2, 2, 1],
    }
    for name, orders_of_steps in due.items():
        note = SOLVERS[name](schedule, t, prediction="x0").note
        assert list(note["orders"]) == orders_of_steps, name
    assert SOLVERS["dpmpp_2m_sde"](schedule, t, prediction="x0", eta=1.0).note["order"] == 1


def test_unipc_is_lowered_where_that_helps():
    """By default where the grid ends in sigma = 0 or has fewer than 15 steps; the note's order is
    that of the grid given, and what a lowered end costs elsewhere is measured: order 2, and at 256
    steps 150 times the error.
    """
    schedule, make = EDM(), SOLVERS["unipc"]

    def made(n, whole=False, **options):
        times = orders.grid(schedule, n - whole)
        times = np.append(times, 0.0) if whole else times
        return make(schedule, times, prediction="x0", **options)

    asked = {"lower_order_final": True}
    for n, whole, lowered in ((14, False, True), (15, False, False), (40, True, True)):
        default = made(n, whole)
        assert (default.note["orders"][-2:] == [2, 1]) is lowered
        same = made(n, whole, lower_order_final=lowered)
        assert np.array_equal(default.M, same.M) and default.remake(1).remake() == default
        assert default.note["order"] == (3 if whole or not lowered else 2)
        assert default.note["arguments"]["lower_order_final"] is None
        assert made(n, whole, **asked).note["order"] == (3 if whole else 2)
    errors = {
        low: orders.error(made(256, lower_order_final=low), schedule) for low in (True, False)
    }
    half = orders.error(made(128, **asked), schedule)
    assert errors[True] > 100 * errors[False] and errors[False] < 1e-7
    assert 1.85 < np.log2(half / errors[True]) < 2.15
    assert orders.error(made(256), schedule) == errors[False]


def test_docs_print_the_orders_measured_here():
    """docs/orders.md has every method with the order as run; written by `python -m
    oracle.orders`."""
    lines = [line for line in orders.DOCUMENT.read_text().splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in lines]
    printed = {row[0]: (float(row[1]), float(row[2])) for row in rows}
    assert list(printed) == [m.id for m in orders.METHODS]
    for method in orders.METHODS:
        from_history, as_run, _ = orders.measured(method)
        assert np.allclose(printed[method.id], (as_run, from_history), rtol=0, atol=0.05), method.id
