"""The warning of `Plan.describe()`: it agrees with what was measured on the embedded model, and
with another run of the same data.
"""

import interpreter
import numpy as np
import pytest
from test_solvers_page import AT, TOOL

from fastsample import models
from fastsample.plan.pays import STDS, WORSE, beside_first_order
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import ddim, dpmpp_2m, dpmpp_3m, inverted, lcm

WARNS = "times as far off as that of first-order steps at the same levels"


def levels(schedule, n, top=80.0, low=0.002):
    """Karras' levels sigma/alpha, and sigma = 0."""
    rho = np.linspace(top ** (1 / 7), low ** (1 / 7), n) ** 7
    return np.append(schedule.time(-np.log(rho)), schedule.t_zero)


@pytest.mark.parametrize("grid", [*AT])
def test_it_warns_of_no_plan_that_was_measured_nearer_than_ddim(grid):
    """And of most that were measured five decibels or more further off."""
    model, far, warned = models.fashion(), 0, 0
    for key, decibel in AT[grid].items():
        name, budget = key.split()
        plan = TOOL["most"](name, model, int(budget), TOOL["of_hand"](model, grid))
        warns, further = WARNS in plan.describe(), AT[grid][f"ddim {budget}"] - decibel
        assert warns == (beside_first_order(plan) > WORSE)
        assert further > 0 or not warns, (key, beside_first_order(plan))
        far, warned = far + (further > 5), warned + (warns and further > 5)
    assert warned > 0.6 * far > 10, (warned, far)


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
    far = dpmpp_3m(s, levels(s, 5), prediction="x0")
    assert WARNS in far.describe() and f"{beside_first_order(far):.2g} {WARNS}" in far.describe()
    up = inverted("dpmpp_2m", s, levels(s, 5)[-2::-1], prediction="x0")
    for plan in (far.with_note(found={"psnr": 9.0}), lcm(s, levels(s, 5), prediction="x0"), up):
        assert WARNS not in plan.describe()


@pytest.mark.parametrize("n", [1, 2, 5, 10, 50])
def test_second_order_over_the_last_two_outputs_always_pays_on_karras_levels(n):
    s = EDM()
    assert not beside_first_order(dpmpp_2m(s, levels(s, n), prediction="x0")) > WORSE
