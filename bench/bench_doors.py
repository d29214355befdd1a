"""The doors: `FsScheduler.step` and `set_timesteps` against the diffusers class each stands in for,
and a `k_sample` call against k-diffusion's sampler, ten steps each.

Both sides are given the same outputs, four in turn, float32, and the same threads, and are warmed
alike: `set_timesteps` stands outside the clock of a loop, and steps alone are those after a loop's
first. A sample is several loops, each on a scheduler of its own, so that it lasts milliseconds; as
many are begun before the clock of steps alone as a scheduler keeps runs. Each side is checked
first: an FsScheduler has the bits of a Run of its plan, and ours agree with the peers to rounding.
"""

import copy
import itertools
from importlib.util import find_spec

import diffusers
import numpy as np
import pytest
import torch
from measure import figure, interleaved, often, outputs

import fastsample as fs
from fastsample.interop import k_diffusion
from fastsample.interop.diffusers import FsScheduler, loop, runs
from fastsample.runtime import spares
from tests.oracle import peers

STEPS, PAIRS = 10, 41
SIZES = [(1, 4, 64, 64), (1, 16, 128, 128)]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = SD | {"use_karras_sigmas": True}
# name -> (config, targets at the two sizes)
SOURCES = {
    "FlowMatchEulerDiscrete": ({"shift": 3.0}, (2.0, 1.3)),
    "DPMSolverMultistep": (KARRAS, (12.0, 6.0)),
    "UniPCMultistep": (KARRAS, (30.0, 14.0)),
}
SAMPLERS = {"euler": 8.0, "dpmpp_2m": 5.0}


def ids(shape):
    return "x".join(map(str, shape))


def sides(name):
    """(a diffusers scheduler, the FsScheduler in its place)"""
    peer = getattr(diffusers, f"{name}Scheduler")(**SOURCES[name][0])
    return peer, FsScheduler.from_config(peer)


def walk(schedulers, x, made, skipped=0):
    """-> work: the steps of a loop on each scheduler after the first `skipped`; the last end."""
    begun = []
    for scheduler in schedulers:
        scheduler.set_timesteps(STEPS)
        pairs = list(zip(scheduler.timesteps, made, strict=True))
        y = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for t, f in pairs[:skipped]:
            y = scheduler.step(f, t, y).prev_sample
        begun.append((scheduler, pairs[skipped:], y))

    def work():
        for scheduler, pairs, y in begun:
            for t, f in pairs:
                y = scheduler.step(f, t, y).prev_sample
        return y

    return work


def agree(where, ours, theirs):
    gap = float((ours - theirs).abs().max() / theirs.abs().max())
    if not gap <= 1e-4:
        raise AssertionError(f"{where}: the peer's result differs by {gap:.1e}")


def check_scheduler(name, shape, z, made):
    peer, scheduler = sides(name)
    ours = [walk([scheduler], z, made)() for _ in range(2)]  # a new run, and a kept one
    agree(name, ours[0], walk([peer], z, made)())
    start = z * float(scheduler.init_noise_sigma)
    run = fs.Run(scheduler.plan, latent=start, start=1)
    for f in made:
        run.step(f)
    if not all(torch.equal(end, run.x) for end in ours):
        raise AssertionError(f"{name}: the bits of an FsScheduler are not its plan's")


def counted(owner, name, work):
    """How often `owner.name` is called while work runs."""
    calls, own = [], getattr(owner, name)
    setattr(owner, name, lambda *a, **k: calls.append(1) or own(*a, **k))
    try:
        work()
    finally:
        setattr(owner, name, own)
    return len(calls)


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("shape", SIZES, ids=ids)
def bench_scheduler(benchmark, name, shape):
    benchmark.group = "doors"
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    made, target = outputs(shape, STEPS), SOURCES[name][1][SIZES.index(shape)]
    loops = 20 if shape == SIZES[0] else spares.MOST
    with torch.no_grad():
        check_scheduler(name, shape, z, made)
        theirs, ours = ([copy.deepcopy(side) for _ in range(loops)] for side in sides(name))
        walk(ours[:1], z, made)()
        own, others = interleaved(
            benchmark,
            lambda: walk(ours, z, made),
            {
                "whole": lambda: walk(theirs, z, made),
                "our steps": lambda: walk(ours[: spares.MOST], z, made, 1),
                "its steps": lambda: walk(theirs[: spares.MOST], z, made, 1),
            },
            PAIRS,
        )
        looks, runs = (
            counted(*what, walk(ours[:1], z, made))
            for what in ((loop.Loop, "_checked"), (loop, "Run"))
        )
    threads = str(torch.get_num_threads())
    benchmark.extra_info.update(steps=STEPS, threads=threads, checked_steps=looks, new_runs=runs)
    where = f"FsScheduler for {name}, {'×'.join(map(str, shape))}"
    for what, count, ours, theirs in (
        ("steps alone", (STEPS - 1) * spares.MOST, others["our steps"], others["its steps"]),
        ("a whole loop", STEPS * loops, own, others["whole"]),
    ):
        figure(benchmark, f"{where}: one step of {what}", [s / count * 1e6 for s in ours], "µs")
        ratios = [p / s for p, s in zip(theirs, ours, strict=True)]
        figure(benchmark, f"{where}: against diffusers, {what}", ratios, "x", target=target)


