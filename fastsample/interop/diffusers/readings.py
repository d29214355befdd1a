"""What a pipeline reads of an FsScheduler: where its loop stands, the scale of its start, its
tables. Imports no diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...plan import Plan
from .consistency import NAME as CM
from .loops import Loops
from .plan import init_scale
from .pndm import repeats
from .runs import Runs
from .sources import find


class Readings:
    """The properties of a scheduler's contract, read from its config and from this thread's loop.

    _source: the diffusers class and _settings its arguments, or _given: the plan in their place;
    _scale: of the state (see `grids`).
    """

    config: Mapping
    _loops: Loops
    _runs: Runs
    _begin: int | None
    _source: type | None
    _settings: dict
    _given: Plan | None
    _scale: str

    @property
    def timesteps(self) -> Tensor:
        """What the model is told at every call; before set_timesteps the source's own: every
        training timestep.
        """
        loop, peer = self._loops.get(), self._runs.peer
        if loop is not None:
            return loop.timesteps
        own = getattr(peer, "timesteps", None)
        if own is not None:
            return own.clone()
        return torch.arange(self.config.num_train_timesteps - 1, -1, -1)

    @property
    def sigmas(self) -> Tensor:
        """[calls + 1] float32: sigma/alpha at every call and at the end; sigma itself on flow
        scale, or 1 - sigma with invert_sigmas. Before set_timesteps the source's own, where it has
        any.
        """
        loop = self._loops.get()
        if loop is None:
            own = self._as_source("sigmas").sigmas
            return own if own is None else own.clone()
        if loop.sigmas is None:
            own = loop.own_sigmas
            if own is None:
                sigma, alpha = (torch.from_numpy(v) for v in (loop.sigma, loop.alpha))
                sigma = alpha if self._settings.get("invert_sigmas") else sigma
                own = (sigma if self._scale == "flow" else sigma / alpha).float()
            loop.told(sigmas=own.clone())
        return loop.sigmas

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """What unit noise is multiplied by: plan.init_scale; 1 on flow scale, where the first step
        does it. compat, and before set_timesteps: diffusers' rules. A 0-d tensor where the source's
        is one.
        """
        plan = getattr(self._loops.get(), "plan", self._given)
        if self._given is not None:
            return 1.0 if self._scale == "flow" or plan is None else init_scale(plan)
        if self.config.get("source") == CM:  # a number, of its own end
            exact = self._loops.get() is not None and self._exact
            return init_scale(plan) if exact else self._settings["sigma_max"]
        if self._scale == "trig":  # SCM's pipelines multiply by sigma_data themselves
            return 1.0
        if self._loops.get() is not None and self._exact and self._scale != "flow":
            scale = init_scale(plan)
            return torch.tensor(scale, dtype=torch.float64) if self._scale == "sigma" else scale
        if self._scale != "sigma":
            return 1.0
        if "sigma_schedule" in self._settings:  # EDM's, of its own ends
            return (self._settings["sigma_max"] ** 2 + 1) ** 0.5
        top = self.sigmas.max()
        return (top**2 + 1) ** 0.5 if self._settings["timestep_spacing"] == "leading" else top

    @property
    def compatibles(self) -> list[type]:
        """The classes that read this config in the same sense: the source's own."""
        return super().compatibles if self._source is None else self._source._get_compatibles()

    @property
    def order(self) -> int:
        """Model calls a step (the pipelines' word): 2 for Heun and KDPM2, whose 2n - 1 calls of a
        run count from the first as if that were a step of one.
        """
        return 1 if self._source is None else find(self._source.__name__).calls

    @property
    def num_inference_steps(self) -> int | None:
        loop = self._loops.get()
        if loop is None:
            return getattr(self._runs.peer, "num_inference_steps", None)
        steps = loop.steps
        skip = self._settings.get("skip_prk_steps")  # PNDM's, which comes back to its first points
        return steps if skip is None or steps is None else steps - repeats(skip, steps)

    @property
    def step_index(self) -> int | None:
        """Index of the step that runs next; None before the first."""
        return getattr(self._loops.get(), "index", None)

    @property
    def begin_index(self) -> int | None:
        return getattr(self._loops.get(), "begin", self._begin)

    @property
    def plan(self) -> Plan | None:
        """The plan of this thread's loop, from its first timestep on; before set_timesteps the one
        that was given, or None. AttributeError where no run can begin at the first timestep.
        """
        loop = self._loops.get()
        try:
            return self._given if loop is None else loop.begun(0, 0.0)
        except ValueError as error:
            raise AttributeError(str(error)) from None

    @property
    def _exact(self) -> bool:
        """Does this thread's run begin as plans do, not as the source?"""
        return not getattr(self._loops.get(), "compat", self.config.compat)
