"""PNDM's steps by their own names, and a history that somebody wrote. Imports no diffusers."""

from __future__ import annotations

import copy

import numpy as np
from torch import Tensor

from .loop import Loop
from .loops import Loops
from .plan import number
from .pndm import WARM
from .runs import Runs

# what a scheduler has in its own name where the source has it
NAMED = ("step_prk", "step_plms", "prk_timesteps", "plms_timesteps")


class Named:
    """step_prk, step_plms and the timesteps of either, where the source has them (`Outside`)."""

    _loops: Loops
    _runs: Runs
    _settings: dict

    # -- inside ------------------------------------------------------------------------------------
    def _step_prk(self, model_output: Tensor, timestep, sample: Tensor, return_dict: bool = True):
        """`step` where the next one is part of a Runge-Kutta step, else a ValueError."""
        return self._by_name("step_prk", model_output, timestep, sample, return_dict)

    def _step_plms(self, model_output: Tensor, timestep, sample: Tensor, return_dict: bool = True):
        """`step` where the next one is a linear multistep one, else a ValueError."""
        return self._by_name("step_plms", model_output, timestep, sample, return_dict)

    @property
    def _prk_timesteps(self) -> np.ndarray | None:
        loop = self._loops.get()
        return None if loop is None else loop.timesteps[: self._warm].cpu().numpy()

    @property
    def _plms_timesteps(self) -> np.ndarray | None:
        loop = self._loops.get()
        return None if loop is None else loop.timesteps[self._warm :].cpu().numpy()

    @property
    def _warm(self) -> int:
        """How many evaluations the Runge-Kutta steps of a run make."""
        return 0 if self._settings["skip_prk_steps"] else WARM

    def _by_name(self, name: str, model_output: Tensor, timestep, sample: Tensor, return_dict):
        loop = self._owned().get(name)
        if isinstance(loop, Handed):
            loop.by = name
            return self.step(model_output, timestep, sample, return_dict=return_dict)
        run, over = loop._run, loop._run is None and loop.index is not None
        # the class counts the steps that were made, wherever they began
        at = (run.row - 1 if run else 0) if loop.compat else loop.index or loop.begin or 0
        due = "step_prk" if at < self._warm else "step_plms"
        if name != due and not over:  # after the last one step has a sentence
            raise ValueError(
                f"FsScheduler.{name}: the step at timestep {number(timestep):g} is not one of its "
                f"steps; {due}, or step, is accepted there"
            )
        return self.step(model_output, timestep, sample, return_dict=return_dict)

    def _put_outputs(self, outputs: object) -> bool:
        """Go on from these model outputs, the newest last, before a run's first step with compat;
        False for any other source, or later.
        """
        loop, peer = self._loops.get(), self._runs.peer
        fits = loop is not None and loop.compat and loop.index is None and hasattr(peer, "ets")
        fits = fits and isinstance(outputs, (list, tuple))
        fits = fits and all(isinstance(each, Tensor) for each in outputs)
        if fits:
            self._owned().set(Handed(loop, peer, self.num_inference_steps, outputs))
        return fits


class Handed(Loop):
    """A loop whose history somebody else wrote. What its steps then are no plan says (one of PNDM's
    with a history is no first one, whatever its timestep), so an object of the class makes them.
    """

    by = "step"  # the class's method that makes the next step

    def __init__(self, loop: Loop, peer: object, steps: int, outputs: object):
        self.__dict__.update(loop._twin().__dict__)
        self._peer = copy.copy(peer)
        self._peer.set_timesteps(steps, device=loop.timesteps.device)
        self._peer.ets = list(outputs)

    def step(self, model_output, timestep, sample, *others) -> tuple[Tensor, None]:
        """(next sample, None), by the class's method that is asked for."""
        with self._lock:
            step, self.by = getattr(self._peer, self.by), "step"
            ends = step(model_output, timestep, sample, return_dict=False)[0]
            self.index = self._peer.counter
        return ends, None

    def again(self) -> Loop:
        return super()._twin().again()

    def select(self, index: object) -> None:
        raise ValueError(
            "FsScheduler.select: ets were written to this run, which nothing selects from; a run "
            "of set_timesteps alone is accepted"
        )

    def __deepcopy__(self, memo: dict) -> Handed:
        twin = object.__new__(Handed)
        twin.__dict__.update(self._twin().__dict__)
        twin._peer = copy.deepcopy(self._peer)
        return twin
