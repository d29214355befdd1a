"""Solvers: one literal case each, worked out by hand on levels whose steps are powers of two, and
what every plan must be.
"""

import math

import numpy as np
import pytest
from interpreter import run
from oracle import multistep, refined, singlestep, stabilised, stochastic
from oracle.cases import CASES

from fastsample import grids
from fastsample.model import PREDICTIONS, Model
from fastsample.plan import Plan
from fastsample.schedules import EDM, VE, VP, DiscreteVP, Flow, TrigFlow
from fastsample.solvers import SOLVERS

EPS = np.finfo(np.float64).eps
LN2 = math.log(2.0)
# I_0, I_1, I_2 of h = ln 2: I_j = 1 - (j/h) I_{j-1}
PHI = [0.5, 1 - 0.5 / LN2, 1 - 2 / LN2 * (1 - 0.5 / LN2)]
ROOT3 = math.sqrt(3.0)
SD = DiscreteVP.scaled_linear()
SCHEDULES = {
    "VP": VP(),
    "SD": SD,
    "zero_snr": SD.zero_terminal_snr(),
    "VE": VE(),
    "EDM": EDM(),
    "Flow": Flow(),
    "Flow(3)": Flow(3.0),
    "TrigFlow": TrigFlow(0.5),
}
# every option that changes a row, once
EVERY = {name: [{}] for name in SOLVERS}
for case in CASES:
    if case.marginal and case.options not in EVERY[case.name] and "space" not in case.options:
        EVERY[case.name].append(case.options)
EVERY["lcm"] = [{"boundary": False}]
EVERY["cm"] = [{"sigma_min": 0.0}]
EVERY["flow_sde"] = [{"a": 0.0}]
EACH = {
    f"{name}-{k}": (name, options) for name, many in EVERY.items() for k, options in enumerate(many)
}
every_solver = pytest.mark.parametrize(("name", "options"), EACH.values(), ids=EACH.keys())
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


def terms(plan, row, output=0):
    """{operand: coefficient} of one output of a row, zeros left out."""
    return {
        plan.operand(k): c
        for k in range(plan.W)
        if (plan.reads[row] >> k) & 1 and (c := plan.M[row, output, k]) != 0.0
    }


def same(found, wanted):
    return found.keys() == wanted.keys() and all(
        abs(found[k] - wanted[k]) <= 64 * EPS * max(1.0, abs(wanted[k])) for k in wanted
    )


def solve(name, schedule, levels, prediction="x0", **options):
    grid = grids.from_sigmas(schedule, levels)
    return SOLVERS[name](schedule, grid, prediction=prediction, **options)


