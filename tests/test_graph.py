"""The captured loop, driven by a stand-in for torch.cuda that records a capture and runs it again:
a replay gives the bits of the eager run whatever a call brings, graphs are made when they should be
and go when they must, and what cannot be captured is refused by name.
"""

import pytest
import stand_in
from cases import BACKENDS, same
from test_sampler import MODEL, plan_of, unit

from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS


@pytest.fixture
def cuda(monkeypatch):
    return stand_in.install(monkeypatch)


def captured(plan, model=MODEL, **words):
    return Sampler(plan, model, mode="graph", capture="now", **words)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_replay_is_the_eager_run(name, backend, cuda):
    plan = plan_of(name)
    graph, eager = captured(plan, backend=backend), Sampler(plan, MODEL, backend=backend)
    for k in range(3):
        call = {"noise": unit(seed=k), "seed": k}
        assert same(graph(**call), eager(**call))
        (x, states), (y, wanted) = graph(**call, trajectory=True), eager(**call, trajectory=True)
        assert same(x, y) and same(states, wanted)
    assert (cuda.captures, cuda.replays) == (2, 6)
