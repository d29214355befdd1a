"""The warning of `Plan.describe()`: it agrees with what was measured on the embedded model, and
with another run of the same data.
"""

import interpreter
import numpy as np
import pytest
from test_solvers_page import AT, TOOL

from fastsample import models
from fastsample.plan.pays import FURTHER, STDS, WORSE, beside_first_order, kind_of
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS, ddim, dpmpp_2m, dpmpp_3m, inverted, lcm

WARNS = "do not pay for its order"
LAW, KNOWN = "times as far off as that of first-order steps at the same levels", "on the embedded"


def levels(schedule, n, top=80.0, low=0.002):
    """Karras' levels sigma/alpha, and sigma = 0."""
    rho = np.linspace(top ** (1 / 7), low ** (1 / 7), n) ** 7
    return np.append(schedule.time(-np.log(rho)), schedule.t_zero)


@pytest.mark.parametrize("grid", [*AT])
def test_it_warns_of_every_plan_that_was_measured_further_off_than_ddim_and_of_no_other(grid):
    """By more than FURTHER, in the figures measured; of those between by the law alone."""
    model, seen, warned = models.fashion(), set(), 0
    for key, decibel in AT[grid].items():
        name, budget = key.split()
        plan = TOOL["most"](name, model, int(budget), TOOL["of_hand"](model, grid))
        if (name, plan.nfe) in seen:  # as many evaluations as within the budget before
            continue
        seen.add((name, plan.nfe))
        first, said = AT[grid][f"ddim {budget}"], plan.describe()
        further = first - decibel
        assert (WARNS in said) == (further > FURTHER or beside_first_order(plan) > WORSE), key
        assert further > 0 or WARNS not in said, (key, beside_first_order(plan))
        if further > FURTHER and len(plan.note["times"]) > 3:
            assert kind_of(plan) == grid
            figures = f"at {decibel:.1f} dB, where first-order steps (ddim) ended at {first:.1f}, "
            assert f"{figures}with {plan.nfe} evaluations on such a grid ({grid})" in said, key
            warned += 1
    assert warned > 10


def test_what_was_measured_speaks_for_grids_like_it_alone():
    """Other ends, another schedule, evaluations between two that were measured; not other options,
    a grid of no such kind, or one that begins elsewhere.
    """
    s, vp = EDM(), VP()
    known = lambda plan: KNOWN in plan.describe()
    of = lambda name, times, schedule=s, **o: SOLVERS[name](schedule, times, prediction="x0", **o)
    assert known(of("unipc", levels(s, 5))) and known(of("unipc", levels(s, 10, 60.0, 0.01)))
    assert known(of("unipc", levels(vp, 5, 50.0), vp)) and known(of("unipc", levels(s, 9)))
    assert not known(of("unipc", levels(s, 15))) and not known(of("unipc", levels(s, 4)))
    assert not known(of("unipc", levels(s, 5), order=2))
    assert not known(of("unipc", levels(s, 8), start=3))
    assert not known(of("deis", levels(s, 5))) and not known(of("dpmpp_2m", levels(s, 8)))
    assert kind_of(of("unipc", np.append(np.geomspace(80.0, 0.002, 6), 0.0))) == "log-uniform"
    assert kind_of(of("unipc", [80.0, 79.0, 78.0, 5.0, 1.0, 0.0])) is None
    assert kind_of(of("heun", levels(s, 5)[:-1])) == "Karras, not to zero"
    flow = Flow(1.0)
    assert kind_of(of("euler", np.linspace(1.0, 0.02, 8), flow)) is None  # to zero was measured
    for times in (np.linspace(1.0, 0.0, 8), np.append(np.linspace(0.99, 0.02, 8), 0.0)):
        assert kind_of(of("euler", times, flow)) == "uniform flow time"


@pytest.mark.parametrize("schedule", [EDM(), VP(), Flow(1.0)], ids=lambda s: type(s).__name__)
def test_the_figure_is_that_of_two_runs(schedule):
    """By the interpreter: the plan and ddim through its times, against the flow's closed form."""

    def error(plan):
        def model(x, t, row, call):
            a, s = plan.alpha[row], plan.sigma[row]
            return [a * STDS**2 / ((a * STDS) ** 2 + s**2) * x]

        own = lambda i: np.sqrt((plan.alpha[i] * STDS) ** 2 + plan.sigma[i] ** 2)
        return np.linalg.norm(interpreter.run(plan, own(1), model, first=1) - own(-1))

    times = levels(schedule, 6, 60.0)
    plan, first = (make(schedule, times, prediction="x0") for make in (dpmpp_3m, ddim))
    assert beside_first_order(plan) == pytest.approx(error(plan) / error(first), rel=1e-9)
    assert beside_first_order(first) == pytest.approx(1.0, rel=1e-9)


def test_what_is_not_judged():
    """Noise, the way up, and what a search has judged on its own model."""
    s = EDM()
    far = dpmpp_3m(s, levels(s, 5), prediction="x0").with_note(solver="mine")
    assert f"{beside_first_order(far):.2g} {LAW}" in far.describe()
    up = inverted("dpmpp_2m", s, levels(s, 5)[-2::-1], prediction="x0")
    for plan in (far.with_note(found={"psnr": 9.0}), lcm(s, levels(s, 5), prediction="x0"), up):
        assert WARNS not in plan.describe()


@pytest.mark.parametrize("n", [1, 2, 5, 10, 50])
def test_second_order_over_the_last_two_outputs_always_pays_on_karras_levels(n):
    s = EDM()
    assert not beside_first_order(dpmpp_2m(s, levels(s, n), prediction="x0")) > WORSE
