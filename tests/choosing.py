"""Runs whose samples are chosen among: plans, a model that sees each sample by itself, loops."""

import torch

from fastsample import grids, schedules
from fastsample.model import Model
from fastsample.solvers import SOLVERS

FLOW = Model(None, schedules.Flow(shift=3.0), prediction="flow", time=1000)
EDM = Model(None, schedules.EDM(), prediction="edm")


def unit(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plan_of(name, n=6, model=EDM, **options):
    grid = grids.karras(model.schedule, n) if model is EDM else grids.uniform(model.schedule, n)
    options = ({"ddim": {"eta": 0.7}, "heun": {"s_churn": 3.0}}.get(name, {})) | options
    return SOLVERS[name](model, grid, **options)


def net(x, t, **cond):
    """Each sample by itself: any batch gives each the same bits."""
    each = t.view(-1, *[1] * (x.dim() - 1)) * 0.001
    return x * 0.3 + (x * 0.05).tanh() * (each + sum(cond.values(), 0.0))


def finish(run, ask=net, at=None, index=None, **words):
    """The end of the run; with samples chosen as row `at` begins."""
    while not run.done:
        if run.row == at:
            run.select(index, **words)
        run.step(ask(run.model_input, run.t))
    return run


def inpainting(**words):
    plan = plan_of("ddim", model=FLOW, inpaint=True)
    mask = (unit(4, 3, 8, seed=1) > 0).float()
    return plan, {"mask": mask, "known": unit(4, 3, 8, seed=2), **words}
