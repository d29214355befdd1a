"""A tick of the Engine with 64 mixed requests in flight, against 64 deep-copied diffusers
schedulers that are stepped one after the other, as servers do.

Solver time alone: the model returns outputs made beforehand. The peer's joining of its states into
the model's next batch is left out, the Engine's is in.
"""

import copy

import diffusers
import pytest
import torch
from measure import figure, interleaved
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs

REQUESTS, TICKS = 64, 8
SHAPES = [(50, 32), (4, 64, 64)]
BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
KINDS = {
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {"order": 2}),
}
MIX = [(solver, nfe) for nfe in (10, 12, 15, 20) for solver in KINDS]
VIEWS = {"slice", "select", "view", "detach", "alias"}


def mixed():
    """[(our plan, the peer's scheduler)] of 64 requests: two solvers, four numbers of steps."""
    schedule, made = fs.schedules.DiscreteVP.linear(), []
    for solver, nfe in MIX:
        kind, words = KINDS[solver]
        scheduler = kind(**BETAS)
        scheduler.set_timesteps(nfe)
        grid = fs.grids.from_sigmas(schedule, scheduler.sigmas.double().numpy())
        plan = fs.solvers.SOLVERS[solver](schedule, grid, prediction="eps", **words)
        made.append((plan, scheduler))
    return [(plan, copy.deepcopy(scheduler)) for plan, scheduler in made * (REQUESTS // len(MIX))]


def model(x, t):
    return x / (1 + x.abs())


def check(pairs, noise):
    """Each request in the company of all against its run alone, bit for bit, and against the peer:
    the two do the same work.
    """
    engine = fs.Engine(model, noise.shape[1:], REQUESTS)
    tickets = [engine.submit(p, noise=noise[k : k + 1]) for k, (p, _) in enumerate(pairs)]
    engine.run()
    for k, (plan, scheduler) in enumerate(pairs):
        ours, x = tickets[k].result(), noise[k : k + 1]
        if not torch.equal(ours, fs.Sampler(plan, model)(noise=x)):
            raise AssertionError(f"engine: request {k} differs from its run alone")
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), t, x, return_dict=False)[0]
        apart = float((x - ours).abs().max() / ours.abs().max())
        # The peer rounds its sigmas and coefficients to float32 before it uses them.
        if not apart <= 1e-3:
            raise AssertionError(
                f"engine: request {k} differs from {type(scheduler).__name__} by {apart:.1e} of "
                "its range"
            )


class Operators(TorchDispatchMode):
    """Counts the operators dispatched, those apart that only look at memory."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*args, **(kwargs or {}))


def in_flight(pairs, noise, outputs):
    """An Engine with every request past its second evaluation, its model's outputs made before."""
    turn = iter(range(1 << 30))
    engine = fs.Engine(
        lambda x, t: outputs[next(turn) % 4], noise.shape[1:], REQUESTS, preview=False
    )
    for k, (plan, _) in enumerate(pairs):
        engine.submit(plan, noise=noise[k : k + 1])
    for _ in range(3):
        engine.tick()
    return engine


def peers(pairs, noise, outputs):
    """The peer's states and schedulers after two steps, and the work of TICKS more."""
    schedulers = [copy.deepcopy(scheduler) for _, scheduler in pairs]
    states, rows = list(noise.split(1)), [f.split(1) for f in outputs]
    times = [list(scheduler.timesteps) for scheduler in schedulers]
    for scheduler in schedulers:
        scheduler.set_begin_index(0)

    def steps(first, count):
        for n in range(first, first + count):
            f = rows[n % 4]
            for k, scheduler in enumerate(schedulers):
                states[k] = scheduler.step(f[k], times[k][n], states[k], return_dict=False)[0]

    steps(0, 2)
    return lambda: steps(2, TICKS)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def bench_engine(benchmark, shape):
    benchmark.group = "engine"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(REQUESTS, *shape, generator=generator)
    outputs = [torch.randn(REQUESTS, *shape, generator=generator) for _ in range(4)]
    with torch.inference_mode():
        pairs = mixed()
        check(mixed(), noise)
        with Operators() as operators:
            engine = in_flight(pairs, noise, outputs)
            operators.count = 0
            engine.tick()
        operators = operators.count

        def ours():
            engine = in_flight(pairs, noise, outputs)
            return lambda: [engine.tick() for _ in range(TICKS)]

        own, theirs = interleaved(
            benchmark, ours, {"diffusers": lambda: peers(pairs, noise, outputs)}
        )
    benchmark.extra_info.update(requests=REQUESTS, operators_a_tick=operators)
    name = f"{REQUESTS} requests, {'×'.join(map(str, shape))}"
    figure(benchmark, f"{name}: one tick", [s / TICKS * 1e6 for s in own], "µs")
    ratios = [p / s for p, s in zip(theirs["diffusers"], own, strict=True)]
    why = (
        "the states, their history and the model's batch no longer fit the cache, and moving them "
    )
    why += "is most of it"
    what = f"{name}: against {REQUESTS} deep-copied diffusers schedulers"
    figure(benchmark, what, ratios, "x", target=20, missed=why)
