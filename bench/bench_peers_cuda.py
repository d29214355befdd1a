"""One step on a GPU from Python, ours against diffusers' scheduler and k-diffusion's sampler: where
they are installed, else no row.

The model's outputs are made beforehand; both sides are timed from the host over a trajectory, with
one wait for the device at its end.
"""

import itertools
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from gpu import CUDA, cut, random, ratios
from measure import figure, interleaved

import fastsample as fs
from fastsample.interop import k_sample

pytestmark = [pytest.mark.gpu, pytest.mark.long]
SHAPE, NFE = (1, 16, 128, 128), 20


def waited(work):
    return lambda: (work(), CUDA.synchronize())


def told(benchmark, name, peer, own, theirs):
    benchmark.extra_info.update(evaluations=NFE)
    figure(benchmark, f"{name}: one step", [s / NFE * 1e6 for s in own], "µs")
    figure(benchmark, f"{name}: against {peer}", ratios(theirs, own), "x")


@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc"])
def bench_peer_diffusers(benchmark, solver):
    benchmark.group = "gpu peers"
    pytest.importorskip("diffusers", reason="peer absent: diffusers")
    from bench_step import check, our_plan, peer_scheduler

    shape = cut(SHAPE, (1, 1, 8, 8))
    noise, given = random(*shape), [random(*shape, seed=2 + k % 4) for k in range(NFE)]
    scheduler = peer_scheduler(solver, NFE)
    plan = our_plan(solver, scheduler)

    def ours():
        run = fs.Run(plan, noise=noise, preview=False)
        return waited(lambda: [run.step(f) for f in given])

    def theirs():
        scheduler = peer_scheduler(solver, NFE)
        scheduler.set_begin_index(0)

        def loop():
            x = noise
            for t, f in zip(scheduler.timesteps, given, strict=True):
                x = scheduler.step(f, t, x, return_dict=False)[0]

        return waited(loop)

    with torch.inference_mode():
        check(plan, scheduler, noise, given)
        own, others = interleaved(benchmark, ours, {"theirs": theirs})
    told(benchmark, f"{solver}, {'×'.join(map(str, shape))}", "diffusers", own, others["theirs"])


@pytest.mark.skipif(find_spec("k_diffusion") is None, reason="peer absent: k-diffusion")
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def bench_peer_k_diffusion(benchmark, solver):
    benchmark.group = "gpu peers"
    from tests.oracle import peers

    sampler = getattr(peers.k_diffusion(), f"sample_{solver}")
    shape = cut(SHAPE, (1, 1, 8, 8))
    schedule = fs.schedules.EDM()
    grid = fs.grids.karras(schedule, NFE)
    plan = fs.solvers.SOLVERS[solver](schedule, grid, prediction="x0")
    x = plan.init_scale * random(*shape)
    sigmas = torch.tensor(np.append(schedule.sigma(grid)[:-1], 0.0), dtype=x.dtype).to(x.device)
    turn = itertools.cycle([random(*shape, seed=2 + k) for k in range(4)])
    model = lambda x, sigma: next(turn)
    with torch.no_grad():
        ours = lambda: k_sample(plan, model, x, disable=True)
        theirs = lambda: sampler(model, x, sigmas, disable=True)
        a, b = ours(), theirs()
        if not (a - b).abs().max() <= 1e-3 * b.abs().max():
            raise AssertionError(f"k_sample: {solver} differs from k-diffusion's")
        own, others = interleaved(
            benchmark, lambda: waited(ours), {"theirs": lambda: waited(theirs)}
        )
    told(
        benchmark,
        f"k_sample, {solver}, {'×'.join(map(str, shape))}",
        "k-diffusion",
        own,
        others["theirs"],
    )
