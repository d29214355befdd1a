"""The captured loop, driven by a stand-in for torch.cuda: graphs are made when they should be and
go when they must, and what cannot be captured is refused by name.
"""

import inspect
import logging
import threading
from contextlib import nullcontext
from functools import partial

import pytest
import stand_in
import torch
from cases import same
from test_graph import Net, captured
from test_sampler import MODEL, plan_of, unit
from torch import nn
from torch.utils import swap_tensors

import fastsample as fs
from fastsample.runtime import capturable
from fastsample.runtime import graph as graphs
from fastsample.runtime.sampler import Sampler


@pytest.fixture
def cuda(monkeypatch):
    return stand_in.install(monkeypatch)


@pytest.fixture
def logged(caplog):
    caplog.set_level(logging.INFO, "fastsample")
    return lambda: [record.getMessage() for record in caplog.records]


# -- when graphs are made, and when they go --------------------------------------------------------
def test_a_call_without_a_graph_runs_eager_and_says_so_once(cuda, logged):
    plan = plan_of("dpmpp_2m_sde")
    graph, eager = Sampler(plan, MODEL, mode="graph"), Sampler(plan, MODEL)
    for k in range(3):
        assert same(graph(noise=unit(seed=k), seed=k), eager(noise=unit(seed=k), seed=k))
    assert (cuda.captures, cuda.replays, len(logged())) == (0, 0, 1)
    assert "runs eager; warm(shapes), or capture='now', captures one" in logged()[0]
    graph.warm([(3, 2, 5), (1, 2, 5)], progress=False)
    assert cuda.captures == 2
    for k in range(3):
        z = unit(1 if k else 3, seed=k)
        assert same(graph(noise=z, seed=k), eager(noise=z, seed=k))
    assert (cuda.captures, cuda.replays, len(logged())) == (2, 5, 1)
    graph.release()
    assert same(graph(noise=unit(), seed=0), eager(noise=unit(), seed=0))
    assert (cuda.captures, cuda.replays, len(logged())) == (2, 5, 2)


def test_one_line_is_said_for_any_number_that_has_no_graph(cuda, logged):
    graph = Sampler(plan_of(), MODEL, mode="graph")
    for k in range(3):
        graph(noise=unit(), cond={"shift": k / 2})
    assert len(logged()) == 1
    graph(noise=unit(2))
    assert len(logged()) == 2


def test_a_source_of_draws_is_asked_once_a_draw(cuda):
    plan, rows = plan_of("dpmpp_2m_sde"), []

    def source(row, id_):
        rows.append(row)
        return unit(seed=len(rows))

    results = []
    for mode in ("eager", "graph"):
        rows.clear()
        results.append(Sampler(plan, MODEL, mode)(noise=unit(), noise_source=source))
    assert same(*results) and len(rows) == len({*rows})


MOVES = {
    "parameter": lambda net: setattr(net.shift, "data", net.shift.data + 1),
    "buffer": lambda net: setattr(net, "scale", net.scale * 2),
    "number": lambda net: setattr(net, "level", net.level.clone()),
    "module": lambda net: setattr(net, "layer", nn.Sequential(nn.Linear(5, 5))),
    "one more": lambda net: net.layer.register_parameter("adapter", nn.Parameter(torch.ones(2))),
    "the first": lambda net: net.more.append(nn.Linear(5, 5)),
    "training": lambda net: net.eval(),
    "training of a part": lambda net: net.layer.eval(),
}
HELD = {
    "module": lambda net: net,
    "Model": lambda net: fs.Model(net, MODEL.schedule, prediction="flow", time=1000),
    "method": lambda net: net.forward,
    "closure": lambda net: lambda x, t: net(x, t),
    "partial": lambda net: partial(lambda n, x, t: n(x, t), net),
    "name": lambda net: globals().update(NAMED=net) or named,
}


def named(x, t):
    return asked(x, t)


