"""What a pipeline reads of an FsScheduler: where its loop stands, the scale of its start, its
tables. Imports no diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ...plan import Plan
from .grids import noise_schedule
from .loops import Loops
from .plan import init_scale


class Readings:
    """The properties of a scheduler's contract, read from its config and from this thread's loop.

    _source: the diffusers class and _settings its arguments, or _given: the plan in their place;
    _scale: of the state (see `grids`).
    """

    config: Mapping
    _loops: Loops
    _source: type | None
    _settings: dict
    _given: Plan | None
    _scale: str

    @property
    def timesteps(self) -> Tensor:
        """What the model is told at every call; before set_timesteps, every training timestep."""
        loop = self._loops.get()
        if loop is not None:
            return loop.timesteps
        return torch.arange(self.config.num_train_timesteps - 1, -1, -1)

    @property
    def sigmas(self) -> Tensor:
        """[calls + 1] float32: sigma/alpha at every call and at the end; sigma itself on flow
        scale, or 1 - sigma with invert_sigmas.
        """
        loop = self._loops.get("sigmas")
        sigma, alpha = (torch.tensor(v, dtype=torch.float64) for v in (loop.sigma, loop.alpha))
        sigma = alpha if self._settings.get("invert_sigmas") else sigma
        return (sigma if self._scale == "flow" else sigma / alpha).float()

    @property
    def init_noise_sigma(self) -> float:
        """What unit noise is multiplied by: plan.init_scale; 1 on flow scale, where the first step
        does it. compat: diffusers' rules.
        """
        plan = self.plan
        if plan is None or self._scale == "flow" or (not self._exact and self._scale != "sigma"):
            return 1.0
        if self._exact:
            return init_scale(plan)
        return math.hypot(plan.sigma[1], self._settings["timestep_spacing"] == "leading")

    @property
    def alphas_cumprod(self) -> Tensor:
        """The noise schedule's table, float32; a flow, or a plan, has none."""
        if self._given is not None or self._scale == "flow":
            raise AttributeError("alphas_cumprod")
        return torch.tensor(noise_schedule(self.config).alphas_cumprod, dtype=torch.float32)

    @property
    def order(self) -> int:
        """Model calls a step (the pipelines' word): 2 for Heun, whose first step of 2n - 1 calls
        has one.
        """
        return 2 if self._given is None and self.config.source == "HeunDiscreteScheduler" else 1

    @property
    def num_inference_steps(self) -> int | None:
        steps = getattr(self._loops.get(), "steps", None)
        plms = self._source is not None and self._source.__name__ == "PNDMScheduler"
        return steps - 1 if plms and steps is not None and steps > 1 else steps

    @property
    def step_index(self) -> int | None:
        """Index of the step that runs next; None before the first."""
        return getattr(self._loops.get(), "index", None)

    @property
    def begin_index(self) -> int | None:
        return getattr(self._loops.get(), "begin", None)

    @property
    def plan(self) -> Plan | None:
        """The plan of this thread's loop, from its first timestep on; before set_timesteps the one
        that was given, or None.
        """
        return getattr(self._loops.get(), "plan", self._given)

    @property
    def _exact(self) -> bool:
        """Does this thread's run begin as plans do, not as the source?"""
        return not getattr(self._loops.get(), "compat", self.config.compat)
