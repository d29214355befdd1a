"""guided: linear weights of the branches with a run-time scale for each sample, and only inside an interval."""

import numpy as np
import pytest
import torch
from cases import same
from test_run import BACKENDS, close, net, plan_of, unit

from fastsample.guidance import guided
from fastsample.plan import PlanError
from fastsample.run import Run


@pytest.mark.parametrize("backend", BACKENDS)
def test_guidance_by_linear_weights(backend):
    """f = f_2 + s (f_1 - f_2), a scale for each sample, outputs as a list or one branch-major batch; inside an interval only."""
    plan, z = plan_of("dpmpp_2m", 6), unit(dtype=torch.float64)
    scale = torch.tensor([1.0, 2.5, 7.0], dtype=torch.float64)
    branches = lambda x, t: (net(x, t), net(x, t) * 0.5 + x * 0.1)  # noqa: E731
    made = guided(plan)
    run = Run(made, noise=z, guidance=scale, state_dtype=torch.float64, backend=backend)
    joined = Run(made, noise=z, guidance=scale[:, None], state_dtype=torch.float64, copies=2, backend=backend)
    plain = Run(plan, noise=z, state_dtype=torch.float64, backend=backend)
    while not run.done:
        run.step(branches(run.model_input, run.t))
        one, two = joined.model_input.chunk(2)
        assert torch.equal(one, two)
        joined.step(torch.cat(branches(one, joined.t[:3])))
        c, u = branches(plain.model_input, plain.t)
        plain.step(u + scale.view(-1, 1, 1) * (c - u))
    assert close(run.x, plain.x) and same(run.x, joined.x)
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
        ({"interval": (1.0, 1.0)}, "interval="),
        ({"interval": (2.0, np.nan)}, "interval="),
    ],
)
def test_what_does_not_fit_is_refused(options, sentence):
    with pytest.raises(PlanError, match=f"guided: {sentence}.* accepted"):
        guided(plan_of(), **options)


def test_a_guided_plan_keeps_its_levels_and_says_so():
    plan = plan_of("unipc", 6)
    made = guided(plan, branches=3, interval=(-1.0, 2.0))
    assert (made.G, made.K, made.S, made.rows) == (3, 2, plan.S, plan.rows)
    assert made.note["guidance"] == {"form": "linear", "branches": 3, "interval": [-1.0, 2.0]}
    assert made.consistency() <= 1e-12
