"""Calls to be counted (counted.py): ours of every kind, and those of diffusers and k-diffusion."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle
from typing import NamedTuple

import torch
from counted import Tally, counting
from measure import outputs
from torch import Tensor

import fastsample as fs
from fastsample.interop.k_diffusion import k_sample
from fastsample.solvers import Builder, M, R, X
from tests.oracle import peers

SHAPE, STEPS, REQUESTS = (2, 4, 16, 16), 6, 64
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = SD | {"use_karras_sigmas": True}
SOURCES = {  # of diffusers, those that need no generator of the device's own
    "FlowMatchEulerDiscrete": {"shift": 3.0},
    "DDIM": SD,
    "EulerDiscrete": KARRAS,
    "EulerAncestralDiscrete": SD,
    "HeunDiscrete": KARRAS,
    "DPMSolverMultistep": KARRAS,
    "DEISMultistep": KARRAS,
    "UniPCMultistep": KARRAS,
    "LCM": SD,
}
DOORS = ("FlowMatchEulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
SAMPLERS = ("euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde")
SAMPLED = ("euler", "dpmpp_2m")


class Call(NamedTuple):
    """make(put) -> work(model) -> end, where put brings a tensor to where the work is done; work is
    called again and again, as a server does, and `outputs` are what its model answers.
    """

    make: Callable
    outputs: list[Tensor]


def counted(call: Call, times: int = 3) -> Tally:
    """What the last of so many calls did: one whose tables and memory are there. Raises unless
    every end has the bits that the same work has on the CPU.
    """
    with torch.inference_mode():
        torch.manual_seed(0)
        turn = cycle(call.outputs)
        end = call.make(lambda v: v)(lambda *given, **words: next(turn)).clone()
        with counting() as device:
            work, made = call.make(device.put), [device.put(f) for f in call.outputs]
            for _ in range(times):
                torch.manual_seed(0)
                found, tally = device.call(work, cycle(made))
                if not torch.equal(device.see(found), end):
                    raise AssertionError("counted: the end is not the CPU's, bit for bit")
    return tally


def noise() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def plan_of(solver: str, steps: int = STEPS, **options) -> fs.Plan:
    schedule = fs.schedules.EDM()
    make = fs.solvers.SOLVERS[solver]
    return make(schedule, fs.grids.karras(schedule, steps), prediction="x0", **options)


def fitted(past: int = 10) -> fs.Plan:
    """Rows that read every earlier prediction, up to `past` of them, as fitted plans do."""
    schedule = fs.schedules.EDM()
    b = Builder(schedule, fs.grids.karras(schedule, past + 1), prediction="x0")
    for i in range(b.n):
        a, earlier = b.sigma[i + 1] / b.sigma[i], [R(f"m{j}") for j in range(i)]
        x = a * X + (1 - a) * sum((0.01 * r for r in earlier), (1 - 0.01 * i) * M)
        b.row(b.t[i], to=b.t[i + 1], x=x, keep={f"m{i}": M} if i + 1 < b.n else {})
    return b.build("fitted", order=1)


# -- ours ------------------------------------------------------------------------------------------
def sampler(plan, z=None, branches: int = 1, backend: str | None = None, **words) -> Call:
    """A Sampler's call; one row of the model answers all branches."""
    z = noise() if z is None else z
    made = [torch.cat([f] * branches) for f in outputs(SHAPE, plan.nfe)]
    if not z.is_contiguous():
        made = [f.to(memory_format=torch.channels_last) for f in made]

    def make(put):
        asked = []
        whole = fs.Sampler(plan, lambda x, t, **told: asked[-1](x, t), backend=backend)
        begin = put(z)
        given = {k: put(v) if isinstance(v, Tensor) else v for k, v in words.items()}

        def work(model):
            asked.append(model)
            return whole(noise=begin, **given)

        return work

    return Call(make, made)


def run(plan, check) -> Call:
    """A Run that is begun again for each call."""

    def make(put):
        begin = put(noise())
        own = fs.Run(plan, noise=begin, preview=False, check=check)

        def work(model):
            own.restart(begin)
            while not own.done:
                own.step(model(own.model_input, own.t))
            own.check()
            return own.x

        return work

    return Call(make, outputs(SHAPE, plan.nfe))


