"""PNDM's steps by their own names, and a history that somebody wrote. Imports no diffusers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from .loop import Loop
from .loops import Loops
from .plan import number
from .pndm import KUTTA, PLMS, STEP, WARM
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
        return 0 if self._settings.get("skip_prk_steps", True) else WARM

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
        loop = self._loops.get()
        fits = (
            loop is not None
            and loop.compat
            and loop.index is None
            and "skip_prk_steps" in self._settings
        )
        fits = fits and isinstance(outputs, (list, tuple))
        fits = fits and all(isinstance(each, Tensor) for each in outputs)
        if fits:
            stride = self._settings["num_train_timesteps"] // self.num_inference_steps
            words = loop, self._runs.leg, stride, self._warm, outputs
            self._owned().set(Handed(*words))
        return fits


class Handed(Loop):
    """A loop whose history somebody else wrote: PNDM's own count of steps, from any timestep. What
    each sums of the outputs goes through one row, from the timestep to the one the count says.

    leg(t, to): the loop of such a step. stride: of a linear multistep step. warm: how many
    Runge-Kutta's first steps ask. outputs: the history, the newest last.
    """

    by = "step"  # by what name the next step is asked for
    _start: Tensor | None = None  # where a Runge-Kutta step, or the step made twice, begins
    _sum: Tensor | float = 0.0

    def __init__(
        self,
        loop: Loop,
        leg: Callable[[float, float], Loop],
        stride: int,
        warm: int,
        outputs: Sequence[Tensor],
    ):
        self.__dict__.update(loop._twin().__dict__)
        self._leg, self._stride, self._warm, self._outputs = leg, stride, warm, [*outputs]

    def step(self, model_output, timestep, sample, *others) -> tuple[Tensor, None]:
        """(next sample, None), by the name that is asked for."""
        with self._lock:
            name, self.by, made = self.by, "step", self.index or 0
            if name == "step":
                name = "step_prk" if made < self._warm else "step_plms"
            form = self._kutta if name == "step_prk" else self._multistep
            self._check(name, made, (model_output, sample))
            t, to, x, e = form(made, model_output, number(timestep), sample)
            loop = self._leg(t, to).fresh(sample.device)
            loop.spares = self.spares
            ends, _ = loop.step(e.to(model_output.dtype), t, x, *others)
            self.index = made + 1
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
        twin.__dict__.update(self._twin().__dict__)  # nothing of it is ever written to
        return twin

    # -- inside ------------------------------------------------------------------------------------
    def _check(self, name: str, made: int, given: tuple) -> None:
        """ValueError where the class's count of steps leaves no such step, or a tensor does not fit
        the others.
        """
        shapes = [list(getattr(v, "shape", [type(v).__name__])) for v in (*given, *self._outputs)]
        if any(shape != shapes[0] for shape in shapes):
            raise ValueError(
                f"FsScheduler.{name}: model_output, sample and the ets before are {shapes}; "
                "tensors of one shape are accepted, nothing is broadcast"
            )
        kept, why = len(self._outputs), ""
        if name == "step_prk" and made >= self._warm:
            why = f"{made} steps were made, of which the first {self._warm} are Runge-Kutta's"
        elif name == "step_plms" and self._warm and kept < 3:
            why = f"the history has {kept} outputs, and three come before a multistep step here"
        if why:
            raise ValueError(f"FsScheduler.{name}: {why}; step is accepted there")

    def _kutta(self, made: int, f: Tensor, t: float, x: Tensor) -> tuple:
        """(t, to, x, e) of phi(x, t, to, e), see `pndm`, of a Runge-Kutta evaluation."""
        to, k = t - (0 if made % 2 else self._stride // 2), made % STEP
        if k == 0:
            self._outputs, self._start = [*self._outputs, f], x
        summed = self._sum + KUTTA[k] * f
        self._sum = summed if k < STEP - 1 else 0.0
        x = x if self._start is None else self._start
        return float(self._labels[made - k]), to, x, f if k < STEP - 1 else summed

    def _multistep(self, made: int, f: Tensor, t: float, x: Tensor) -> tuple:
        """The same of a linear multistep one."""
        to = t - self._stride
        if made == 1:
            to, t = t, t + self._stride
        else:
            self._outputs = [*self._outputs[-3:], f]
        seen = self._outputs[::-1][: len(PLMS)]
        if len(seen) == 1 and made == 0:
            self._start = x
        elif len(seen) == 1:
            return t, to, self._start, (f + seen[0]) / 2
        return t, to, x, sum(w * each for w, each in zip(PLMS[len(seen) - 1], seen, strict=True))