def asked(x, t):
    return NAMED(x, t)  # noqa: F821


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("move", MOVES)
def test_a_model_that_moved_is_captured_again(move, held, cuda, logged):
    plan, model = plan_of(), Net()
    graph = Sampler(plan, HELD[held](model), mode="graph")
    graph.warm([(3, 2, 5), (1, 2, 5)])
    before = graph(noise=unit())
    with torch.no_grad():
        model.layer.weight.mul_(0.5)  # in place: the graph reads it
    assert cuda.captures == 2 and not same(graph(noise=unit()), before)
    MOVES[move](model)
    for z in (unit(), unit(1), unit()):
        assert same(graph(noise=z), Sampler(plan, model)(noise=z))
    assert cuda.captures == 4 and len(logged()) == 1
    assert "2 graph(s) are captured again" in logged()[0]


AWAY = {
    "another dtype": lambda net: net.double(),
    "another device": lambda net: net.to("meta"),
    "swapped": lambda net: swap_tensors(net.shift, nn.Parameter(torch.ones(5))),
    "another size": lambda net: setattr(net, "shift", nn.Parameter(torch.ones(1))),
    "none": lambda net: setattr(net, "scale", None),
}


@pytest.mark.parametrize("away", AWAY)
def test_whatever_becomes_of_a_models_memory_is_noticed(away):
    model = Net()
    reads = capturable.Reads([model], [])
    assert not reads.moved()
    AWAY[away](model)
    assert reads.moved()


def test_a_tensor_that_only_the_model_knows_is_watched_too(cuda):
    box = [torch.randn(5, generator=torch.Generator().manual_seed(1))]
    graph = captured(plan_of(), lambda x, t: x * box[0])
    graph(noise=unit())
    box[0].set_(box[0] + 1)
    assert same(graph(noise=unit()), Sampler(plan_of(), lambda x, t: x * box[0])(noise=unit()))
    assert cuda.captures == 2


def test_graphs_go_a_generation_at_a_time(cuda, monkeypatch, logged):
    monkeypatch.setattr(graphs, "MOST", 2)
    graph, eager = captured(plan_of()), Sampler(plan_of(), MODEL)
    for batch in (1, 2, 3):
        graph(noise=unit(batch))
    (lane,) = graph._graphs._lanes.values()
    assert len(lane.graphs) == 1 and lane.pool == 2 and len(logged()) == 1
    into = [call for call in cuda.calls if "capture" in call]
    assert into == [f"side: capture into {pool}, thread_local" for pool in (1, 1, 2)]
    wait = cuda.calls.index("host: wait for done")
    assert wait < cuda.calls.index("side: capture into 2, thread_local")
    assert same(graph(noise=unit(1)), eager(noise=unit(1))) and cuda.captures == 4


def test_a_graph_that_made_room_is_not_captured_in_a_call(cuda, monkeypatch):
    """Though it was captured again once, after the model had moved."""
    monkeypatch.setattr(graphs, "MOST", 1)
    model = Net()
    graph = Sampler(plan_of(), model, mode="graph")
    graph.warm([(3, 2, 5)])
    MOVES["parameter"](model)
    assert same(graph(noise=unit()), Sampler(plan_of(), model)(noise=unit())) and cuda.captures == 2
    graph.warm([(1, 2, 5)])
    assert same(graph(noise=unit()), Sampler(plan_of(), model)(noise=unit())) and cuda.captures == 3


def test_nothing_is_captured_in_a_call_after_a_release(cuda):
    model = Net()
    graph = Sampler(plan_of(), model, mode="graph")
    graph.warm([(3, 2, 5), (1, 2, 5)])
    MOVES["parameter"](model)
    graph(noise=unit())
    graph.release()
    graph(noise=unit(1))
    assert cuda.captures == 3 and not any(lane.graphs for lane in graph._graphs._lanes.values())


def test_what_is_asked_of_the_device_and_in_which_order(cuda):
    graph = captured(plan_of())
    graph(noise=unit())
    replay = ["current: wait for done", "current: replay", "current: record done"]
    assert cuda.calls == [
        "side: wait for current",
        "sync: error",
        "sync: default",
        "side: capture into 1, thread_local",
        "current: wait for side",
        *replay,
    ]
    graph(noise=unit(seed=1))
    assert cuda.calls[-3:] == replay and len(cuda.calls) == 5 + 2 * 3


