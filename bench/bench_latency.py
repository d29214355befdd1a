"""Small models, whose loop counts: ten Euler steps of a flow, the loop minus its model's ten
evaluations, ours in eager, compiled and captured as one graph, against the loop that people write
and diffusers'.

The models are made from a seed. Each loop is checked first: ours and the others agree to rounding.
On the CPU the evaluations are timed within the loop that asks for them. A loop that is one graph,
and every loop on a GPU, is timed in turn with the evaluations alone (of the compiled model, or
captured, where the loop is): such a figure is the difference of two that are larger, and less than
nothing where a graph fuses the steps with the model. A captured loop needs a GPU.
"""

from importlib.util import find_spec
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gpu import CUDA, KIND, captured, cut
from measure import figure, interleaved, often
from torch.nn.functional import silu

import fastsample as fs

STEPS = 10
# name -> (shape, hidden width, layers, calls in a round)
SIZES = {
    "policy, 50×32 actions": ((1, 50, 32), 128, 2, 20),
    "per-token head, 256×16": ((256, 16), 128, 3, 10),
    "speech, 512 frames × 80": ((1, 512, 80), 192, 3, 3),
}
WHERE = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.long])]


class Loop(NamedTuple):
    """work: the loop. clock: the model it asks; None: the evaluations are timed alone."""

    work: object
    clock: object
    alone: object


class Clocked:
    """The model, and the seconds that it took."""

    def __init__(self, model):
        self.model, self.seconds = model, 0.0

    def __call__(self, x, t):
        begun = perf_counter()
        v = self.model(x, t)
        self.seconds += perf_counter() - begun
        return v


class Network(torch.nn.Module):
    """v(x [B,*,width], t [B]), a few layers alike for every action, token or frame."""

    def __init__(self, width, hidden, layers):
        super().__init__()
        self.first, self.time = torch.nn.Linear(width, hidden), torch.nn.Linear(1, hidden)
        self.between = torch.nn.ModuleList(
            torch.nn.Linear(hidden, hidden) for _ in range(layers - 1)
        )
        self.last = torch.nn.Linear(hidden, width)

    def forward(self, x, t):
        time = self.time(t[:, None]).view(len(t), *[1] * (x.dim() - 2), -1)
        h = silu(self.first(x) + time)
        for layer in self.between:
            h = h + silu(layer(h))
        return self.last(h)


def plan_of():
    schedule = fs.schedules.Flow()
    return fs.solvers.euler(schedule, fs.grids.uniform(schedule, STEPS), prediction="flow")


def by_hand(model, z):
    """The loop as policies have it."""
    x, t, step = z, torch.ones(len(z), device=z.device), -1.0 / STEPS
    for _ in range(STEPS):
        x = x + step * model(x, t)
        t = t + step
    return x


def pipeline(scheduler, model, z):
    """The loop of a diffusers pipeline."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / STEPS, STEPS), device=z.device)
    x = z
    for t in scheduler.timesteps:
        v = model(x, t.expand(len(x)) / 1000)
        x = scheduler.step(v, t, x, return_dict=False)[0]
    return x


def evaluations(model, z, times):
    for t in times:
        model(z, t)


def loops_of(model, z, on_gpu):
    """{name: Loop}, ours in eager first."""
    plan, fused = plan_of(), torch.compile(model)
    times = [torch.full((len(z),), 1 - k / STEPS, device=z.device) for k in range(STEPS)]
    alone, quick = (lambda m=m: evaluations(m, z, times) for m in (model, fused))

    def asking(loop, model, alone):
        clock = Clocked(model)
        return Loop(loop(clock), None if on_gpu else clock, alone)

    def ours(model, mode="eager"):
        sampler = fs.Sampler(plan, model, mode)
        if mode == "graph":
            sampler.warm([z.shape], device=z.device)
        return lambda: sampler(noise=z)

    hand = lambda model: lambda: by_hand(model, z)
    loops = {
        "eager": asking(ours, model, alone),
        "compiled": Loop(ours(model, "compile-loop"), None, quick),
        "by hand": asking(hand, model, alone),
        "by hand, the model compiled": asking(hand, fused, quick),
    }
    if find_spec("diffusers"):
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler()
        walk = lambda model: lambda: pipeline(scheduler, model, z)
        loops["diffusers"] = asking(walk, model, alone)
    if on_gpu:
        loops["captured"] = Loop(ours(model, "graph"), None, captured(alone))
    return loops


def check(loops):
    want = loops["by hand"].work()
    for name, loop in loops.items():
        for _ in range(2):  # a new run, and a spare
            gap = float((loop.work() - want).abs().max() / want.abs().max())
            if not gap <= 1e-4:
                raise AssertionError(f"latency: {name} is {gap:.1e} of the range away")


def rounds_of(loops, calls, wait):
    """({name: () -> round}, {name: [seconds of the model in each round]}) of loops, and of the
    evaluations alone where a loop has no clock.
    """
    rounds, spent = {}, {}
    for name, loop in loops.items():
        if loop.clock is None:
            rounds[name] = often(lambda loop=loop: wait(loop.work()), calls)
            rounds[f"{name}: model"] = often(lambda loop=loop: wait(loop.alone()), calls)
            continue
        kept = spent[name] = []

        def round(loop=loop, kept=kept):
            loop.clock.seconds = 0.0
            for _ in range(calls):
                loop.work()
            kept.append(loop.clock.seconds)

        rounds[name] = lambda round=round: round
    return rounds, spent


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", SIZES, ids=lambda name: name.partition(",")[0].replace(" ", "-"))
def bench_latency(benchmark, name, where, monkeypatch, tmp_path):
    # graphs of other revisions are not taken up: torch keeps them by the traced code alone
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    on_gpu, device = where != "cpu", "cpu" if where == "cpu" else KIND
    benchmark.group = "gpu latency" if on_gpu else "latency"
    shape, hidden, layers, calls = SIZES[name]
    calls = cut(calls, 1)
    torch.manual_seed(0)
    model = Network(shape[-1], hidden, layers).to(device)
    z = torch.randn(shape).to(device)
    wait = (lambda end: CUDA.synchronize()) if on_gpu else lambda end: end
    with torch.no_grad():
        loops = loops_of(model, z, on_gpu)
        check(loops)
        rounds, spent = rounds_of(loops, calls, wait)
        own, seconds = interleaved(benchmark, rounds.pop("eager"), rounds)
    seconds["eager"] = own
    # as `interleaved` keeps them: two rounds to warm up, then those timed
    models = {loop: kept[2 : 2 + len(own)] for loop, kept in spent.items()}
    models |= {loop: seconds[f"{loop}: model"] for loop in loops if loop not in models}
    benchmark.extra_info.update(evaluations=STEPS, threads=str(torch.get_num_threads()))
    evaluated = [s / calls * 1e6 for s in models["eager"]]
    figure(benchmark, f"{name}: the model's {STEPS} evaluations, eager", evaluated, "µs")
    for loop in loops:
        pairs = zip(seconds[loop], models[loop], strict=True)
        over = [(a - b) / calls * 1e6 for a, b in pairs]
        ours = "ours, " if loop in ("eager", "compiled", "captured") else ""
        figure(benchmark, f"{name}: {ours}{loop}", over, "µs")
