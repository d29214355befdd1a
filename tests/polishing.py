"""What the tests of polishing share: plans of every solver on analytic models, and their runs and
slopes written out.
"""

import math

import numpy as np
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.kernels import normal
from fastsample.model import to_kind
from fastsample.models import analytic
from fastsample.optimize import _numbers
from fastsample.optimize._newton import Options, Polisher

SCHEDULES = {"edm": fs.schedules.EDM(), "flow": fs.schedules.Flow(3)}
SCHEDULES["vp"] = fs.schedules.DiscreteVP.linear()
KINDS = [("edm", "edm"), ("flow", "flow"), ("edm", "x0"), ("vp", "eps")]
WORDS = {"guidance": None, "batch_size": 256, "model_dtype": None}


def subject(schedule="edm", prediction="x0", D=4):
    draw = np.random.default_rng(0)
    law = analytic.GaussianMixture(draw.standard_normal((3, D)), np.ones(3) / 3, 0.3)
    return law.model(SCHEDULES[schedule], prediction)


def noise(B, D=4, seed=0):
    seeds = torch.arange(B) + seed
    return normal(seeds, torch.zeros_like(seeds), D).double()


def solved(name, model, n=4, low=5.0):
    """A plan of the solver from sigma/alpha = 5 down, or None where it draws noise."""
    level = np.linspace(-math.log(low), math.log(20.0), n)
    grid = np.append(model.schedule.time(level), model.schedule.t_zero)
    plan = fs.solvers.SOLVERS[name](model, grid)
    return None if plan.L else plan


DETERMINISTIC = [
    name
    for name, maker in fs.solvers.SOLVERS.items()
    if getattr(maker, "usual", True) and solved(name, subject()) is not None
]


def options(**changed):
    given = {"loss": "log", "iterations": 3, "batch": 8, "held": 4, "memory": 0.8, "jvp": False}
    return Options(**{**given, "seed": 0, **changed})


def polisher(plan, model, z, target, *, words=WORDS, state=None, **changed):
    own = {"wide": torch.float64, "state": state}
    own |= {name: changed.pop(name) for name in ("weight", "path") if name in changed}
    return Polisher(model, plan, z, target.flatten(1), words, options(**changed), **own)


def target_of(model, z, **words):
    fine = fs.solvers.dpmpp_3m(model, fs.grids.fine(model.schedule, 40))
    return metrics.run(fine, model, z, **words)


def moved(plan, model, number, h):
    """The plan with one number moved, written out."""
    M, label = plan.M.copy(), {}
    i = number.row
    if number.kind == "scale":
        M[0, 0, 0] *= math.exp(h)
    elif number.kind == "weight":
        M[i, 0, number.column] += h
    else:
        schedule = model.schedule
        t = float(schedule.time(math.log(plan.alpha[i] / plan.sigma[i]) + h))
        a, s = float(schedule.alpha(t)), float(schedule.sigma(t))
        label = {name: getattr(plan, name).copy() for name in ("p", "q", "alpha", "sigma")}
        label |= {name: getattr(plan, name).copy() for name in ("c", "t")}
        label["alpha"][i], label["sigma"][i] = a, s
        label["p"][i], label["q"][i] = to_kind(plan.stored, model.prediction, a, s, 0.5)
        label["c"][i - 1], label["t"][i - 1] = model.scales([t])[0], model.times([t])[0]
    return plan.with_numbers(M=M, **label)


def run(plan, model, z, **words):
    return fs.Sampler(plan, model, state_dtype=torch.float64)(noise=z, **words)


def slopes(plan, model, z, **words):
    """d end / d number [P,B,D] by central differences, a run for each."""
    out = []
    for number in _numbers.Numbers(plan, model).all:
        h = 1e-6 * (max(1.0, abs(plan.M[number.row, 0, number.column])))
        two = [run(moved(plan, model, number, way * h), model, z, **words) for way in (1, -1)]
        out.append((two[0] - two[1]) / (2 * h))
    return torch.stack(out).flatten(2)
