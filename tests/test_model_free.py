"""model_free: its bound against the solvers' own plans, its gradient against high precision, its
optimum against every grid made by hand.
"""

import sys

import mpmath
import numpy as np
import pytest

import fastsample as fs
from fastsample import metrics
from fastsample.optimize import model_free
from fastsample.optimize._bound import STEPS, Bound
from fastsample.plan.consistency import over_predictions

SCHEDULES = {
    "EDM": fs.schedules.EDM(),
    "VE": fs.schedules.VE(),
    "VP": fs.schedules.VP(),
    "DiscreteVP": fs.schedules.DiscreteVP.linear(),
    "zero terminal SNR": fs.schedules.DiscreteVP.linear().zero_terminal_snr(),
    "Flow": fs.schedules.Flow(3),
    "TrigFlow": fs.schedules.TrigFlow(),
}
TOP = 80.0  # the first label, where the schedule's largest is above it


def usual(schedule, n):
    """{name: grid} made by hand, from the first label, to t_min or to zero."""
    top = np.exp(-schedule.half_log_snr(schedule.t_max))
    return metrics.hand_made(schedule, n, [None if top <= TOP * (1 + 1e-9) else TOP])


def spaced(schedule, n):
    """One of them to t_min, with n inner steps of about one size."""
    return next(g for k, g in usual(schedule, n).items() if "angle" in k and "not to zero" in k)


def knots_of(schedule, grid):
    """The plan's lambda; the bound ends at t_min, where its first-order last step would pass."""
    return schedule.half_log_snr(np.append(grid[:-1], schedule.t_min))


def end_weights(schedule, solver, grid):
    """What the end point at t_min weighs each prediction with, from the solver's own plan: its
    state at the last time, and the first-order step from there; UniPC's with its corrector is the
    last row of the plan to t_min.
    """
    make = lambda times: fs.solvers.SOLVERS[solver](schedule, times, prediction="x0")
    if solver == "unipc":
        return over_predictions(make(grid))[-1, :-1]
    a, b = fs.solvers.jump(schedule, *grid[-2:])
    rows = a * over_predictions(make(np.append(grid[:-1], schedule.t_zero)))[-2, :-1]
    rows[-1] += b
    return rows