def engine(check) -> Call:
    """64 requests of three solvers in one Engine, in which nobody ends before the last; a step is a
    tick. One that was there before them has left its place, so that the model's rows stand apart.
    """
    plans = [plan_of(s, 8) for s in ("dpmpp_2m", "unipc", "euler_ancestral")]

    def make(put):
        asked, z = [], put(noise()[:1])
        model = lambda x, t: asked[-1](x, t)[: len(x)]
        whole = fs.Engine(model, SHAPE[1:], REQUESTS + 1, device=z.device, check=check)

        def work(model):
            asked.append(model)
            first, *tickets = (
                whole.submit(plans[k % len(plans)], noise=z, seed=k) for k in range(REQUESTS + 1)
            )
            tickets[REQUESTS // 2].cancel()
            tickets[REQUESTS // 2] = first
            whole.run()
            return torch.cat([ticket.result() for ticket in tickets])

        return work

    return Call(make, outputs((REQUESTS, *SHAPE[1:]), 8))


def ours(check: str | None) -> dict[str, Call]:
    """Every solver of the registry, and every kind of call."""
    words = {"seed": 7, "check": check}
    calls = {name: sampler(plan_of(name), **words) for name in fs.solvers.SOLVERS}
    mask, known = torch.ones(1, 1, *SHAPE[2:]), torch.full(SHAPE, 0.5)
    last = noise().to(memory_format=torch.channels_last)
    two = {"cond": {}, "uncond": {}, "guidance": 3.0}
    guided = sampler(plan_of("dpmpp_2m"), branches=2, **two, **words)
    masked = sampler(plan_of("dpmpp_2m", inpaint=True), mask=mask, known=known, **words)
    return calls | {
        "dpmpp_2m, guided": guided,
        "dpmpp_2m, masked": masked,
        "dpmpp_2m, channels_last": sampler(plan_of("dpmpp_2m"), last, **words),
        "dpmpp_2m_sde, channels_last": sampler(plan_of("dpmpp_2m_sde"), last, **words),
        "ten earlier predictions": sampler(fitted(), **words),
        "dpmpp_2m, a Run": run(plan_of("dpmpp_2m"), check),
        f"Engine, {REQUESTS} mixed requests": engine(check),
    }


def defined() -> dict[str, Call]:
    """The definition in plain torch, which a GPU runs where no kernels are built for it."""
    plan = plan_of("dpmpp_2m")
    return {"dpmpp_2m, backend='reference'": sampler(plan, backend="reference", check=None)}


# -- the others' -----------------------------------------------------------------------------------
def pipeline(scheduler, steps: int = STEPS) -> Call:
    """The loop of a diffusers pipeline, `set_timesteps` at its start included."""

    def make(put):
        z = put(noise())

        def work(model):
            scheduler.set_timesteps(steps, device=z.device)
            x = z * getattr(scheduler, "init_noise_sigma", 1.0)
            scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
            for t in scheduler.timesteps:
                x = scheduler.step(model(scaled(x, t), t), t, x, return_dict=False)[0]
            return x

        return work

    return Call(make, outputs(SHAPE, 4))


def k_call(sample: Callable, **words) -> Call:
    """k-diffusion's sampler on the levels of our plans; noise drawn by torch on the device."""

    def make(put):
        plan = plan_of("euler")
        levels = torch.tensor([*plan.sigma[1 : STEPS + 1], 0.0], dtype=torch.float32)
        x, sigmas = put(noise() * levels[0]), put(levels)
        draws = {name: lambda *levels: torch.randn_like(x) for name in words}
        return lambda model: sample(model, x, sigmas, disable=True, **draws)

    return Call(make, outputs(SHAPE, 4))


def theirs() -> dict[str, Call]:
    """Peers that are installed."""
    calls = {}
    if find_spec("diffusers"):
        import diffusers

        for name, config in SOURCES.items():
            scheduler = getattr(diffusers, f"{name}Scheduler")(**config)
            calls[f"diffusers {name}"] = pipeline(scheduler)
    if find_spec("k_diffusion"):
        for name in SAMPLERS:
            sample = getattr(peers.k_diffusion(), f"sample_{name}")
            words = {"noise_sampler": None} if name.endswith("_sde") else {}
            calls[f"k-diffusion {name}"] = k_call(sample, **words)
    return calls


def doors() -> dict[str, Call]:
    """Ours in the place of a peer's class or function."""
    calls = {}
    if find_spec("diffusers"):
        import diffusers

        from fastsample.interop.diffusers import FsScheduler

        for name in DOORS:
            source = getattr(diffusers, f"{name}Scheduler")(**SOURCES[name])
            calls[f"FsScheduler for {name}"] = pipeline(FsScheduler.from_config(source))
    for name in SAMPLED:
        plan = plan_of(name)
        sample = lambda model, x, sigmas, plan=plan, **w: k_sample(plan, model, x, **w)
        calls[f"k_sample, {name}"] = k_call(sample)
    return calls