# Rows that come back: from sigma to half of it at first order, deterministic and with all noise new
# (k² = e^{-2h} = 1/4: up = sqrt(3), down = 1), and at second order after such a step; half of a
# flow; a step to sigma = 0.
HALF, RENEWED = {"x": 0.5, "m": 0.5}, {"x": 0.25, "m": 0.75, "n0": ROOT3}
SECOND, FLOWN, CLEAN = {"x": 0.5, "m": 0.75, "r0": -0.25}, {"x": 1, "m": -0.5}, {"m": 1}
# the line through u = 0, -1; the parabola through u = 0, -1, -2: l0 = (u² + 3u + 2)/2,
# l1 = -u² - 2u, l2 = (u² + u)/2; half of D2's weight: I_2/2 where the parabola has I_2
LINE = {"x": 0.5, "m": PHI[0] + PHI[1], "r0": -PHI[1]}
PARABOLA = {
    "x": 0.5,
    "m": PHI[0] + 1.5 * PHI[1] + 0.5 * PHI[2],
    "r1": -PHI[2] - 2 * PHI[1],
    "r0": 0.5 * PHI[2] + 0.5 * PHI[1],
}
PUBLISHED = {
    "x": 0.5,
    "m": PHI[0] + 1.5 * PHI[1] + 0.25 * PHI[2],
    "r1": -0.5 * PHI[2] - 2 * PHI[1],
    "r0": 0.25 * PHI[2] + 0.5 * PHI[1],
}
LITERAL = [  # solver, schedule, levels, prediction, options, {row: terms of x'}
    ("ddim", EDM(), [4, 2, 0], "x0", {}, {0: {"x": 4}, 1: HALF, 2: CLEAN}),
    ("ddim", EDM(), [4, 2, 0], "x0", {"eta": 1.0}, {1: RENEWED, 2: CLEAN}),
    ("ddim", TrigFlow(), [1, 0], "v", {}, {0: {"x": 0.5**0.5}, 1: CLEAN}),
    ("euler", EDM(), [4, 2, 0], "eps", {}, {1: HALF, 2: CLEAN}),
    ("euler", Flow(), [1, 0.5, 0], "flow", {}, {0: {"x": 1}, 1: FLOWN, 2: FLOWN}),
    # TrigFlow at 45 degrees: n = sqrt(2), s = 1/2; at alpha = 0: n = s = 1.
    # x' = sqrt(2)·(x - v/2), and x - v·s at the end, from y = x/n
    (
        "euler",
        TrigFlow(),
        [np.inf, 1, 0],
        "v",
        {},
        {1: {"x": 2**0.5, "m": -(0.5**0.5)}, 2: {"x": 0.5**0.5, "m": -0.5}},
    ),
    ("euler_ancestral", EDM(), [4, 2, 0], "x0", {}, {1: RENEWED, 2: CLEAN}),
    # up is cut at sigma'
    ("euler_ancestral", EDM(), [4, 2, 0], "x0", {"eta": 3.0}, {1: {"m": 1, "n0": 2}}),
    # Flow .8 -> .4: down = .4·(1 + (.5 - 1)) = .2, q = .6/.8
    (
        "euler_ancestral",
        Flow(),
        [0.8, 0.4, 0],
        "flow",
        {},
        {1: {"x": 0.1875, "m": 0.5625, "n0": math.sqrt(0.16 - 0.0225)}, 2: CLEAN},
    ),
    # over x0: d1 - d = (r0 - m)/sigma', so x' = x - (4 - 2)/2·(r0 - m)/2
    ("heun", EDM(), [4, 2, 0], "eps", {}, {1: HALF, 2: {"x": 1, "m": 0.5, "r0": -0.5}, 3: CLEAN}),
    (
        "heun",
        Flow(),
        [1, 0.5, 0],
        "flow",
        {},
        {1: FLOWN, 2: {"x": 1, "m": -0.25, "r0": 0.25}, 3: FLOWN},
    ),
    # churn to 4 sqrt(2) = sqrt(16 + 16)
    (
        "heun",
        EDM(),
        [4, 2, 0],
        "eps",
        {"s_churn": 9.0},
        {0: {"x": 4, "n0": 4}, 1: {"x": 0.125**0.5, "m": 1 - 0.125**0.5}},
    ),
    # TrigFlow from 60 to 45 degrees, e^h = sqrt(3): x1 = sqrt(2/3)·x + ..., then
    # alpha'/2 (e^h - 1)(m - r0)
    (
        "heun",
        TrigFlow(),
        [ROOT3, 1],
        "v",
        {"space": "rho"},
        {
            1: {"x": (2 / 3) ** 0.5, "m": 0.5**0.5 * (1 - 1 / ROOT3)},
            2: {"x": 1, "m": 0.5**0.5 * (ROOT3 - 1) / 2, "r0": 0.5**0.5 * (1 - ROOT3) / 2},
        },
    ),
    # 4 -> 1 by way of 2: x' = x/4 + 3/4 m1 with x = 2 x1 - r0
    ("dpmpp_2s", EDM(), [4, 1, 0], "x0", {}, {1: HALF, 2: SECOND, 3: CLEAN}),
    ("dpmpp_2m", EDM(), [8, 4, 2, 0], "x0", {}, {1: HALF, 2: SECOND, 3: CLEAN}),
    ("dpmpp_2m", EDM(), [8, 4, 2, 0], "x0", {"variant": "heun"}, {2: LINE}),
    ("dpmpp_2m", EDM(), [8, 4, 2, 1], "x0", {"compat": "diffusers"}, {2: SECOND, 3: HALF}),
    ("dpmpp_2m", Flow(), [1, 0.5, 0.25, 0], "x0", {"compat": "comfyui"}, {1: HALF, 2: SECOND}),
    ("dpmpp_3m", EDM(), [8, 4, 2, 1, 0], "x0", {}, {2: LINE, 3: PARABOLA, 4: CLEAN}),
    ("dpmpp_3m", EDM(), [8, 4, 2, 1], "x0", {"compat": "k-diffusion"}, {3: PUBLISHED}),
    # H = 2 ln 2: e^{-H} = 1/4
    (
        "dpmpp_2m_sde",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {},
        {2: {"x": 0.25, "m": 1.125, "r0": -0.375, "n0": ROOT3}, 3: CLEAN},
    ),
    # corrector 1 (bh2): x_c = x - r0/4 + m/4; predictor 2: x' = x_c/2 + 3/4 m - r0/4
    (
        "unipc",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {"order": 2},
        {1: HALF, 2: {"x": 0.5, "m": 0.875, "r0": -0.375}, 3: CLEAN},
    ),
    ("unipc", EDM(), [8, 4, 2, 0], "x0", {"order": 2, "corrector": False}, {2: SECOND}),
    # bh1: h where bh2 has 1 - e^{-h} = 1/2: corrector ln(2)/2·(m - r0), predictor ln(2)/2·(m - r0)
    (
        "unipc",
        EDM(),
        [8, 4, 2, 0],
        "x0",
        {"order": 2, "variant": "bh1"},
        {2: {"x": 0.5, "m": 0.5 + 1.5 * LN2 / 2, "r0": -1.5 * LN2 / 2}},
    ),
    ("lcm", EDM(), [4, 2, 0], "x0", {}, {1: {"m": 1, "n0": 2}, 2: CLEAN}),
    ("lcm", Flow(), [1, 0.75, 0], "flow", {}, {1: {"m": 0.25, "n0": 0.75}, 2: CLEAN}),
    *multistep.LITERALS,
    *singlestep.LITERALS,
    *stochastic.LITERALS,
    *refined.LITERALS,
    *stabilised.LITERALS,
]