@pytest.mark.parametrize("solver", STEPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_its_weights_are_those_of_the_solvers_plan(name, solver):
    schedule = SCHEDULES[name]
    for n in (1, 2, 3, 5, 8):
        grid = spaced(schedule, n)
        bound = Bound(n, solver, 2.0, n)
        J = bound.weights(schedule.half_log_snr(grid))[0] * schedule.sigma(grid[-1])
        expected = end_weights(schedule, solver, grid)
        assert np.abs(J.sum(0) - expected).max() <= 1e-13 * np.abs(J).sum(0).max()
        assert np.abs(J.sum(0) / expected - 1).max() <= 1e-12


def test_the_bound_is_the_papers_sum():
    """By its own words: e = sigma^p/alpha of a VP schedule, from the plan's weights."""
    schedule = fs.schedules.VP()
    grid = spaced(schedule, 6)
    weights = np.abs(end_weights(schedule, "dpmpp_3m", grid)) / schedule.sigma(grid[-1])
    for p in (1.0, 2.0):
        e = schedule.sigma(grid[:-1]) ** p / schedule.alpha(grid[:-1])
        found = Bound(6, "dpmpp_3m", p, 0)(schedule.half_log_snr(grid))[0]
        assert found == pytest.approx(weights @ e, rel=1e-12)


def multistep(knots, i, nodes, k):
    """int over step i of e^u L_k(u) du in mpmath."""

    def integrand(u):
        basis = [(u - knots[m]) / (knots[k] - knots[m]) for m in nodes if m != k]
        return mpmath.exp(u) * mpmath.fprod(basis)

    return mpmath.quad(integrand, [knots[i], knots[i + 1]])


def high_precision(solver, n, knots, power, alone):
    """The bound by its definition in mpmath, knots all finite."""
    J = mpmath.zeros(n, n)
    for i, step in enumerate(STEPS[solver](n)):
        whole = mpmath.exp(knots[i + 1]) - mpmath.exp(knots[i])
        if step.kind == "halves":
            J[i, i] = J[i, i + 1] = whole / 2
        elif step.kind == "midpoint":
            ahead = (knots[i + 1] - knots[i]) / (2 * (knots[i] - knots[i - 1]))
            J[i, i], J[i, i - 1] = whole * (1 + ahead), -whole * ahead
        else:
            for k in step.nodes:
                J[i, k] = multistep(knots, i, step.nodes, k)
    alpha = [1 / mpmath.sqrt(1 + mpmath.exp(-2 * u)) for u in knots[:n]]
    e = [mpmath.sqrt(1 - a * a) ** power / a for a in alpha]
    early = [mpmath.sqrt(sum((e[k] * J[i, k]) ** 2 for k in range(n))) for i in range(alone)]
    late = [abs(e[k] * sum(J[i, k] for i in range(alone, n))) for k in range(n)]
    return mpmath.fsum(early + late)


@pytest.mark.parametrize("solver", [name for name in STEPS if name != "ddim"])
@pytest.mark.parametrize("power, alone", [(2.0, 4), (1.0, 1)])
def test_bound_and_gradient_against_high_precision(solver, power, alone):
    """The gradient along one direction, with a share of every knot."""
    n, schedule, step = 4, fs.schedules.EDM(), mpmath.mpf(10) ** -8
    knots = schedule.half_log_snr(spaced(schedule, n))
    along = np.sqrt(np.arange(2.0, n + 3.0))
    value, gradient = Bound(n, solver, power, alone)(knots)
    with mpmath.workdps(25):
        at = lambda way: [
            mpmath.mpf(float(u)) + way * float(d) for u, d in zip(knots, along, strict=True)
        ]
        own = lambda way: high_precision(solver, n, at(way), power, alone)
        slope = (own(step) - own(-step)) / (2 * step)
        assert value == pytest.approx(float(own(0)), rel=1e-12)
    assert gradient @ along == pytest.approx(float(slope), rel=1e-10)


@pytest.mark.parametrize("solver", STEPS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_its_optimum_is_below_every_grid_made_by_hand(name, solver):
    """And its own parametrisation does not stand in the way: no single time can be moved for
    less.
    """
    schedule = SCHEDULES[name]
    for n in (1, 4, 9):
        bound = Bound(n, solver, 2.0, n)
        plan = model_free(schedule, n, solver, prediction="x0")
        times, found = np.array(plan.note["grid"]), plan.note["found"]
        assert plan.nfe == n and times[-1] == schedule.t_zero
        assert times[0] == next(iter(usual(schedule, n).values()))[0]
        value, gradient = bound(knots_of(schedule, times))
        assert found["bound"] == pytest.approx(value, rel=1e-9)
        grids = usual(schedule, n)
        with np.errstate(invalid="ignore"):  # the gradient where the last step is empty
            by_hand = {name: bound(knots_of(schedule, grid))[0] for name, grid in grids.items()}
        best = found["by_hand"]
        assert best["bound"] == pytest.approx(by_hand[best["grid"]], rel=1e-12)
        assert value <= min(by_hand.values()) * (1 + 1e-12)
        assert np.abs(gradient[1:-1]).max(initial=0.0) <= 2e-3 * value


def test_the_plan_is_the_solvers_and_the_same_each_time():
    model = fs.Model(None, fs.schedules.Flow(3), "flow")
    plan = model_free(model, 6, "unipc")
    assert plan == model_free(model, 6, "unipc")
    made = fs.solvers.unipc(model, plan.note["grid"])
    assert all(np.array_equal(a, b) for a, b in zip(plan.table(), made.table(), strict=True))
    found = plan.note["found"]
    assert found["method"] == "model_free" and found["evaluations"] == 0 and found["power"] == 2.0
    assert found["sigma_max"] == 80.0 and found["alone"] == 6
    assert found["by_hand"]["grid"] in usual(model.schedule, 6)
    assert fs.Plan.from_json(plan.to_json()) == plan
    assert plan.remake(None).nfe == 6
    assert model_free(model, 6, power=1.0) != model_free(model, 6)
    assert model_free(model, 6, alone=0).note["found"]["bound"] < found["bound"]


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"n": 0}, "model_free: n=0; an integer of at least 1 is needed"),
        ({"n": 2.0}, "model_free: n=2.0; an integer of at least 1 is needed"),
        ({"solver": "heun"}, "model_free: solver='heun'; 'ddim' or 'euler'"),
        ({"power": -1}, "model_free: power=-1; a number of at least 0 is accepted"),
        ({"power": "2"}, "model_free: power='2'; a number of at least 0 is accepted"),
        ({"alone": -1}, "model_free: alone=-1; None, or a whole number of at least 0, is accepted"),
        ({"alone": 0.5}, "model_free: alone=0.5; None, or a whole number"),
        ({"sigma_max": 0.002}, "model_free: sigma_max=0.002; a number above the schedule's least"),
        ({"model": 3}, "model_free: the model is a int; an fs.Model, or a schedule"),
        ({"prediction": None}, "prediction"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    given = {"model": fs.schedules.EDM(), "n": 4, "prediction": "x0"} | words
    with pytest.raises((ValueError, TypeError)) as caught:
        model_free(given.pop("model"), given.pop("n"), **given)
    assert sentence in str(caught.value)


def test_without_scipy_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"pip install 'fastsample\[optimize\]'"):
        model_free(fs.schedules.EDM(), 4, prediction="x0")
