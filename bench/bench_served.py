"""Requests of many plans through one model, from their noise to their end.

All at once: the Engine against the loop of servers that batch at mixed steps (one call of the model
for all, then one deep-copied diffusers scheduler a request, stepped one after the other), and
against as many Samplers one after the other.

At random times (Poisson, from a seed): the Engine, which takes requests in between steps, against
request-level batching, which runs up to as many that wait for the plan of the first of them as one
batch. The clock counts the seconds of the work and skips those in which nobody is there, so that
both see the same arrivals; latency is from arrival to end.

Two models: an elementwise one, which costs next to nothing, so that a batch of it gains nothing,
and the embedded U-Net, whose batch of eight costs two of one.
"""

import copy
from collections import deque
from time import perf_counter

import numpy as np
import pytest
import torch
from bench_engine import mixed, model
from measure import figure, interleaved

import fastsample as fs

MODELS = {"elementwise, 4×8×8": (model, (4, 8, 8)), "U-Net, 1×28×28": (None, (1, 28, 28))}
COUNTS = (4, 5, 6, 8)  # steps
REQUESTS, PAIRS = (1, 8, 64), 10
CAPACITY, ARRIVALS = 8, 24
LOADS = 0.5, 0.8  # of what the Engine gets done with CAPACITY requests in flight throughout


def setting(name):
    """-> (model, shape)"""
    asked, shape = MODELS[name]
    if asked is None:
        network = fs.models.fashion(fs.schedules.DiscreteVP.linear(), "eps")
        asked = lambda x, t: network(x, t, label=torch.full((len(x),), 3))
    return asked, shape


def engine(asked, shape, plans, noise):
    """-> work: all requests through an Engine, which is there."""
    whole = fs.Engine(asked, shape, len(plans), preview=False, check=None)

    def work():
        tickets = [whole.submit(p, noise=noise[k : k + 1]) for k, p in enumerate(plans)]
        whole.run()
        return torch.cat([ticket.result() for ticket in tickets])

    return work


def one_by_one(asked, plans, noise):
    samplers = {plan: fs.Sampler(plan, asked) for plan in plans}

    def work():
        results = [samplers[p](noise=noise[k : k + 1], check=None) for k, p in enumerate(plans)]
        return torch.cat(results)

    return work


def server(asked, schedulers, noise):
    """-> work: the loop of servers."""
    schedulers = copy.deepcopy(schedulers)
    times = [list(scheduler.timesteps) for scheduler in schedulers]
    for scheduler in schedulers:
        scheduler.set_begin_index(0)

    def work():
        states, n = list(noise.split(1)), 0
        while there := [k for k in range(len(times)) if n < len(times[k])]:
            t = torch.stack([times[k][n] for k in there]).float()
            f = asked(torch.cat([states[k] for k in there]), t).split(1)
            for k, own in zip(there, f, strict=True):
                step = schedulers[k].step(own, times[k][n], states[k], return_dict=False)
                states[k] = step[0]
            n += 1
        return torch.cat(states)

    return work


def agree(what, ours, theirs, most):
    apart = float((ours - theirs).abs().max() / theirs.abs().max())
    if not apart <= most:
        raise AssertionError(f"{what}: {apart:.1e} of its range apart; {most:g} is accepted")


