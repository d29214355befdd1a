"""Two tensors that one model denoises: plans, models whose flows are known, loops by hand."""

import torch
from cases import same
from choosing import unit

import fastsample as fs
from fastsample import grids, schedules, solvers
from fastsample.model import Model

SHIFTS = {"video": 12.0, "audio": 3.0}
SIZES = {"video": (2, 3, 4, 5), "audio": (2, 7)}
DATA = {"video": (0.5, 0.2), "audio": (-1.0, 0.6)}  # mean and deviation


def plan_of(name, solver="unipc", n=8, **words):
    model = Model(None, schedules.Flow(shift=SHIFTS[name]), prediction="flow", time=1)
    return solvers.SOLVERS[solver](model, grids.uniform(model.schedule, n), **words)


def plans(**words):
    return {name: plan_of(name, **words) for name in SHIFTS}


def noises(dtype=torch.float32):
    return {k: unit(*size, seed=len(size), dtype=dtype) for k, size in SIZES.items()}


def apart(x, t):
    """Each track by itself: the exact velocity of its data, N(mean, std²), on its flow."""
    return {name: velocity(name, x[name], t[name]) for name in x}


def velocity(name, x, t):
    mean, std = DATA[name]
    t = t.view(-1, *[1] * (x.dim() - 1))
    spread = (1 - t) ** 2 * std**2 + t**2
    # E[eps - x0 | x] of a normal: both are linear in x's distance from its mean
    return (t - (1 - t) * std**2) / spread * (x - (1 - t) * mean) - mean


def coupled(x, t, gain=None):
    """The mean of either track moves the other."""
    f, hear = apart(x, t), {"video": "audio", "audio": "video"}
    level = {k: v.flatten(1).mean(1) * (1 if gain is None else gain) for k, v in x.items()}
    return {k: v + level[hear[k]].view(-1, *[1] * (v.dim() - 1)) for k, v in f.items()}


def by_hand(given, model, start, **words):
    """The loop, on Runs of our own."""
    runs = {k: fs.Run(plan, noise=start[k], **words) for k, plan in given.items()}
    while not all(run.done for run in runs.values()):
        f = model({k: r.model_input for k, r in runs.items()}, {k: r.t for k, r in runs.items()})
        for name, run in runs.items():
            run.step(f[name])
    return {k: run.x for k, run in runs.items()}


def alike(one, other):
    return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
