"""A tick of the Engine with R mixed requests in flight, against R deep-copied diffusers schedulers
that are stepped one after the other, as servers do, and against R Runs.

Solver time alone: the model returns outputs made beforehand. The others' joining of their states
into the model's next batch is left out, the Engine's is in. And a tick of the C++ Engine, in a
process of its own that runs a round for every line it is sent.
"""

import copy
import subprocess

import diffusers
import numpy as np
import pytest
import torch
from measure import figure, interleaved
from torch.utils._python_dispatch import TorchDispatchMode

import fastsample as fs
from tests.c import build

TICKS = 8
CASES = [(1, (4, 8, 8)), (8, (4, 8, 8)), (64, (4, 8, 8)), (64, (50, 32)), (64, (4, 64, 64))]
LIMIT = 100.0  # µs, of a tick of 64 requests of 4×8×8
BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
KINDS = {
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "unipc": (diffusers.UniPCMultistepScheduler, {"order": 2}),
}
COUNTS = (11, 12, 15, 20)  # steps, of which three ticks before and TICKS leave some
VIEWS = {"slice", "select", "view", "detach", "alias"}
CROWDED = (
    "the states, their history and the model's batch no longer fit the cache, and moving them is "
    "most of it"
)


def mixed(requests, counts=COUNTS):
    """[(our plan, the peer's scheduler)] of the requests, two solvers in so many steps by turns."""
    schedule, made = fs.schedules.DiscreteVP.linear(), []
    for solver, nfe in ((solver, n) for n in counts for solver in KINDS):
        kind, words = KINDS[solver]
        scheduler = kind(**BETAS)
        scheduler.set_timesteps(nfe)
        grid = fs.grids.from_sigmas(schedule, scheduler.sigmas.double().numpy())
        plan = fs.solvers.SOLVERS[solver](schedule, grid, prediction="eps", **words)
        made.append((plan, scheduler))
    made = (made * -(-requests // len(made)))[:requests]
    return [(plan, copy.deepcopy(scheduler)) for plan, scheduler in made]


def model(x, t):
    return x / (1 + x.abs())


def check(pairs, noise):
    """Each request in the company of all against its run alone, bit for bit, and against the peer:
    the two do the same work.
    """
    engine = fs.Engine(model, noise.shape[1:], len(pairs))
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
        lambda x, t: outputs[next(turn) % 4], noise.shape[1:], len(pairs), preview=False
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


def name_of(case):
    """What a case is called: by its shape, with fewer requests or a small one by both."""
    requests, shape = case
    sizes = "x".join(map(str, shape))
    return sizes if requests == 64 and shape != CASES[0][1] else f"{requests}-{sizes}"


def runs(pairs, noise, outputs):
    """As many Runs after two steps, and the work of TICKS more."""
    begun = [fs.Run(p, noise=noise[k : k + 1], preview=False) for k, (p, _) in enumerate(pairs)]
    rows = [f.split(1) for f in outputs]

    def steps(first, count):
        for n in range(first, first + count):
            for k, run in enumerate(begun):
                run.step(rows[n % 4][k])

    steps(0, 2)
    return lambda: steps(2, TICKS)


class Told:
    """engine_tick, of these plans [R] with seeds 0, 1, ..., whose samples have the bits of the
    Python Engine's; called, it is the work of TICKS ticks, and `seconds` has what each took.
    """

    def __init__(self, plans, shape, folder):
        self.seconds, names = [], []
        for k, plan in enumerate(dict.fromkeys(plans)):
            plan.save(folder / f"{k}.fsplan")
            names.append(str(folder / f"{k}.fsplan"))
        sizes = len(plans), int(np.prod(shape)), TICKS
        command = [build.installed()[1] / "engine_tick", folder / "states", *sizes, *names]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([*map(str, command)], **pipes)
        engine = fs.Engine(model, shape, len(plans))
        tickets = [engine.submit(plan, seed=k) for k, plan in enumerate(plans)]
        engine.run()
        own = torch.cat([ticket.result() for ticket in tickets]).numpy().tobytes()
        if self._process.stdout.readline() != "ready\n" or own != (folder / "states").read_bytes():
            raise AssertionError("engine: the C++ Engine's samples differ from the Python Engine's")

    def __call__(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.seconds.append(float(self._process.stdout.readline()))

    def close(self):
        self._process.communicate()


def bench_engine_cpp(benchmark, tmp_path):
    benchmark.group = "engine"
    requests, shape = CASES[2]
    pairs, generator = mixed(requests), torch.Generator().manual_seed(0)
    noise = torch.randn(requests, *shape, generator=generator)
    outputs = [torch.randn(requests, *shape, generator=generator) for _ in range(4)]
    told = Told([plan for plan, _ in pairs], shape, tmp_path)

    def python():
        engine = in_flight(pairs, noise, outputs)
        return lambda: [engine.tick() for _ in range(TICKS)]

    with torch.inference_mode():
        _, theirs = interleaved(benchmark, lambda: told, {"python": python})
    told.close()
    own = told.seconds[2:]
    benchmark.extra_info.update(requests=requests)
    name = f"{requests} requests, {'×'.join(map(str, shape))}"
    goal = {"target": LIMIT, "better": "lower"}
    figure(benchmark, f"{name}: one tick, C++", [s / TICKS * 1e6 for s in own], "µs", **goal)
    ratios = [p / s for p, s in zip(theirs["python"], own, strict=True)]
    figure(benchmark, f"{name}: C++ against the Python Engine", ratios, "x")


@pytest.mark.parametrize(("requests", "shape"), CASES, ids=map(name_of, CASES))
def bench_engine(benchmark, requests, shape):
    benchmark.group = "engine"
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(requests, *shape, generator=generator)
    outputs = [torch.randn(requests, *shape, generator=generator) for _ in range(4)]
    with torch.inference_mode():
        pairs = mixed(requests)
        check(mixed(requests), noise)
        with Operators() as operators:
            engine = in_flight(pairs, noise, outputs)
            operators.count = 0
            engine.tick()
        operators = operators.count

        def ours():
            engine = in_flight(pairs, noise, outputs)
            return lambda: [engine.tick() for _ in range(TICKS)]

        others = {"diffusers": peers, "runs": runs}
        others = {k: lambda make=make: make(pairs, noise, outputs) for k, make in others.items()}
        own, theirs = interleaved(benchmark, ours, others)
    benchmark.extra_info.update(requests=requests, operators_a_tick=operators)
    name = f"{requests} requests, {'×'.join(map(str, shape))}"
    many, small = requests == 64, shape == CASES[0][1]
    goal = {"target": LIMIT, "better": "lower"} if many and small else {}
    figure(benchmark, f"{name}: one tick", [s / TICKS * 1e6 for s in own], "µs", **goal)
    ratios = {k: [p / s for p, s in zip(v, own, strict=True)] for k, v in theirs.items()}
    goal = {"target": 20, "missed": CROWDED} if many else {}
    what = f"{name}: against as many deep-copied diffusers schedulers"
    figure(benchmark, what, ratios["diffusers"], "x", **goal)
    figure(benchmark, f"{name}: against as many Runs", ratios["runs"], "x")