@pytest.mark.parametrize("name", SOURCES)
def bench_set_timesteps(benchmark, name):
    benchmark.group = "doors"
    (peer, scheduler), calls = sides(name), 100
    for side in (peer, scheduler):
        side.set_timesteps(STEPS)
    if not torch.equal(peer.timesteps, scheduler.timesteps):
        raise AssertionError(f"{name}: other timesteps than the peer's")
    ours, theirs = (
        often(lambda side=side: side.set_timesteps(STEPS), calls) for side in (scheduler, peer)
    )
    own, others = interleaved(benchmark, ours, {"diffusers": theirs})
    where = f"FsScheduler for {name}: set_timesteps"
    figure(benchmark, f"{where} again", [s / calls * 1e6 for s in own], "µs")
    shares = [s / p for s, p in zip(own, others["diffusers"], strict=True)]
    what = f"{where} again, of diffusers' time"
    figure(benchmark, what, shares, "x", target=0.5, better="lower")


@pytest.mark.parametrize("name", SOURCES)
def bench_first_set_timesteps(benchmark, name):
    """set_timesteps of schedulers made a moment ago: of a config that another one ran before, and
    of one that none did, against new objects of the class.
    """
    benchmark.group = "doors"
    config, calls = SOURCES[name][0], 10
    source = getattr(diffusers, f"{name}Scheduler")
    ours = lambda: FsScheduler.from_config(source(**config))

    def first(make):
        def work():
            for scheduler in made:
                scheduler.set_timesteps(STEPS)
            return scheduler.timesteps

        made = [make() for _ in range(calls)]
        return work

    def unknown():
        runs._shared.clear()
        return ours()

    if not torch.equal(first(ours)(), first(lambda: source(**config))()):
        raise AssertionError(f"{name}: other timesteps than the peer's")
    own, others = interleaved(
        benchmark,
        lambda: first(ours),
        {"diffusers": lambda: first(lambda: source(**config)), "new": lambda: first(unknown)},
    )
    where, theirs = f"FsScheduler for {name}: set_timesteps", others["diffusers"]
    why = "the plan itself is made, row by row, and checked"
    for what, seconds in (
        ("of a fresh scheduler of a config that another ran", own),
        ("of a config that none ran", others["new"]),
    ):
        figure(benchmark, f"{where} {what}", [s / calls * 1e6 for s in seconds], "µs")
        shares = [s / p for s, p in zip(seconds, theirs, strict=True)]
        told = f"{where} {what}, of diffusers' time"
        figure(benchmark, told, shares, "x", target=5.0, better="lower", missed=why)


def bench_new_shift(benchmark):
    """set_timesteps with a dynamic shift that was never asked for, as pipelines of other picture
    sizes do.
    """
    benchmark.group = "doors"
    name, sigmas = "FlowMatchEulerDiscreteScheduler", np.linspace(1.0, 1.0 / STEPS, STEPS)
    peer = getattr(diffusers, name)(use_dynamic_shifting=True)
    scheduler, shifts, calls = FsScheduler.from_config(peer), itertools.count(), 4
    for side in (peer, scheduler):
        side.set_timesteps(sigmas=sigmas, mu=0.9)
    if not torch.allclose(peer.timesteps, scheduler.timesteps, rtol=1e-6):
        raise AssertionError(f"{name}: other timesteps than the peer's")
    new = lambda: scheduler.set_timesteps(sigmas=sigmas, mu=1.0 + 1e-6 * next(shifts))
    own, _ = interleaved(benchmark, often(new, calls), {})
    what = f"FsScheduler for {name}: set_timesteps with a new shift"
    why = "the plan itself is made anew, row by row, and checked"
    values = [s / calls * 1e3 for s in own]
    figure(benchmark, what, values, "ms", target=1.0, better="lower", missed=why)


@pytest.mark.skipif(find_spec("k_diffusion") is None, reason="k-diffusion is not installed")
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("shape", SIZES, ids=ids)
def bench_k_sample(benchmark, name, shape):
    benchmark.group = "doors"
    schedule, calls = fs.schedules.EDM(), 40 if shape == SIZES[0] else 4
    grid = fs.grids.karras(schedule, STEPS)
    plan = fs.solvers.SOLVERS[name](schedule, grid, prediction="x0")
    theirs, ours = getattr(peers.k_diffusion(), f"sample_{name}"), k_diffusion.k_sample
    sigmas = torch.tensor(np.append(schedule.sigma(grid)[:-1], 0.0), dtype=torch.float32)
    x = plan.init_scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    turn = itertools.cycle(outputs(shape, 4))
    models = {"made beforehand": lambda x, s: next(turn), "x/2": lambda x, s: 0.5 * x}
    with torch.no_grad():
        sampled = [ours(plan, models["x/2"], x, disable=True) for _ in range(2)]
        agree(name, sampled[0], theirs(models["x/2"], x, sigmas, disable=True))
        if not torch.equal(*sampled):
            raise AssertionError(f"{name}: a kept run has other bits than a new one")
        call = lambda model: lambda: ours(plan, model, x, disable=True)
        rival = lambda model: lambda: theirs(model, x, sigmas, disable=True)
        own, others = interleaved(
            benchmark,
            often(call(models["x/2"]), calls),
            {
                "x/2": often(rival(models["x/2"]), calls),
                "ours, made": often(call(models["made beforehand"]), calls),
                "its, made": often(rival(models["made beforehand"]), calls),
            },
        )
        runs = counted(k_diffusion, "Run", call(models["x/2"]))
    threads = str(torch.get_num_threads())
    benchmark.extra_info.update(evaluations=plan.nfe, threads=threads, new_runs=runs)
    where = f"k_sample, {name}, {'×'.join(map(str, shape))}"
    for words, ours, theirs, target in (
        ("x/2", own, others["x/2"], SAMPLERS[name]),
        ("made beforehand", others["ours, made"], others["its, made"], None),
    ):
        what = f"{where}: a call, the denoiser's answers {words}"
        figure(benchmark, what, [s / calls * 1e6 for s in ours], "µs")
        ratios = [p / s for p, s in zip(theirs, ours, strict=True)]
        figure(benchmark, f"{what}, against k-diffusion", ratios, "x", target=target)
