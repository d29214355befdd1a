"""A call of ten evaluations as one graph (`compile-loop`): against the same call in eager, what a
row of it costs, how many graphs there are, and how long they take to make.

Each loop is checked first: with an elementwise model it has the bits of eager, with a network its
own rounding is allowed. A first call is timed in a process of its own whose cache of compiled code
is empty; that takes three minutes and is left out by `make bench ONLY="bench/bench_compiled.py -k
'not cold'"`, which takes one.
"""

import os
import subprocess
import sys
from time import perf_counter

import pytest
import torch
from measure import figure, interleaved, often
from torch._dynamo.utils import counters

import fastsample as fs
from fastsample.kernels.backend import bound, select
from fastsample.runtime.step_op import STEP

NFE = 10
SIZES = {(1, 16, 128, 128): 8, (1, 16, 21, 60, 104): 2}  # shape -> calls in a round
SMALL = (1, 4, 64, 64)
BATCHES = (2, 3, 5, 8, 16)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch, tmp_path):
    """Graphs of other revisions are not taken up: torch keeps them by the traced code alone."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))


def elementwise(x, t):
    return x / (1 + x.abs()) - t.view(-1, *[1] * (x.dim() - 1)) * 0.01 * x


def half(x, t):
    return x * 0.5


def plan_of(solver="dpmpp_2m", rho=7.0):
    schedule = fs.schedules.EDM()
    grid = fs.grids.karras(schedule, NFE, rho=rho)
    return fs.solvers.SOLVERS[solver](schedule, grid, prediction="x0")


def network(batch=4):
    """(plan, model, words of a call) of the embedded network."""
    model = fs.models.fashion()
    plan = fs.solvers.dpmpp_2m(model, fs.grids.karras(model.schedule, NFE))
    noise = torch.randn(batch, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return plan, model, {"noise": noise, "cond": {"label": torch.arange(batch) % 10}}


def alone(model, shape):
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return plan_of(), model, {"noise": noise}


def check(loop, eager, call, rounding=0.0):
    """Within `rounding` of the range, and for 0 bit for bit."""
    for _ in range(2):  # a new run, and a spare
        got, want = loop(**call), eager(**call)
        gap = float((got - want).abs().max() / want.abs().max())
        if not gap <= rounding:
            raise AssertionError(f"compiled loop: {gap:.1e} of the range away from eager")


def timed(benchmark, plan, model, call, calls, rounding=0.0, parts=()):
    """(seconds of a call of the loop, percent over eager, seconds of each of `parts`), checked."""
    benchmark.group = "compiled"
    loop, eager = fs.Sampler(plan, model, "compile-loop"), fs.Sampler(plan, model)
    with torch.no_grad():
        check(loop, eager, call, rounding)
        peers = {"eager": lambda: eager(**call), **dict(parts)}
        peers = {name: often(work, calls) for name, work in peers.items()}
        own, peers = interleaved(benchmark, often(lambda: loop(**call), calls), peers)
    benchmark.extra_info.update(evaluations=NFE, threads=str(torch.get_num_threads()))
    own, eager, *parts = ([s / calls for s in seconds] for seconds in (own, *peers.values()))
    return own, [100 * (s / e - 1) for s, e in zip(own, eager, strict=True)], parts


def bench_compiled_network(benchmark):
    name = "embedded network, batch of 4"
    own, over, _ = timed(benchmark, *network(), calls=1, rounding=1e-4)
    figure(benchmark, f"{name}: a call as one graph", [s * 1e3 for s in own], "ms")
    figure(benchmark, f"{name}: over eager", over, "%", target=10, better="lower")


@pytest.mark.parametrize("shape", SIZES, ids=lambda shape: "x".join(map(str, shape)))
def bench_compiled_elementwise(benchmark, shape):
    name = f"elementwise model, {'×'.join(map(str, shape))}"
    own, over, _ = timed(benchmark, *alone(elementwise, shape), calls=SIZES[shape])
    figure(benchmark, f"{name}: a call as one graph", [s * 1e6 for s in own], "µs")
    figure(benchmark, f"{name}: over eager", over, "%", target=10, better="lower")


def bench_compiled_small(benchmark):
    """And of it the op for each row, and of that the bound launches; the rest are the model's
    kernels, the guards of a compiled function, and a restart.
    """
    name, (plan, model, call) = f"x/2, {'×'.join(map(str, SMALL))}", alone(half, SMALL)
    own = fs.Run(plan, **call)._pool
    memory = (own.x, own.slot_rows, None, own.status, None), (own.table.f, own.table.i, own.seed)
    options, dims = (own.stage, None, None, None, None, []), [*plan.layout, 1]
    launch = bound(select("step", "cpu", torch.float32), own)
    f, rows = [own.x / 2], range(1, NFE + 1)
    parts = {
        "its op for each row": lambda: [
            STEP(*memory[0], f, *memory[1], *options, row, dims) for row in rows
        ],
        "its bound launches": lambda: [launch.carry(row, f[0], None, None) for row in rows],
    }
    own, over, parts_own = timed(benchmark, plan, model, call, calls=30, parts=parts)
    values, most = [s * 1e6 for s in own], 30 + 11 * NFE
    missed = "torch's dispatcher hands each row's op to a Python kernel, see the parts"
    what = f"{name}: a call as one graph"
    figure(benchmark, what, values, "µs", target=most, better="lower", missed=missed)
    figure(benchmark, f"{name}: over eager", over, "%")
    for part, seconds in zip(parts, parts_own, strict=True):
        figure(benchmark, f"{what}, {part}", [s * 1e6 for s in seconds], "µs")


def bench_compiled_graphs(benchmark):
    """Graphs that calls of all kinds make: any batch, one sample, other plans, seeds, scales."""
    benchmark.group = "compiled"
    plans = [plan_of("dpmpp_2m_sde", rho) for rho in (7.0, 5.0, 3.0)]
    if len({plan.program for plan in plans}) != 1:
        raise AssertionError("graphs: the plans are not of one program")
    told = lambda x, t, label: elementwise(x, t) + label.view(-1, 1, 1, 1)
    sampler, made = fs.Sampler(plans[0], told, "compile-loop"), {}
    counters.clear()

    def calls(name, plans, batches):
        before = counters["stats"]["unique_graphs"]
        for plan in plans:
            for seed, batch in enumerate(batches):
                label, noise = torch.arange(float(batch)), torch.randn(batch, *SMALL[1:])
                call = {"noise": noise, "seed": seed, "noise_scale": 0.1 * seed}
                call |= {"guidance": 0.5 * seed, "cond": {"label": label}}
                call |= {"uncond": {"label": label * 0}}
                check(sampler.for_plan(plan), fs.Sampler(plan, told), call)
        made[name] = counters["stats"]["unique_graphs"] - before

    def work():
        calls("batches 2, 3, 5, 8, 16", plans[:1], BATCHES)
        calls("a batch of 1", plans[:1], (1, 1))
        calls("two more plans, seeds, scales", plans[1:], (*BATCHES, 1))

    benchmark.pedantic(work, rounds=1, iterations=1)
    for (name, graphs), most in zip(made.items(), (1, 1, 0), strict=True):
        benchmark.extra_info[f"graphs, {name}"] = graphs
        what = f"compiled loop: graphs, {name}"
        figure(benchmark, what, graphs, target=most, better="lower")


# -- a first call --------------------------------------------------------------------------------
FIRST = {
    "embedded network, batch of 4": network,
    "elementwise model, 1×4×64×64": lambda: alone(elementwise, SMALL),
}


def first_call(name, mode):
    """Seconds of a mode's first call, the model's libraries warm."""
    plan, model, call = FIRST[name]()
    eager, sampler = fs.Sampler(plan, model), fs.Sampler(plan, model, mode)
    eager(**call)
    start = perf_counter()
    sampler(**call)
    seconds = perf_counter() - start
    check(sampler, eager, call, 1e-4)
    return seconds


@pytest.mark.parametrize(("name", "most"), [*zip(FIRST, (1.5, None), strict=True)], ids=FIRST)
def bench_compiled_cold(benchmark, tmp_path, name, most):
    """The loop's first call against that of the model alone."""
    benchmark.group = "compiled"

    def seconds(mode):
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / mode)}
        command = [sys.executable, __file__, name, mode]
        done = subprocess.run(command, env=os.environ | cache, capture_output=True, text=True)
        if done.returncode:
            raise AssertionError(f"{mode}: {done.stderr}")
        return float(done.stdout)

    model = seconds("compile-model")
    loop = benchmark.pedantic(seconds, args=("compile-loop",), rounds=1, iterations=1)
    what = f"{name}: first call, nothing compiled before"
    figure(benchmark, f"{what}, the model alone", model, "s")
    figure(benchmark, f"{what}, the whole loop", loop, "s")
    figure(benchmark, f"{what}, loop over model", loop / model, "x", target=most, better="lower")


if __name__ == "__main__":
    with torch.no_grad():
        print(first_call(*sys.argv[1:]))