def test_the_model_is_watched_on_the_numbers_of_the_call(cuda):
    seen, plan = [], plan_of()

    def model(x, t):
        seen.append(x.clone())
        return x * 0.5

    captured(plan, model)(noise=unit())
    assert len(seen) == 3 * plan.nfe and same(seen[0], seen[plan.nfe])


def test_threads_share_a_graph_and_not_their_results(cuda):
    plan = plan_of("dpmpp_2m_sde")
    graph, eager, got = captured(plan), Sampler(plan, MODEL), {}

    def call(k):
        got[k] = [graph(noise=unit(seed=k), seed=k) for _ in range(5)]

    threads = [threading.Thread(target=call, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cuda.captures == 1
    for k, results in got.items():
        assert all(same(x, eager(noise=unit(seed=k), seed=k)) for x in results)


# -- refusals --------------------------------------------------------------------------------------
OWN = torch.Generator()


def drawing(x, t):
    return x + torch.randn(x.shape, generator=OWN)


REFUSED = {
    "item": (lambda x, t: x * t[0].item(), "aten._local_scalar_dense.default waits for numbers"),
    "branch": (lambda x, t: x if x.sum() > 1e9 else -x, "aten.is_nonzero.default waits|dense"),
    "size": (lambda x, t: x + x[x > 0].sum(), "waits for numbers of the device"),
    "numbers": (lambda x, t: x * torch.tensor([1.0] * 5), "makes a tensor of numbers of the host"),
    "copy": (lambda x, t: x + 0 * x.to("meta").to(x.dtype).numel(), "between host and device"),
    "generator": (drawing, r"aten.randn.generator draws random numbers from a generator that is"),
    "in place": (
        lambda x, t: x.clone().normal_(generator=OWN),
        r"aten.normal_.default draws random numbers from a generator that is not the graph's",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_captured_is_refused_by_name(what, cuda):
    model, reason = REFUSED[what]
    graph = captured(plan_of(), model)
    with pytest.raises(ValueError, match=reason) as refused:
        graph(noise=unit())
    sentence = str(refused.value)
    assert sentence.startswith("Sampler: mode='graph' cannot capture the run: aten.")
    assert "test_capture.py); 'eager', 'compile-model' and 'compile-loop' are accepted" in sentence
    assert cuda.captures == 0 and cuda.get_sync_debug_mode() == "default"


HOST = {
    "a number of the host": (lambda x: x * torch.tensor(2.0) + torch.arange(3).sum().item(), None),
    "noise of the device": (lambda x: x + torch.randn_like(x), None),
    "a copy of the device": (lambda x: x.to(torch.float64).to(x.device), None),
    "a copy to the host": (lambda x: x.to("cpu"), "_to_copy.* copies between host and device"),
    "a copy from it": (lambda x: torch.ones(3).to(x.device), "_to_copy.* copies between host"),
    "a copy into": (lambda x: x[0].copy_(torch.tensor(2.0)), "copy_.* copies between host"),
    "an index": (lambda x: x[torch.tensor([0, 1])], "index.* copies between host and device"),
    "noise of the host": (lambda x: torch.randn(3), "randn.* draws random numbers on the host"),
}


@pytest.mark.parametrize("what", HOST)
def test_host_and_device_are_told_apart(what, cuda, monkeypatch):
    """Tensors without numbers stand for the device's, those of the CPU are the host's."""
    monkeypatch.setattr(capturable, "KIND", "meta")
    work, reason = HOST[what]
    probe, x = capturable.Probe([]), torch.empty(3, device="meta")
    refused = nullcontext() if reason is None else pytest.raises(ValueError, match=reason)
    with refused:
        probe.watch(lambda: work(x))


def test_a_number_on_the_host_is_part_of_a_graph():
    """It would be baked in; one of a device is copied over."""
    half, more = torch.tensor(0.5), torch.tensor(0.75)
    assert graphs._value(half) == graphs._value(half.clone()) != graphs._value(more)
    assert graphs._value(half.view(1)) == graphs._value(more.view(1))


def test_a_sync_that_no_op_shows_is_the_reason_given(cuda):
    def model(x, t):
        if cuda.get_sync_debug_mode() == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return x * 0.5

    with pytest.raises(ValueError, match="cannot capture the run: called a synchronizing CUDA"):
        captured(plan_of(), model)(noise=unit())


def test_the_models_own_error_is_its_own(cuda):
    def model(x, t):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        captured(plan_of(), model)(noise=unit())
    with pytest.raises(ValueError, match="changed its input in place at row 1"):
        captured(plan_of(), lambda x, t: x.mul_(0.5))(noise=unit())


GRAPHS = (
    {"mode": "reduce-overhead"},
    {"mode": "max-autotune"},
    {"options": {"triton.cudagraphs": True}},
    {"backend": "cudagraphs"},
)


def in_place(**words):
    model = Net()
    model.compile(**words)
    return model


@torch.compile(backend="cudagraphs")
def half(x):
    return x * 0.5


COMPILED = {
    "a module": lambda **words: torch.compile(Net(), **words),
    "a method": lambda **words: torch.compile(Net().forward, **words),
    "a function": lambda **words: torch.compile(asked, **words),
    "a child": lambda **words: nn.Sequential(nn.Identity(), torch.compile(Net(), **words)),
    "within a Model": lambda **words: fs.Model(
        in_place(**words), MODEL.schedule, prediction="flow", time=1000
    ),
    "within a closure": lambda **words: (lambda net: lambda x, t: net(x, t))(
        torch.compile(Net(), **words)
    ),
}


@pytest.mark.parametrize("words", GRAPHS, ids=repr)
@pytest.mark.parametrize("model", COMPILED.values(), ids=COMPILED)
def test_a_model_that_makes_graphs_is_refused_by_name(model, words, cuda):
    with pytest.raises(ValueError, match="the model (Net|forward|asked) under torch.compile, wh"):
        captured(plan_of(), model(**words))
    for words in ({}, {"backend": "eager"}, {"mode": "max-autotune-no-cudagraphs"}):
        captured(plan_of(), model(**words))


def test_a_compiled_function_that_a_model_names_is_refused(cuda):
    with pytest.raises(ValueError, match="the model half under torch.compile"):
        captured(plan_of(), lambda x, t: half(x))


def test_without_a_device_the_other_modes_are_named(monkeypatch):
    others = "'eager', 'compile-model' and 'compile-loop' are accepted"
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=f"needs a CUDA device and torch sees none; {others}"):
            Sampler(plan_of(), MODEL, mode="graph")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=f"the call is on cpu; {others}"):
        Sampler(plan_of(), MODEL, mode="graph")(noise=unit())


def test_the_device_takes_what_the_stand_in_takes(cuda):
    for name in ("Stream", "Event", "CUDAGraph", "current_stream", "stream", "graph_pool_handle"):
        assert callable(getattr(torch.cuda, name)) and callable(getattr(cuda, name))
    for name in ("get_sync_debug_mode", "set_sync_debug_mode", "is_available"):
        assert callable(getattr(torch.cuda, name)) and callable(getattr(cuda, name))
    theirs = inspect.signature(torch.cuda.graph).parameters
    ours = inspect.signature(cuda.graph).parameters
    assert {*ours} - {"graph"} <= {*theirs}


def test_words_of_the_mode(cuda):
    for words, sentence in (
        ({"mode": "graph", "capture": "later"}, "capture='later'; accepted are ahead, now"),
        ({"capture": "now"}, "capture='now' with mode='eager'; mode='graph' is accepted"),
        ({"mode": "compile-loop", "prepare": print}, "prepare is a builtin_function_or_method in"),
        ({"differentiable": True, "prepare": print}, "prepare is a builtin_function_or_method in"),
        ({"prepare": 1}, "prepare is a int in mode 'eager'"),
    ):
        with pytest.raises(ValueError, match=sentence):
            Sampler(plan_of(), MODEL, **words)
    with pytest.raises(ValueError, match="callback and progress need .*mode is 'graph'"):
        captured(plan_of())(noise=unit(), callback=print)
    with pytest.raises(ValueError, match="out= is given with differentiable=True"):
        Sampler(plan_of(), MODEL, differentiable=True)(noise=unit(), out=unit())
