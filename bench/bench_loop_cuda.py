"""The captured loop on a GPU (mode "graph"): ten steps whose model answers with tensors made
beforehand, so that nothing but the loop is in the graph, against a graph of as many kernels that do
nothing; and a whole call from Python, captured and eager.

A captured call is first held to the eager one, bit for bit.
"""

import itertools

import pytest
import torch
from gpu import CUDA, KIND, captured, cut, on_device, random, ratios
from measure import figure

import fastsample as fs

pytestmark = pytest.mark.gpu
NFE, READY = 10, 5  # outputs taken in turn: a run begins with the first of them
SIZES = {"50×32": (1, 50, 32), "1×4×64×64": (1, 4, 64, 64), "1×16×128×128": (1, 16, 128, 128)}
LATENCY = ("50×32", "1×4×64×64")  # whose kernels last as long as it takes to begin the next
WHY = "a step reads and writes memory, which a kernel that does nothing does not"


def replay_of(sampler):
    """The one graph of a sampler, without what a call copies into it and out of it."""
    (lane,) = sampler._graphs._lanes.values()
    (graph,) = lane.graphs.values()
    return graph._graph.replay


@pytest.mark.parametrize("name", SIZES, ids=lambda name: name.replace("×", "x"))
def bench_loop_cuda(benchmark, name):
    benchmark.group, shape = "gpu", SIZES[name]
    schedule, calls = fs.schedules.Flow(), cut(50, 2)
    grid = fs.grids.uniform(schedule, NFE)
    plan = fs.solvers.dpmpp_2m(schedule, grid, prediction="x0")
    turn = itertools.cycle([random(*shape, seed=2 + k) for k in range(READY)])
    model, z = lambda x, t: next(turn), random(*shape)
    graph, eager = fs.Sampler(plan, model, "graph"), fs.Sampler(plan, model)
    with torch.inference_mode():
        graph.warm([shape], device=KIND, check=None)
        call = {way: lambda s=s: s(noise=z, check=None) for way, s in (("c", graph), ("e", eager))}
        if not torch.equal(call["c"](), call["e"]()):
            raise AssertionError("loop: a captured call has not the bits of the eager one")
        chain = captured(lambda: [CUDA._sleep(0) for _ in range(NFE)])
        host = {"captured": call["c"], "eager": call["e"]}
        own, others = on_device(benchmark, replay_of(graph), {"chain": chain}, calls, host)
    benchmark.extra_info.update(evaluations=NFE)
    micro = lambda seconds: [1e6 * s for s in seconds]
    figure(benchmark, f"loop, {name}: the graph of {NFE} steps", micro(own), "µs")
    figure(benchmark, f"loop, {name}: {NFE} empty kernels", micro(others["chain"]), "µs")
    target = {"target": 1.5, "better": "lower", "missed": WHY} if name in LATENCY else {}
    over = ratios(own, others["chain"])
    figure(benchmark, f"loop, {name}: over the empty kernels", over, "x", **target)
    figure(benchmark, f"loop, {name}: a captured call", micro(others["captured"]), "µs")
    figure(benchmark, f"loop, {name}: an eager call", micro(others["eager"]), "µs")
