"""guided: linear weights of the branches with a run-time scale for each sample, and only inside an
interval.
"""

import numpy as np
import pytest
import torch
from cases import same
from test_run import BACKENDS, close, net, plan_of, unit

from fastsample import schedules
from fastsample.guidance import guided
from fastsample.plan import PlanError
from fastsample.runtime.run import Run


@pytest.mark.parametrize("backend", BACKENDS)
def test_guidance_by_linear_weights(backend):
    """f = f_2 + s (f_1 - f_2), a scale for each sample, outputs as a list or one branch-major
    batch; inside an interval only.
    """
    plan, z = plan_of("dpmpp_2m", 6), unit(dtype=torch.float64)
    scale = torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)
    branches = lambda x, t: (net(x, t), net(x, t) * 0.5 + x * 0.1)
    made = guided(plan)
    run = Run(made, noise=z, guidance=scale, state_dtype=torch.float64, backend=backend)
    joined = Run(
        made, noise=z, guidance=scale[:, None], state_dtype=torch.float64, copies=2, backend=backend
    )
    plain, largest = Run(plan, noise=z, state_dtype=torch.float64, backend=backend), 0.0
    while not run.done:
        run.step(branches(run.model_input, run.t))
        one, two = joined.model_input.chunk(2)
        assert torch.equal(one, two)
        joined.step(torch.cat(branches(one, joined.t[:3])))
        c, u = branches(plain.model_input, plain.t)
        largest = max(largest, float((scale.view(-1, 1, 1) * (c.abs() + u.abs())).max()))
        plain.step(u + scale.view(-1, 1, 1) * (c - u))
    # f is rounded three times by hand and four times by weights (1 - s, two products, a sum); a row
    # of this plan does not enlarge it
    assert close(run.x, plain.x, 7 * plan.nfe, largest) and same(run.x, joined.x)
    levels = np.log(np.maximum(plan.alpha[1:-1], 1e-300) / plan.sigma[1:-1])
    part = guided(plan, interval=(float(levels[2]) - 1e-9, float(levels[3]) + 1e-9))
    assert (part.branches[1:-1] == 3).tolist() == [False, False, True, True, False, False]
    run = Run(part, noise=z, guidance=4.0, state_dtype=torch.float64, backend=backend)
    while not run.done:
        c, u = branches(run.model_input, run.t)
        run.step([c, u if part.branches[run.row] == 3 else None])
    with pytest.raises(PlanError, match="guided: the plan has 2 branches"):
        guided(made)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"branches": 1}, "branches=1"),
        ({"branches": 9}, "branches=9"),
        ({"branches": 2.0}, "branches=2.0"),
        ({"branches": True}, "branches=True"),
        ({"interval": 3}, "interval=3"),
        ({"interval": (1.0, 2.0, 3.0)}, "interval="),
        ({"interval": ("a", "b")}, "interval="),
        ({"interval": (1.0, 1.0)}, "interval="),
        ({"interval": (2.0, np.nan)}, "interval="),
    ],
)
def test_what_does_not_fit_is_refused(options, sentence):
    with pytest.raises(PlanError, match=f"guided: {sentence}.* accepted"):
        guided(plan_of(), **options)


def test_only_a_plan_can_be_guided():
    with pytest.raises(TypeError, match="guided: plan is a Flow; a fastsample.Plan is needed"):
        guided(schedules.Flow())


def test_numbers_are_one_scale_each_where_a_plan_has_several():
    """K numbers are K scales for every sample; [B] is only for K = 1."""
    made, z = guided(plan_of(), branches=3), unit()
    branches = lambda run: [net(run.model_input, run.t) * k for k in (1.0, 0.5, 0.2)]
    runs = [Run(made, noise=z, guidance=g) for g in ([2.0, 0.5], torch.tensor([[2.0, 0.5]] * 3))]
    for run in runs:
        while not run.done:
            run.step(branches(run))
    assert same(runs[0].x, runs[1].x)
    with pytest.raises(
        ValueError, match=r"Run: guidance has shape \[3\]; a number or \[3, 2\] is accepted"
    ):
        Run(made, noise=z, guidance=torch.ones(3))


def test_a_guided_plan_keeps_its_levels_and_says_so():
    plan = plan_of("unipc", 6)
    made = guided(plan, branches=3, interval=(-1.0, 2.0))
    assert (made.G, made.K, made.S, made.rows) == (3, 2, plan.S, plan.rows)
    assert made.note["guidance"] == {"form": "linear", "branches": 3, "interval": [-1.0, 2.0]}
    assert made.consistency() <= 1e-12
