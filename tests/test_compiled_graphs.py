"""The graphs of a compiled loop: how many there are, what is in them, and when they are made."""

import pytest
import torch
from cases import same
from test_compile import MODEL, SCHEDULE, agree, net, one_process, plan_of, traced, unit  # noqa: F401
from torch._dynamo.utils import counters

from fastsample import grids
from fastsample.runtime import compiled
from fastsample.runtime.sampler import Sampler
from fastsample.solvers import SOLVERS

tracing = pytest.mark.usefixtures("traced")


@tracing
def test_any_number_of_samples_is_one_graph_and_one_is_another():
    plans = [SOLVERS["dpmpp_2m_sde"](MODEL, grids.uniform(SCHEDULE, 4) ** p) for p in (1, 1.5, 2)]
    assert len({plan.program for plan in plans}) == 1
    for guided in (False, True):  # and a model input of its own then
        sampler = Sampler(plans[0], MODEL, mode="compile-loop")
        counters.clear()
        for k, batch in enumerate((2, 3, 5, 8, 16, 1, 4, 1, 7)):
            label = torch.arange(float(batch))
            call = {"noise": unit(batch, seed=k), "seed": k}
            call |= {"noise_scale": 0.1 * k, "cond": {"label": label}}
            call |= {"uncond": {"label": label * 0}, "guidance": 0.5 * k} if guided else {}
            for plan in plans:
                assert same(sampler.for_plan(plan)(**call), Sampler(plan, MODEL)(**call))
        assert counters["stats"]["unique_graphs"] == 2


def test_between_two_steps_of_the_graph_there_are_views_only(monkeypatch):
    """The model apart, which is a region: nothing is allocated, copied or read."""
    seen = []

    def look(graph, _, **options):
        seen.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, **options, backend=look))
    plan = plan_of("dpmpp_2m_sde", 6)
    call = {"noise": unit(), "seed": 1, "cond": {"shift": 0.5}}
    assert same(Sampler(plan, MODEL, "compile-loop")(**call), Sampler(plan, MODEL)(**call))
    (graph,) = seen
    nodes = [n for n in graph.graph.nodes if n.op in ("call_function", "call_method")]
    said = [getattr(n.target, "__name__", n.target) for n in nodes]
    assert said.count("step_.default") == said.count("invoke_subgraph") == plan.nfe
    assert len(list(graph.children())) == 1, "the model is one region, however many rows ask it"
    sizes = {"eq", "not_"}  # numbers of the host, compared while it was traced
    assert set(said) - sizes == {"step_.default", "invoke_subgraph", "getitem", "expand"}


def test_graphs_are_kept_up_to_a_number(monkeypatch):
    """The longest unused goes first; the loops run as they are."""
    monkeypatch.setattr(torch, "compile", lambda loop, **options: loop)
    sampler = Sampler(plan_of("euler", 2), MODEL, mode="compile-loop")
    kept = sampler._graphs._kept
    for n in range(1, compiled.MOST + 4):
        sampler(noise=torch.zeros(2, 3, n))
        if n == 2:
            first, second = kept
        sampler(noise=torch.zeros(2, 3, 1))
    assert len(kept) == compiled.MOST and first in kept and second not in kept


@tracing
def test_warm_does_ahead_what_a_first_call_does():
    label = torch.tensor([1.0, 2.0])
    sampler = Sampler(plan_of("euler"), MODEL, mode="compile-loop")
    told = {"cond": {"label": label}, "uncond": {"label": label * 0}, "guidance": 3.0}
    state = torch.random.get_rng_state()
    sampler.warm([(2, 3, 7), (1, 3, 7), (5, 3, 7)], **told)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert counters["stats"]["unique_graphs"] == 2 and len(sampler._spares._idle) == 3
    assert same(
        sampler(noise=unit(), **told), Sampler(plan_of("euler"), MODEL)(noise=unit(), **told)
    )
    assert counters["stats"]["unique_graphs"] == 2 and len(sampler._spares._idle) == 3
    Sampler(plan_of("dpmpp_2m", 8, start=3), MODEL).warm([(2, 3, 7)], dtype=torch.float64)
    Sampler(plan_of("heun"), MODEL).warm([(2, 3, 7)], start=5, progress=True)
    for wrong in ((2, 3, 7), [()], 3):
        with pytest.raises((ValueError, TypeError), match="Sampler.warm: shapes is .* accepted"):
            sampler.warm(wrong, **told)


@tracing
def test_what_the_caller_gives_is_not_marked():
    given = [unit(), torch.ones(2), unit(seed=1)]
    sampler = Sampler(plan_of("ddim", 2, eta=1.0), MODEL, mode="compile-loop")
    sampler(noise=given[0], cond={"label": given[1]}, noise_source=[given[2]])
    assert not any(vars(tensor) for tensor in given)


@tracing
def test_inside_inference_mode_and_outside():
    check = agree(plan_of("dpmpp_2m_sde", 3), MODEL)
    for mode in (torch.inference_mode, torch.enable_grad, torch.inference_mode):
        with mode():
            check(noise=unit(), seed=1)


@tracing
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, t: x.mul_(0.5) * 2,
        lambda x, t: t.add_(1).view(-1, 1, 1) * x,
        lambda x, t: x.view(-1)[:1].zero_() + x,
    ],
    ids=["x", "t", "a view"],
)
def test_a_model_that_writes_into_its_input_is_refused_where_it_could_be_a_graph(wrong):
    with pytest.raises(ValueError, match="Sampler: the model changed its input in place at row 1"):
        Sampler(plan_of("euler"), wrong, mode="compile-loop")(noise=unit())
