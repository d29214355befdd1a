"""On a GPU: a served Engine gives the bits of runs alone; what became non-finite is found out by
who looks after the end.
"""

import pytest
import torch

import fastsample as fs
from fastsample.runtime.capturable import KIND

pytestmark = pytest.mark.gpu
SHAPE = (4, 16)


def model(x, t, label):
    column = (-1, 1, 1)
    f = (x + label.to(x.dtype).view(column) * 0.25).clamp(-2, 2) - t.view(column) * x
    return torch.where(label.view(column) == -1, torch.nan, f)


def plan_of(solver, n):
    schedule = fs.schedules.Flow(shift=3.0)
    return fs.solvers.SOLVERS[solver](schedule, fs.grids.uniform(schedule, n), prediction="flow")


def told(k):
    return {"label": torch.tensor([k]).to(KIND)}


def test_requests_that_are_served_are_those_alone():
    solvers = ("euler", "dpmpp_2m", "unipc", "dpmpp_2m_sde")
    made = [(plan_of(solvers[k % 4], 3 + k), {"seed": k, "cond": told(k)}) for k in range(12)]
    seen = []
    with fs.Engine(model, SHAPE, 5, device=KIND, waiting=12).serve() as engine:
        see = lambda ticket: seen.append(ticket.x0 is None)
        tickets = [engine.submit(plan, callback=see, every=3, **words) for plan, words in made]
        bad = engine.submit(plan_of("euler", 4), seed=1, cond=told(-1))
        results = [ticket.result(60.0) for ticket in tickets]
        with pytest.raises(FloatingPointError, match="non-finite at row 1 of its plan"):
            bad.result(60.0)
    assert bad.state == "failed" and {ticket.state for ticket in tickets} == {"result"}
    for (plan, words), x in zip(made, results, strict=True):
        alone = fs.Sampler(plan, model)(shape=(1, *SHAPE), device=KIND, **words)
        assert x.device.type == KIND and torch.equal(x, alone)
    assert len(seen) == sum((3 + k + 1) // 3 - ((3 + k + 1) % 3 == 0) for k in range(12))