@pytest.mark.parametrize("requests", REQUESTS)
@pytest.mark.parametrize("name", MODELS, ids=lambda name: name.partition(",")[0])
def bench_served(benchmark, name, requests):
    benchmark.group = "served"
    asked, shape = setting(name)
    noise = torch.randn(requests, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        plans, schedulers = zip(*mixed(requests, COUNTS), strict=True)
        ours = engine(asked, shape, plans, noise)
        others = {
            "server": lambda: server(asked, schedulers, noise),
            "alone": lambda: one_by_one(asked, plans[:few], noise),
        }
        result, few = ours(), min(requests, CAPACITY)
        # a network's rows depend on its batch; the peer rounds its times to whole numbers
        agree(f"{name}: the Engine and Samplers", result[:few], others["alone"]()(), 1e-3)
        agree(f"{name}: the Engine and the server", result, others["server"]()(), 5e-2)
        own, theirs = interleaved(benchmark, lambda: ours, others, PAIRS)
    case = f"{name}, {requests} at once"
    figure(benchmark, f"{case}: requests a second", [requests / s for s in own], "/s")
    theirs["alone"] = [s * requests / few for s in theirs["alone"]]  # they do not know of others
    for side, what in (("server", "against the loop of servers"), ("alone", "against Samplers")):
        ratios = [p / s for p, s in zip(theirs[side], own, strict=True)]
        figure(benchmark, f"{case}: {what}", ratios, "x")


# -- at random times -------------------------------------------------------------------------------
class Served:
    """Latencies of requests that come at these times, each of (plan, noise)."""

    def __init__(self, arrivals, requests):
        self.requests, self.left = requests, deque(enumerate(arrivals))
        self.arrivals, self.clock, self.waiting = arrivals, 0.0, []
        self.latencies = np.full(len(arrivals), np.nan)

    def come(self, idle):
        """Those that have come wait; while nobody is there, the clock stands at the next."""
        if idle and not self.waiting and self.left:
            self.clock = max(self.clock, self.left[0][1])
        while self.left and self.left[0][1] <= self.clock:
            self.waiting.append(self.left.popleft()[0])
        return not idle or self.waiting

    def end(self, numbers):
        for k in numbers:
            self.latencies[k] = self.clock - self.arrivals[k]


def step_level(asked, shape, served):
    """Requests join and leave between steps."""
    whole, numbers = fs.Engine(asked, shape, CAPACITY, preview=False, check=None), {}
    while served.come(not whole.running):
        begun = perf_counter()
        while served.waiting and len(whole.running) < CAPACITY:
            k = served.waiting.pop(0)
            plan, noise = served.requests[k]
            numbers[whole.submit(plan, noise=noise)] = k
        ended = {ticket: ticket.result() for ticket in whole.tick()}
        served.clock += perf_counter() - begun
        served.end(numbers.pop(ticket) for ticket in ended)


def request_level(asked, served):
    """The first that waits, and all with it that wait for its plan, as one batch to its end."""
    samplers = {plan: fs.Sampler(plan, asked) for plan, _ in served.requests}
    while served.come(True):
        plan = served.requests[served.waiting[0]][0]
        batch = [k for k in served.waiting if served.requests[k][0] is plan][:CAPACITY]
        served.waiting = [k for k in served.waiting if k not in batch]
        begun = perf_counter()
        samplers[plan](noise=torch.cat([served.requests[k][1] for k in batch]), check=None)
        served.clock += perf_counter() - begun
        served.end(batch)


def pace(asked, shape, requests):
    """Requests a second with CAPACITY of them in flight throughout."""
    full = Served(np.zeros(len(requests)), requests)
    step_level(asked, shape, full)
    return len(requests) / full.clock


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("plans", [1, 8])
def bench_arrivals(benchmark, plans, load):
    benchmark.group, name = "arrivals", "U-Net, 1×28×28"
    asked, shape = setting(name)
    made = [plan for plan, _ in mixed(8, COUNTS)][-plans:]
    noise = torch.randn(ARRIVALS, *shape, generator=torch.Generator().manual_seed(0)).split(1)
    requests = [(made[k % plans], z) for k, z in enumerate(noise)]
    with torch.inference_mode():
        rate = load * np.median([pace(asked, shape, requests) for _ in range(3)])
        kept = {"ours": [], "theirs": []}

        def work(side, serve):
            chance = np.random.default_rng(len(kept[side]))  # each pair has arrivals of its own
            arrivals, order = np.cumsum(chance.exponential(1 / rate, ARRIVALS)), chance.permutation
            served = Served(arrivals, [requests[k] for k in order(ARRIVALS)])
            kept[side].append(served)
            return lambda: serve(served)

        ours = lambda: work("ours", lambda served: step_level(asked, shape, served))
        theirs = lambda: work("theirs", lambda served: request_level(asked, served))
        interleaved(benchmark, ours, {"request level": theirs}, PAIRS)
    case = f"{name}, {plans} plan(s), load {load:g}"
    own, other = ([served.latencies for served in kept[side][2 : 2 + PAIRS]] for side in kept)
    if not all(np.isfinite(values).all() for values in own + other):
        raise AssertionError(f"{case}: a request has no end")
    for share in (50, 90):
        mine, theirs = ([np.percentile(v, share) * 1e3 for v in side] for side in (own, other))
        figure(benchmark, f"{case}: {share} % within", mine, "ms")
        ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
        figure(benchmark, f"{case}: {share} %, against request-level batching", ratios, "x")
