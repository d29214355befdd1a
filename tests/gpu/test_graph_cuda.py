"""On a GPU: a captured loop gives the bits of the eager one, in one launch of a graph and without a
wait; a model that moved is captured again; one that waits for the device is refused by name.
"""

import pytest
import torch
from torch import nn

import fastsample as fs
from fastsample.runtime.capturable import CUDA, KIND

pytestmark = pytest.mark.gpu


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(16, 16)

    def forward(self, x, t, shift=None):
        shift = 0.0 if shift is None else shift.view(-1, 1, 1)
        return torch.tanh(self.layer(x)) * t.view(-1, 1, 1) + shift


def plan_of(solver):
    schedule = fs.schedules.Flow(shift=3.0)
    return fs.solvers.SOLVERS[solver](schedule, fs.grids.uniform(schedule, 5), prediction="flow")


def unit(seed, batch=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 4, 16, generator=generator).to(KIND)


@pytest.mark.parametrize("solver", ["ddim", "heun", "unipc", "dpmpp_2m_sde"])
def test_a_replay_is_the_eager_run(solver):
    plan, model = plan_of(solver), Net().to(KIND)
    graph, eager = fs.Sampler(plan, model, "graph"), fs.Sampler(plan, model)
    told = lambda k: {"cond": {"shift": torch.arange(3.0).to(KIND) * k}}
    graph.warm([(3, 4, 16)], device=KIND, check=None, **told(1))
    for k in range(3):
        call = {"noise": unit(k), "seed": torch.full((3,), k).to(KIND), "check": None} | told(k)
        wanted = eager(**call)
        CUDA.set_sync_debug_mode("error")
        try:
            got = graph(**call)
        finally:
            CUDA.set_sync_debug_mode("default")
        assert torch.equal(got, wanted)


def test_two_streams_share_a_graph():
    plan, model = plan_of("unipc"), Net().to(KIND)
    graph, eager = fs.Sampler(plan, model, "graph", capture="now"), fs.Sampler(plan, model)
    wanted = [eager(noise=unit(k)) for k in range(8)]
    streams, got = [CUDA.Stream() for _ in range(2)], []
    noises = [unit(k) for k in range(8)]
    graph(noise=noises[0])
    CUDA.synchronize()
    for k, noise in enumerate(noises):
        with CUDA.stream(streams[k % 2]):
            got.append(graph(noise=noise, check=None))
    CUDA.synchronize()
    assert all(map(torch.equal, got, wanted))


def test_a_model_that_moved_is_captured_again():
    plan, model = plan_of("unipc"), Net().to(KIND)
    graph = fs.Sampler(plan, model, "graph", capture="now")
    before = graph(noise=unit(0))
    model.layer.weight.data = model.layer.weight.data * 2
    after = graph(noise=unit(0))
    assert torch.equal(after, fs.Sampler(plan, model)(noise=unit(0)))
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda x, t: x * t[0].item(), "_local_scalar_dense"),
        (lambda x, t: x * torch.tensor([2.0], device=KIND), "synchronizing|lift_fresh"),
        pytest.param(
            lambda x, t: x + torch.randn(x.shape).to(KIND),
            "draws random numbers on the host",
            marks=pytest.mark.skipif(KIND == "cpu", reason="one device: the host's is the GPU's"),
        ),
    ],
    ids=["item", "numbers", "draw"],
)
def test_what_waits_is_refused_by_name(model, reason):
    graph = fs.Sampler(plan_of("euler"), model, "graph", capture="now")
    before = CUDA.get_sync_debug_mode()
    with pytest.raises(ValueError, match=f"cannot capture the run: .*({reason})"):
        graph(noise=unit(0))
    assert CUDA.get_sync_debug_mode() == before
