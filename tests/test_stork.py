"""STORK beside what it sums up: the rule of its stages, its neighbours, its authors' rows."""

import numpy as np
import pytest
from oracle.cases import grid
from oracle.linear import mp
from oracle.probe import follow, states
from oracle.stabilised import own_nodes, published, rkg2

from fastsample import grids
from fastsample.schedules import EDM, VP, Flow
from fastsample.solvers import SOLVERS
from fastsample.solvers.stork import moments


@pytest.mark.parametrize("stages", [2, 3, 50, 1000])
def test_the_rule_is_what_the_stages_come_to(stages):
    """Its weights are sums of positive terms; the recurrence has them in 50 digits."""
    found = moments(stages)
    for k in range(4):
        exact = rkg2(stages, lambda v, k=k: v**k if k else mp.mpf(1), own_nodes(stages))
        assert found[k] == pytest.approx(float(exact), rel=1e-15)


def test_of_a_line_it_is_adams_and_bashforth_s():
    for schedule in (EDM(), Flow(3.0)):
        t = grid(schedule, 6, whole=True)
        ours = SOLVERS["stork"](schedule, t, prediction="x0", derivative_order=1, stages=9)
        same = SOLVERS["lms"](schedule, t, prediction="x0", order=2)
        np.testing.assert_allclose(ours.M, same.M, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("degree", [2, 3])
@pytest.mark.parametrize("stages", [2, 50])
def test_published_rows_equal_their_scheduler_s(stages, degree):
    words = {"derivative_order": degree, "stages": stages}
    for schedule in (Flow(), Flow(3.0)):
        for n in (1, 2, 6):
            for t in (grid(schedule, n, whole=True), grid(schedule, n, whole=False)):
                plan = SOLVERS["stork"](
                    schedule, t, prediction="flow", variant="published", **words
                )
                options = {"stages": stages, "degree": degree, "stage": "of the plan"}
                found = follow(plan, schedule, published, options)
                assert found.agrees() and plan.nfe == n + 1, str(found)
                assert plan.note["order"] == 1 and plan.remake() == plan


@pytest.mark.parametrize(
    "degree, weights", [(2, (1.856, -1.222, 0.366)), (3, (1.004, -0.004, 0.004, -0.004))]
)
def test_published_weights_as_measured(degree, weights):
    """On even steps of 50 stages; Adams and Bashforth's three are 1.917, -1.333, .417."""
    t = grids.from_sigmas(Flow(), np.linspace(0.9, 0.1, 9))
    words = {"prediction": "flow", "derivative_order": degree, "variant": "published"}
    ends = states(SOLVERS["stork"](Flow(), t, **words)).states
    newest_first = -(ends[-1] - ends[-2])[::-1] / 0.1
    assert newest_first[: len(weights)] == pytest.approx(weights, abs=6e-4)


BAD = [
    (EDM(), {"stages": 1}, "stork: stages = 1; a whole number from 2 to 1000 is accepted"),
    (EDM(), {"stages": 2.5}, "stork: stages = 2.5; a whole number"),
    (EDM(), {"derivative_order": 4}, "stork: derivative_order = 4; one of 1, 2, 3 is accepted"),
    (
        Flow(),
        {"variant": "published", "derivative_order": 1},
        "stork: derivative_order = 1; one of 2, 3 is accepted",
    ),
    (VP(), {"variant": "published"}, "variant = 'published' on VP; Flow is accepted"),
    (VP(), {"variant": "rkl2"}, "stork: variant = 'rkl2'; one of rkg2, published is accepted"),
]


@pytest.mark.parametrize("schedule, words, sentence", BAD)
def test_bad_input_is_refused(schedule, words, sentence):
    with pytest.raises(ValueError, match=sentence):
        SOLVERS["stork"](schedule, grid(schedule, 4, whole=False), prediction="x0", **words)