@pytest.mark.parametrize(
    ("name", "schedule", "levels", "prediction", "options", "rows"),
    LITERAL,
    ids=[case[0] for case in LITERAL],
)
def test_literal(name, schedule, levels, prediction, options, rows):
    plan = solve(name, schedule, levels, prediction, **options)
    for row, wanted in rows.items():
        assert same(terms(plan, row), wanted), (row, terms(plan, row), wanted)


def test_lcm_boundary():
    """At index 0: s = 0, so c_skip = 1 and x' = x; at index 1 (s = 10, sigma_data .5)
    c_skip = .25/100.25, c_out = 10/sqrt(100.25).
    """
    table = DiscreteVP([0.75, 0.25])
    plan = SOLVERS["lcm"](table, [1.0, 0.0, -1.0], prediction="x0")
    skip, out, alpha = 0.25 / 100.25, 10 / math.sqrt(100.25), math.sqrt(0.75)
    assert same(terms(plan, 1), {"x": alpha * skip, "m": alpha * out, "n0": 0.5})
    assert terms(plan, 2) == {"x": 1.0}
    assert plan.note["consistent"] is False


def test_every_solver_has_a_literal_case():
    assert set(SOLVERS) == {case[0] for case in LITERAL}


@pytest.mark.pairs(solver=EACH, schedule=SCHEDULES, n=[1, 2, 3, 10])
def test_exact_predictions_stay_on_the_schedule(solver, schedule, n):
    """A model that returns the exact x0 keeps x at alpha x0 + sigma noise, to a few roundings a
    row, for every prediction, kind and end.
    """
    name, options = solver
    for end in ("zero", "min"):
        grid = grids.karras(schedule, n, end=end)
        for prediction in PREDICTIONS if n == 3 else ("v",):
            if prediction in ("eps", "edm") and schedule.alpha(grid[0]) == 0.0:
                continue
            plan = SOLVERS[name](schedule, grid, prediction=prediction, **options)
            eps = options.get("carry") == "eps"  # a kept eps is x and m over sigma
            largest = np.abs(plan.M if eps else plan.M[:, :1]).sum(axis=2).max()
            if eps:  # alpha'/alpha of eps and of x nearly cancel
                largest /= plan.alpha[plan.alpha > 0.0].min()
            # v at the end of a step is (x - n·x0)/sigma': the rounding of x grows by 1/sigma'
            if name in ("heun", "rk", "restart") and plan.stored == "flow":
                largest /= plan.sigma[plan.sigma > 0.0].min()
            assert plan.consistency() <= 8 * EPS * plan.rows * max(1.0, largest)
            assert plan.alpha[-1] == schedule.alpha(grid[-1])
            assert plan.sigma[-1] == schedule.sigma(grid[-1])


