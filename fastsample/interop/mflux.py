"""Plans and solvers as mflux's schedulers, which it loads by name (written for its 0.24.0).

    FASTSAMPLE_PLAN=mine.fsplan mflux-generate --scheduler fastsample.interop.mflux.Plan --steps 5
    mflux-generate --scheduler fastsample.interop.mflux.dpmpp_2m --steps 8

`Plan` runs the plan file that the environment names. The solvers that `fastsample show solvers` has
for comparisons are classes here under their own names: they stand on the noise levels of mflux's
"linear" scheduler, with the model's shift. mflux asks a model once a step and tells it the level:

    x = (1 - sigma)·x0 + sigma·eps        noise = v(x, sigma) = eps - x0
"""

from __future__ import annotations

import importlib
import os

import numpy as np
import torch
from torch import Tensor

from .. import plan as plans
from ..model import Model
from ..plan.given import integer
from ..runtime import arguments
from ..runtime.run import Run
from ..schedules import Flow
from ..solvers import SOLVERS
from .velocity import refuse

try:  # the class that mflux asks its schedulers to inherit from; it imports MLX
    from mflux.models.common.schedulers.base_scheduler import BaseScheduler
except ImportError:
    BaseScheduler = object

VARIABLE = "FASTSAMPLE_PLAN"


class Scheduler(BaseScheduler):
    """A plan in mflux's loop. One of your own: a subclass, in a module that mflux can import, whose
    `made(config)` returns it.

    sigmas: levels of each evaluation and of the end, [n+1].  timesteps: 1000 times the n.
    The state is kept in float32 from step to step, whatever the latents' dtype, and what the loop
    changed in between is taken. Raises ValueError, one sentence, for a plan of another number of
    steps, and for one that draws noise: mflux gives a scheduler no seed; FloatingPointError in the
    end for latents that are not finite.
    """

    def __init__(self, config) -> None:
        self._array = importlib.import_module("mlx.core").array
        self._own = self.made(config)
        refuse(type(self).__name__, self._own, tells=False)  # mflux tells a model the level
        self._steps = _fitting(type(self).__name__, self._own, config.num_inference_steps)
        at = np.append(np.flatnonzero(self._own.call >= 0), -1)  # rows that ask, and the end
        alpha, sigma = self._own.alpha[at], self._own.sigma[at]
        self._levels = (sigma / (alpha + sigma)).astype(np.float32)
        self._run, self._next, self._given = None, None, None

    def made(self, config) -> plans.Plan:
        """The plan of a call."""
        raise NotImplementedError(f"{type(self).__name__}.made(config) -> Plan is yours to write")

    @property
    def sigmas(self):
        return self._array(self._levels)

    @property
    def timesteps(self):
        return self._array(1000.0 * self._levels[:-1])

    def scale_model_input(self, latents, t: int):
        """The latents; noise with the amplitude that the plan's search found, before the first
        step.
        """
        if t == 0 and self._own.init_scale != 1.0 and latents is not self._given:
            latents = self._given = latents * self._own.init_scale
        return latents

    def step(self, noise, timestep: int, latents, **kwargs):
        """The latents after a step, of their dtype, from the model's answer at step `timestep`."""
        first = self._run is None or (timestep != self._next and timestep == self._first)
        if first:
            self._begin(timestep, latents)
        elif timestep != self._next:
            raise ValueError(
                f"{type(self).__name__}.step: step {timestep} after step {self._next - 1}; every "
                "step in its turn, or the first again, is accepted"
            )
        elif latents is not self._given:
            self._run.x = _torch(latents)
        self._run.step(_torch(noise))
        if self._run.done:
            self._run.check(f"{type(self).__name__}.step")
        self._next = timestep + 1
        self._given = self._array(self._run.x.numpy()).astype(latents.dtype)
        return self._given

    def _begin(self, step: int, latents) -> None:
        """A run from this step on: from noise, or from an image that was noised to its level."""
        name, plan = type(self).__name__, self._own
        if step == 0 and plan.init_scale != 1.0 and latents is not self._given:
            raise ValueError(
                f"{name}.step: the plan multiplies noise by {plan.init_scale:.6g}, and the loop of "
                "this model does not call scale_model_input; a plan of init_scale 1 is accepted"
            )
        if step > 0:
            plan = plan.remake(start=step)
            _fitting(name, plan, self._steps - step)
        with arguments.named(f"{name}.step", latent="latents"):
            self._run = Run(plan, latent=_torch(latents), start=1, preview=False)
        self._first = step


class Plan(Scheduler):
    """The plan file that the environment variable FASTSAMPLE_PLAN names."""

    def made(self, config) -> plans.Plan:
        path = os.environ.get(VARIABLE)
        if not path:
            raise ValueError(f"Plan: {VARIABLE} is not set; the path of an .fsplan is accepted")
        try:
            return plans.Plan.load(path)
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ValueError(
                f"Plan: {VARIABLE} is {path!r:.200} ({why}); the path of an .fsplan is accepted"
            ) from None


class Solver(Scheduler):
    """A solver on mflux's own noise levels."""

    def made(self, config) -> plans.Plan:
        linear = importlib.import_module("mflux.models.common.schedulers").LinearScheduler
        levels = np.array(linear(config).sigmas, np.float64)
        model = Model(None, schedule=Flow(), prediction="flow", time=1000)
        return SOLVERS[type(self).__name__](model, levels)


def _fitting(name: str, plan: plans.Plan, steps: object) -> int:
    """The number of steps, which the plan has."""
    if arguments.drawn_from(plan, 1, masked=False):
        raise ValueError(
            f"{name}: the plan draws noise, and mflux gives a scheduler no seed; a plan of a "
            "deterministic solver is accepted"
        )
    if plan.nfe != integer(steps):
        raise ValueError(
            f"{name}: the plan asks the model {plan.nfe} times in {steps} steps, and mflux once a "
            f"step; --steps {plan.nfe} for a plan, or a solver of one evaluation, is accepted"
        )
    return plan.nfe


def _torch(value) -> Tensor:
    """Numbers of MLX, in float32."""
    mlx = importlib.import_module(type(value).__module__)
    return torch.from_numpy(np.array(value.astype(mlx.float32)))


_solvers = {
    name: type(name, (Solver,), {"__module__": __name__, "__doc__": Solver.__doc__})
    for name, solver in SOLVERS.items()
    if getattr(solver, "usual", True)  # one that was registered says nothing of it
}
globals().update(_solvers)
__all__ = ["Plan", "Scheduler"]
