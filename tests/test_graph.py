"""The captured loop, driven by a stand-in for torch.cuda that records a capture and runs it again:
a replay gives the bits of the eager run whatever a call brings.
"""

from dataclasses import replace

import numpy as np
import pytest
import stand_in
import torch
from cases import BACKENDS, same
from test_sampler import MODEL, net, plan_of, unit
from torch import nn

import fastsample as fs
from fastsample import grids, schedules
from fastsample.guidance import guided
from fastsample.runtime.run import Run
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS


@pytest.fixture
def cuda(monkeypatch):
    return stand_in.install(monkeypatch)


def captured(plan, model=MODEL, **words):
    return Sampler(plan, model, mode="graph", capture="now", **words)


def alike(a, b):
    return all(map(same, a, b)) if isinstance(a, tuple) else same(a, b)


class Net(nn.Module):
    """Of x's size in its last axis, with a layer that may be exchanged; training, another one."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.shift = nn.Linear(5, 5), nn.Parameter(torch.randn(5))
        self.register_buffer("scale", torch.randn(5))
        self.register_buffer("level", torch.tensor(1.0))
        self.more = nn.ModuleList()

    def forward(self, x, t, **told):
        for module in self.more:
            x = module(x)
        shift = self.shift if self.training else -self.shift
        return torch.tanh(self.layer(x)) * self.scale + shift * self.level


# -- a replay is the eager run ---------------------------------------------------------------------
# every solver on the last backend, every fourth on the definition: what is captured is one loop
@pytest.mark.parametrize(
    ("name", "backend"),
    [
        pytest.param(name, each, marks=[pytest.mark.soak] * (each != BACKENDS[-1] and k % 4 > 0))
        for k, name in enumerate(SOLVERS)
        for each in BACKENDS
    ],
)
def test_a_replay_is_the_eager_run(name, backend, cuda):
    plan = plan_of(name)
    graph, eager = captured(plan, backend=backend), Sampler(plan, MODEL, backend=backend)
    for k in range(2):
        call = {"noise": unit(seed=k), "seed": k}
        assert same(graph(**call), eager(**call))
        assert alike(graph(**call, trajectory=True), eager(**call, trajectory=True))
    assert (cuda.captures, cuda.replays) == (2, 4)


LABEL = torch.tensor([1.0, 2.0, 3.0])
CALLS = {
    "two branches": lambda k: {
        "cond": {"label": LABEL + k},
        "uncond": {"label": LABEL * k},
        "guidance": 2.0 + k,
    },
    "two calls": lambda k: {
        "cond": {"label": LABEL + k},
        "uncond": {"label": LABEL * k},
        "guidance": torch.tensor([1.0, 3.0, 5.0 + k]),
        "batched_guidance": False,
    },
    "mask": lambda k: {"mask": (unit(seed=9 + k) > 0).float(), "known": unit(seed=8 + k)},
    "noise scale": lambda k: {"noise_scale": 0.1 + k},
    "stage": lambda k: {"stage": 1 + k},
    "a draw of ours": lambda k: {"noise_source": lambda row, id_: unit(seed=100 * k + row)},
    "seeds": lambda k: {"seed": torch.tensor([k, 5, 7])},
    "resumed": lambda k: {"noise": None, "latent": unit(seed=4 + k), "start": 1},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("what", CALLS)
def test_whatever_a_call_brings_is_copied_over(what, backend, cuda):
    plan = plan_of("dpmpp_2m_sde", **({"inpaint": True} if what == "mask" else {}))
    graph, eager = captured(plan, backend=backend), Sampler(plan, MODEL, backend=backend)
    results = []
    for k in range(3):
        call = {"noise": unit(seed=k), "seed": k} | CALLS[what](k)
        results.append(graph(**call))
        assert same(results[-1], eager(**call))
    assert not same(results[0], results[1])
    assert (cuda.captures, cuda.replays) == (1, 3)


def test_memory_formats_and_dtypes_have_graphs_of_their_own(cuda):
    plan, model = plan_of("dpmpp_2m_sde"), lambda x, t: net(x, t).to(x.dtype)
    graph, eager, z = captured(plan, model), Sampler(plan, model), unit(2, 3, 4, 4)
    last = z.to(memory_format=torch.channels_last)
    for _ in range(2):
        for noise in (z, last, z.bfloat16(), z[:1]):
            got = graph(noise=noise, seed=3)
            assert same(got, eager(noise=noise, seed=3)) and got.stride() == noise.stride()
    assert (cuda.captures, cuda.replays) == (4, 8)


def test_a_graph_serves_every_plan_of_a_program(cuda):
    one = plan_of("dpmpp_2m")
    other = SOLVERS["dpmpp_2m"](MODEL, grids.karras(schedules.Flow(shift=3.0), 5))
    assert one.program == other.program and not (one.M == other.M).all()
    graph = captured(one)
    for plan in (one, other, one):
        assert same(graph.for_plan(plan)(noise=unit()), Sampler(plan, MODEL)(noise=unit()))
    assert (cuda.captures, cuda.replays) == (1, 3)


def test_plans_with_other_noise_ids_or_entries_have_graphs_of_their_own(cuda):
    plan = plan_of("dpmpp_2m_sde")
    other = replace(plan, ids=np.where(plan.ids > 0, plan.ids + 7, plan.ids))
    assert plan.program == other.program
    graph = captured(plan)
    for one in (plan, other):
        call = {"noise": unit(), "seed": 3}
        assert same(graph.for_plan(one)(**call), Sampler(one, MODEL)(**call))
    for start in (1, 2):
        call = {"latent": unit(), "start": start, "seed": 3}
        assert same(graph(**call), Sampler(plan, MODEL)(**call))
    assert cuda.captures == 3  # from row 1 a latent runs what noise does


def test_states_are_copies_for_whoever_stacks_them(cuda):
    plan, kept = plan_of(), []
    drive = captured(plan)._graphs.drive
    for k in range(2):
        run = Run(plan, noise=unit(seed=k), preview=False)
        kept.append(drive(run, [{}], None, keep=True, out=None, now=True)[1])
    for k, states in enumerate(kept):
        wanted = Sampler(plan, MODEL)(noise=unit(seed=k), trajectory=True)[1]
        assert same(torch.stack(states), wanted)


def test_what_an_earlier_row_kept_is_copied_over(cuda):
    """A plan whose row 0 keeps the noise, and whose first step reads it."""
    plan = plan_of("dpmpp_2m")
    M, reads, dst = plan.M.copy(), plan.reads.copy(), plan.dst.copy()
    slot = plan.layout.slot(0)
    (M[0, 1, 0], M[1, 0, slot]), dst[0, 0] = (1.0, 0.25), 0
    reads[0] |= 1
    reads[1] |= 1 << slot
    plan = replace(plan, M=M, reads=reads, dst=dst)
    graph, eager = captured(plan), Sampler(plan, MODEL)
    for k in range(2):
        assert same(graph(noise=unit(seed=k)), eager(noise=unit(seed=k)))


def test_a_fault_is_of_its_own_call(cuda):
    plan, level = plan_of(), torch.tensor([1.0, torch.nan, 1.0]).view(3, 1, 1)
    graph, bad = captured(plan, lambda x, t, level: x * 0.5 * level), {"level": level}
    good = {"level": torch.ones(3, 1, 1)}
    x = graph(noise=unit(), cond=good)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="sample 1 became non-finite at row 1"):
            graph(noise=unit(), cond=bad)
        assert same(graph(noise=unit(), cond=good), x)
    assert cuda.captures == 1


def test_a_graphs_run_shares_no_number_with_the_calls():
    image = {"mask": torch.ones(1, 2, 5), "known": unit()}
    run = Run(
        plan_of("dpmpp_2m_sde", inpaint=True),
        noise=unit(),
        seed=1,
        stage=2,
        noise_scale=0.5,
        **image,
    )
    lie = lambda one: {
        v.untyped_storage().data_ptr()
        for v in [*vars(one._pool).values(), one._pool.table.f, *one.times]
        if isinstance(v, torch.Tensor) and v.numel()
    }
    assert len(lie(run)) >= 8 and not lie(run) & lie(run.apart())
    run = Run(guided(plan_of()), noise=unit(), guidance=2.0)
    assert not lie(run) & lie(run.apart())


def test_values_are_part_of_a_graph_and_tensors_are_copied_into_it(cuda):
    plan, z = plan_of(), unit()
    graph, eager = captured(plan), Sampler(plan, MODEL)
    for k, told in enumerate([{"shift": 0.25}, {"shift": 0.5}, {"shift": 1}, {"shift": 1.0}], 1):
        assert same(graph(noise=z, cond=told), eager(noise=z, cond=told))
        assert cuda.captures == k
    for number in (0.5, 2.0, -1.0):
        told = {"shift": torch.tensor(number)}
        assert same(graph(noise=z, cond=told), eager(noise=z, cond=told))
    assert cuda.captures == 5


def test_an_object_is_told_by_identity_and_kept(cuda):
    class Wish:
        def __init__(self, shift):
            self.shift = shift

    def model(x, t, wish):
        return x * 0.5 + wish.shift

    graph, z = captured(plan_of(), model), unit()
    results = [graph(noise=z, cond={"wish": fs.shared(Wish(k))}) for k in range(4)]
    assert cuda.captures == 4
    for k, x in enumerate(results):
        assert same(x, Sampler(plan_of(), lambda x, t, k=k: x * 0.5 + k)(noise=z))


def test_results_are_copies_unless_out_is_given(cuda):
    plan, graph = plan_of(), captured(plan_of())
    x, states = graph(noise=unit(), trajectory=True)
    kept, out = x.clone(), torch.empty_like(x)
    assert graph(noise=unit(seed=1), trajectory=True, out=out)[0] is out
    assert same(x, kept) and same(states[-1], kept)
    assert same(out, Sampler(plan, MODEL)(noise=unit(seed=1)))
    for mode in ("eager", "graph"):
        sampler = Sampler(plan, MODEL, mode)
        assert sampler(noise=unit(), out=out) is out and same(out, kept)
    for wrong in (out[:2], out.double(), out.tolist()):
        with pytest.raises(ValueError, match=r"out is a .* for a result of \[3, 2, 5\]"):
            graph(noise=unit(), out=wrong)


def test_a_compiled_model_stays_compiled(cuda):
    """Watched, captured and after: a mode that torch.compile meets may make it give up for good."""
    runs = []

    def backend(module, inputs):
        runs.append("compiled")

        def run(*tensors):
            runs.append("run")
            return module(*tensors)

        return run

    plan, model = plan_of(), torch.compile(Net(), backend=backend)
    graph, n = captured(plan, model), plan.nfe
    x = graph(noise=unit())
    assert runs == ["compiled", *["run"] * 3 * n]
    assert same(graph(noise=unit()), x) and len(runs) == 1 + 3 * n
    assert same(Sampler(plan, model)(noise=unit()), x) and runs[-n - 1 :] == ["run"] * (n + 1)


def test_under_autocast_weights_are_cast_in_the_graph(cuda):
    net = Net()
    plan, model = plan_of(), lambda x, t: net(x, t).float()
    graph, eager = captured(plan, model), Sampler(plan, model)
    plain = graph(noise=unit())
    with torch.autocast("cpu", torch.bfloat16):
        assert same(graph(noise=unit()), eager(noise=unit()))
        assert not same(graph(noise=unit()), plain) and torch.is_autocast_cache_enabled()
    with torch.no_grad():
        net.layer.weight.mul_(0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(graph(noise=unit()), eager(noise=unit()))
    assert cuda.captures == 2


def test_random_numbers_are_drawn_anew_in_every_replay(cuda):
    graph = captured(plan_of(), lambda x, t: x * torch.rand_like(x))
    assert not same(graph(noise=unit()), graph(noise=unit())) and cuda.captures == 1


# -- times told ahead ------------------------------------------------------------------------------
class Ahead:
    """A model that looks its time embeddings up by the number of the call."""

    def __init__(self):
        self.told, self.rows, self.call = [], None, 0

    def prepare(self, times):
        self.told.append(times.clone())
        self.rows, self.call = torch.sin(times * 0.001), 0

    def __call__(self, x, t):
        self.call += 1
        return x * 0.3 + self.rows[self.call - 1]


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_times_of_the_calls_are_told_before_the_first(mode, cuda):
    plans = [plan_of(), SOLVERS["dpmpp_2m"](MODEL, grids.karras(schedules.Flow(shift=3.0), 5))]
    model, seen = Ahead(), []
    now = {"capture": "now"} if mode == "graph" else {}
    sampler = Sampler(plans[0], model, mode, prepare=model.prepare, **now)

    def plain(x, t):
        seen.append(t[0])
        return x * 0.3 + torch.sin(t.view(-1, 1, 1) * 0.001)

    for plan in plans:
        assert same(sampler.for_plan(plan)(noise=unit()), Sampler(plan, plain)(noise=unit()))
    assert same(model.told[0], torch.stack(seen[: len(model.told[0])]))
    assert cuda.captures == (mode == "graph")