@pytest.mark.parametrize("turn", [0, *(pytest.param(k, marks=pytest.mark.soak) for k in (1, 2))])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_thousand_evaluations(name, turn):
    """On a schedule for each by turns, in a soak on all."""
    schedule = [SD, EDM(), Flow(3.0)][([*SOLVERS].index(name) + turn) % 3]
    make = lambda n: SOLVERS[name](
        schedule, grids.uniform(schedule, n), prediction="v", **EVERY[name][0]
    )
    plan = make(4000 // make(4).nfe)
    assert plan.nfe >= (800 if name == "pndm" else 900) and plan.consistency() <= 1e-12
    # small steps need no large weights; noise is in units of sigma
    assert np.abs(plan.M[1:-1, 0, : 4 + plan.S]).max() < 10.0


@every_schedule
@every_solver
def test_rows(name, options, schedule):
    """One call a row, at the grid's times; noise ids one a draw, none in the last step; an end at
    sigma = 0 is x0 itself.
    """
    n = 6
    grid = grids.uniform(schedule, n)
    plan = SOLVERS[name](schedule, grid, prediction="v", **options)
    assert (plan.call[1:-1] == 0).all()
    assert plan.rows == plan.nfe + 2
    asked = plan.t[: plan.nfe, 0]
    assert asked[0] == grid[0] and (np.isin(grid[:-1], asked)).all()
    if plan.nfe == n:
        assert np.array_equal(asked, grid[:-1])
        assert np.array_equal(plan.alpha[1:-1], schedule.alpha(grid[:-1]))
    ids = plan.ids[plan.ids >= 0]
    if options.get("compat") != "k-diffusion" or name != "dpmpp_sde":  # one path, read twice
        assert len(set(ids.tolist())) == len(ids)
    assert (ids >= 1).all()
    last = terms(plan, plan.rows - 2)
    assert not any(key.startswith("n") for key in last)
    if plan.stored == "x0" and last.keys() <= {"x", "m"}:  # no polynomial in sigma is integrated
        assert last == {"m": 1.0}
    assert plan.sigma[-1] == 0.0
    assert (plan.dst[:, 1] == -1).all()  # one value kept a row: anchors are eliminated
    words = plan.note["arguments"]
    asked = {"pndm": 5}.get(name, words.get("order", 1 + words.get("derivative_order", 0)))
    assert max(*plan.note["orders"], asked, math.ceil(plan.nfe / n) - 1) >= plan.S
    assert len(plan.note["orders"]) == n


@pytest.mark.parametrize("name", SOLVERS)
def test_note(name):
    schedule = Flow(3.0)
    model = Model(None, schedule, "flow", time=1000, model_id="m")
    plan = SOLVERS[name](model, grids.uniform(schedule, 4))
    note = plan.note
    assert (note["solver"], note["prediction"], note["compat"]) == (name, "flow", "exact")
    assert (note["start"], note["guidance"]) == (None, None)
    assert note["schedule"] == schedule.to_json()
    assert note["grid"] == grids.uniform(schedule, 4).tolist()
    assert note["model"]["model_id"] == "m"
    assert note["stored"] in ("flow", "x0")
    assert note["citations"] and all(
        "arXiv:" in source or "doi:" in source for source in note["citations"]
    )
    again = Plan.from_bytes(plan.to_bytes())
    assert again.note == note
    assert np.array_equal(again.M, plan.M)


BEGINS = [({"start": 0}, 0), ({"start": 2}, 2), ({"start": 5}, 5)]
BEGINS += [({"strength": 0.5}, 3), ({"strength": 1.0}, 0), ({"strength": 1}, 0)]


@pytest.mark.parametrize(
    ("name", "k"), [(name, k) for name, many in EVERY.items() for k in range(max(len(many), 6))]
)
def test_start_noises_an_image(name, k):
    """Each solver from every begin, and with every option from one of them."""
    options, (begin, at) = EVERY[name][k % len(EVERY[name])], BEGINS[k % 6]
    grid = grids.karras(SD, 6)
    model = Model(None, SD, "eps", time=2.0)
    plan = SOLVERS[name](model, grid, **begin, **options)
    assert same(terms(plan, 0), {"x": SD.alpha(grid[at]), "n0": SD.sigma(grid[at])})
    assert plan.ids[0, 0] == 0
    assert (plan.alpha[0], plan.sigma[0]) == (1.0, 0.0)
    assert plan.note["start"] == at
    # the history is empty there: the rows are those of the shorter grid
    fresh = SOLVERS[name](model, grid[at:], **options)
    assert np.array_equal(plan.M[1:], fresh.padded(L=plan.L).M[1:])
    again = SOLVERS[name](model, grid, **options).remake(**begin)
    assert again.to_bytes() == plan.to_bytes()


def test_remake_refuses():
    grid = grids.uniform(Flow(), 3)
    with pytest.raises(ValueError, match="the model's time was a callable"):
        SOLVERS["euler"](Model(None, Flow(), "flow", time=lambda t: t), grid).remake(start=1)
    plan = SOLVERS["euler"](Flow(), grid, prediction="flow")
    refused = "solver = 'learned'; plans of ddim, .* are accepted .not learned tables."
    with pytest.raises(ValueError, match=refused):
        plan.with_note(solver="learned").remake(start=1)
    with pytest.raises(ValueError, match="the note has no arguments; a note with arguments, "):
        type(plan)(**plan.numbers(), note={"solver": "euler"}).remake(start=1)
    with pytest.raises(ValueError, match="has guidance"):
        plan.with_note(guidance={"branches": 2}).remake(start=1)
    with pytest.raises(ValueError, match="start: 3 for a grid of 3 steps"):
        plan.remake(start=3)


def test_ddim_reads_x_where_nothing_of_it_is_left():
    """From alpha = 0 with eta = 1 the state weighs 0 and is read: what a plan for masks reads
    depends on its steps, not on their coefficients.
    """
    plan = SOLVERS["ddim"](Flow(), grids.uniform(Flow(), 3), prediction="v", eta=1.0, inpaint=True)
    assert plan.M[1, 0, 0] == 0.0 and (plan.reads & 1).tolist() == [1, 1, 1, 0, 1]


@every_solver
def test_inpainting_plans_make_the_same_steps(name, options):
    grid = grids.karras(VP(), 5)
    plan = SOLVERS[name](VP(), grid, prediction="v", inpaint=True, **options)
    assert (plan.known_reads[1:-1] > 0).all()
    eps = options.get("carry") == "eps"
    assert plan.consistency() <= 1e-13 * (np.abs(plan.M).sum(axis=2).max() if eps else 1.0)


LIMITS = [  # not the corrector of bh1: its first weight h/2 has no limit
    ("dpmpp_2m", {}),
    ("dpmpp_2m", {"variant": "heun"}),
    ("dpmpp_3m", {}),
    ("dpmpp_3m", {"compat": "diffusers"}),
    ("dpmpp_2m_sde", {}),
    ("unipc", {}),
    ("unipc", {"order": 2}),
    ("unipc", {"variant": "vary"}),
    ("unipc", {"corrector": False, "variant": "bh1"}),
]


@pytest.mark.parametrize(("name", "options"), LIMITS)
def test_alpha_zero_is_the_limit(name, options):
    """A run from alpha = 0 is the limit of runs that start ever closer to it: alpha = 2^-p changes
    the first state by about that much, later ones by about 1/p, since a history weight falls with
    lambda, a logarithm.
    """
    x, noise = np.linspace(-1.5, 1.5, 16), np.random.default_rng(3).standard_normal((8, 16))
    model = lambda x_in, t, row, call: [np.tanh(x_in + t[0])]
    states = {}
    for power in (20, 40, 1100):
        grid = [1.0 - 2.0**-power, 0.75, 0.5, 0.3, 0.15, 0.0]
        plan, trace = SOLVERS[name](Flow(), grid, prediction="flow", **options), []
        run(plan, x, model, lambda k: noise[k], trace=trace)
        states[power] = np.array([state for state, _ in trace])
    limit = states[1100]  # 1 - 2^-1100 is 1
    gaps = {power: np.abs(states[power] - limit).max(axis=1) for power in (20, 40)}
    assert (gaps[40][:2] <= 2.0**-36).all()
    assert (gaps[40] <= 0.6 * gaps[20] + 2.0**-36).all()
