"""Loop: one sampling loop of an FsScheduler, a Run that is handed the sample at every step and
hands it back. Loops: one for every thread.

The state x is float32 (float64 for a float64 sample) whatever the sample's dtype. A pipeline that
hands back the very tensor it was given, unwritten, goes on from that state and not from its
half-precision copy; any other tensor becomes the new state. History is kept then: a multistep
solver goes on with its earlier predictions, and where a method comes back to an earlier x (Heun's
base, UniPC's corrected x), that x is a combination of the state and the predictions, so an edit of
the sample moves it by a matching amount. (diffusers keeps such an x in the scheduler instead, and
an edit is lost there.)
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...kernels import transforms
from ...plan import Plan
from ...runtime.run import Run
from ..draws import Draws
from .plan import init_scale

ROUNDING = 1e-6  # relative: a timestep went through float32


class Loop:
    """One run through a plan, or through the plan from a later grid point on.

    plan: from the first point; compile(point, eta): from another, or with DDIM's eta. whole: int64
    timesteps, else float32. calls_per_point: 2 for Heun, whose first point has 1. compat: the
    points are diffusers' own. unit: the pipeline begins with unit noise, and without compat
    init_scale is for the first step to multiply it by (flow pipelines know no init_noise_sigma).
    timesteps [calls]; alpha, sigma [calls + 1] of x at every call and at the end. draws(label,
    eta): a step that draws even where its row has no noise.

    A first sample was made by add_noise where this loop took anything to its first level before its
    first step: pipelines pack, cast and cut what add_noise gave them, so the tensor itself cannot
    say.
    """

    def __init__(
        self,
        plan: Plan,
        compile: Callable[[int, float], Plan],
        whole: bool,
        *,
        calls_per_point: int = 1,
        device=None,
        preview: bool = True,
        compat: bool = False,
        unit: bool = False,
        draws: Callable[[float, float], bool] | None = None,
    ):
        self.compat, self.plan, self._compile = compat, plan, compile
        self._per_point, self._preview, self._draws_at = calls_per_point, preview, draws
        rows = np.flatnonzero(plan.call >= 0)
        self._labels = plan.t[rows - 1, 0]
        kind = torch.int64 if whole else torch.float32
        self.timesteps = torch.tensor(self._labels, dtype=kind, device=device)
        self.alpha = np.append(plan.alpha[rows], plan.alpha[-1])
        self.sigma = np.append(plan.sigma[rows], plan.sigma[-1])
        self._scales = plan.c[rows - 1]
        self._factor = init_scale(plan) if unit and not compat and plan.sigma[0] else 1.0
        self._noised = False
        self.steps = (len(self) + calls_per_point - 1) // calls_per_point
        self.begin: int | None = None
        self.index: int | None = None
        self._run: Run | None = None
        self._eta, self._draws, self._returned, self._version = 0.0, None, None, 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._labels)

    def __deepcopy__(self, memo: dict) -> Loop:
        """A loop of its own from here on: the run's state copied, plan and tables shared."""
        twin = object.__new__(Loop)
        with self._lock:
            twin.__dict__.update(self.__dict__)
            twin._run, twin._lock = copy.deepcopy(self._run), threading.Lock()
            twin._draws = None if self._draws is None else self._draws.copy()
        return twin

    def find(self, timestep: int | float | Tensor | None) -> int:
        """Index of the step that comes next: the running one, else the begin index the pipeline
        set, else that of the timestep.
        """
        if self.index is not None or self.begin is not None:
            return self.begin if self.index is None else self.index
        at = 0 if timestep is None else self.where(timestep)
        if at is None:
            raise ValueError(
                f"FsScheduler: timestep {_number(timestep):g} is not in the schedule; "
                f"scheduler.timesteps are accepted: {self._words()}"
            )
        return at

    def factor(self, at: int) -> float:
        """What a sample that comes to step `at` is multiplied by: init_scale where a run begins
        with a pipeline's unit noise, else 1.
        """
        return self._factor if at == 0 and not self._noised else 1.0

    def input_scale(self, timestep: int | float | Tensor | None) -> float:
        """What the sample that comes to the timestep is multiplied by for the model."""
        at = min(self.find(timestep), len(self) - 1)
        return float(self._scales[at]) * self.factor(at)

    def levels(self, timesteps: Tensor, by_index: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """(alpha, sigma) [n] that add_noise takes a sample to: by_index, where a begin index was
        set, at it or the running step, else at the timesteps; None if one of them is not of this
        loop.
        """
        if by_index and self.begin is not None:
            at = [self.find(None)] * timesteps.numel()
        else:
            at = [self.where(t) for t in timesteps.flatten().cpu()]
        if None in at:
            return None
        self._noised = self._noised or (self.index is None and 0 in at)
        return self.alpha[at], self.sigma[at]

    def step(
        self, model_output: Tensor, timestep, sample: Tensor, eta: float, draw: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """(next sample, predicted data or None), in the sample's dtype; draw() gives one noise
        tensor.
        """
        # inference tensors do not count writes
        with self._lock, torch.inference_mode(False), torch.no_grad():
            self._check(model_output, timestep, sample)
            if self._run is None:
                self._start(model_output, timestep, sample, eta)
            elif eta != self._eta:
                raise ValueError(
                    f"FsScheduler.step: eta = {eta} after {self._eta}; one value for the whole run "
                    "is accepted"
                )
            elif not self._is_ours(sample):
                self._run.x = self._begun(sample, self.index)
            _drawing.draw, _drawing.drawn = lambda name: self._draws(name, draw), False
            try:
                self._run.step(model_output)
            finally:
                _drawing.draw = None
            owed = self._draws_at is not None and not _drawing.drawn
            if owed and self._draws_at(self._labels[self.index], eta):
                # and leaves the generator where the source does, for whatever is drawn from it next
                draw()
            self.index += 1
            # elsewhere reading the status waits for the device
            if self._run.done or sample.device.type == "cpu":
                self._refuse_non_finite()
            return self._hand_back(sample.dtype)

    # -- inside ------------------------------------------------------------------------------------
    def _start(self, model_output: Tensor, timestep, sample: Tensor, eta: float) -> None:
        at = self.find(timestep)
        point = (at + self._per_point - 1) // self._per_point
        plan = self.plan if not point and eta == 0.0 else self._compile(point, eta)
        run = Run(
            _unscaled(plan),
            latent=self._begun(sample, at),
            start=1,
            state_dtype=torch.float64 if sample.dtype == torch.float64 else torch.float32,
            model_dtype=model_output.dtype,
            noise_source=_drawn,
            preview=self._preview,
        )
        self._run, self._eta, self._draws, self.index = run, eta, Draws(plan), at

    def _begun(self, sample: Tensor, at: int) -> Tensor:
        """The sample that comes to step `at` as the state there, not rounded to half precision
        again.
        """
        factor = self.factor(at)
        if factor == 1.0:
            return sample
        return factor * (sample if sample.dtype == torch.float64 else sample.float())

    def _check(self, model_output: Tensor, timestep, sample: Tensor) -> None:
        """What must fit before a kernel runs. A timestep on another device is trusted where reading
        it would wait for that device.
        """
        for name, value in (("model_output", model_output), ("sample", sample)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                what = f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"FsScheduler.step: {name} is {what}; a floating torch tensor [B, *] is "
                    "accepted"
                )
            if value.requires_grad:
                raise RuntimeError(
                    f"FsScheduler.step: {name} requires grad and a step keeps none; detach it, or "
                    "use torch.no_grad()"
                )
        if model_output.shape != sample.shape or model_output.device != sample.device:
            got, want = (f"{list(v.shape)} on {v.device}" for v in (model_output, sample))
            raise ValueError(
                f"FsScheduler.step: model_output is {got} for a sample of {want}; only that is "
                "accepted, nothing is broadcast"
            )
        transforms.refuse("FsScheduler.step", model_output, sample)
        expected = self.find(timestep)
        if not 0 <= expected < len(self):
            raise IndexError(
                f"FsScheduler.step: step {expected} of {len(self)} timesteps; set_timesteps starts "
                "again, a begin index inside is accepted"
            )
        if self._run is not None and sample.shape != self._run.x.shape:
            raise ValueError(
                f"FsScheduler.step: sample is {list(sample.shape)} after "
                f"{list(self._run.x.shape)}; one shape for the whole run is accepted"
            )
        if self.where(timestep, expected) != expected:
            raise ValueError(
                f"FsScheduler.step: timestep {_number(timestep):g} is out of order; "
                f"{self._labels[expected]:g} is next, of {self._words()}"
            )

    def where(self, timestep: int | float | Tensor, expected: int | None = None) -> int | None:
        """Index of a timestep, or None. A view of our own tensor says where it stands without being
        read.
        """
        if isinstance(timestep, Tensor):
            if timestep.numel() != 1:
                raise ValueError(
                    f"FsScheduler: timestep has shape {list(timestep.shape)}; one timestep for the "
                    "whole batch is accepted"
                )
            if timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
                return timestep.storage_offset() - self.timesteps.storage_offset()
            if expected is not None and timestep.device.type != "cpu":
                return expected
        value = _number(timestep)
        same = np.abs(self._labels - value) <= ROUNDING * np.maximum(1.0, np.abs(self._labels))
        if expected is not None and expected < len(same) and same[expected]:
            return expected
        found = np.flatnonzero(same)
        if not len(found):
            return None
        # Heun's second of two equal timesteps starts a step
        return int(found[-1 if self._per_point == 2 else 0])

    def _is_ours(self, sample: Tensor) -> bool:
        """Is this the tensor that the last step returned, unwritten since?"""
        ours = self._returned is not None and self._returned() is sample
        return ours and sample._version == self._version

    def _hand_back(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        x = self._run.x.to(dtype, copy=True)
        x0 = self._run.x0.to(dtype, copy=True) if self._preview else None
        self._returned, self._version = weakref.ref(x), x._version
        return x, x0

    def _refuse_non_finite(self) -> None:
        bad = self._run.status().nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"FsScheduler.step: the state of sample {', '.join(map(str, bad[:8]))} is no "
                f"longer finite after timestep {self._labels[self.index - 1]:g}; finite model "
                "outputs are needed"
            )

    def _words(self) -> str:
        shown = [f"{t:g}" for t in self._labels]
        return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "..", *shown[-2:]])


class Loops:
    """Which loop belongs to the thread that asks: its own, or the only one there is."""

    def __init__(self) -> None:
        self._local, self._all, self._lock = threading.local(), weakref.WeakSet(), threading.Lock()

    def __deepcopy__(self, memo: dict) -> Loops:
        """With a copy of this thread's loop, where it stands."""
        twin, loop = Loops(), self.get()
        if loop is not None:
            twin.set(copy.deepcopy(loop, memo))
        return twin

    def __reduce__(self) -> tuple:
        """Loops stay in their process."""
        return Loops, ()

    def set(self, loop: Loop) -> None:
        self._local.loop = loop
        with self._lock:
            self._all.add(loop)

    def get(self, what: str | None = None) -> Loop | None:
        """The loop; where there is none, None, or a ValueError that says `what` needs one."""
        # levels and scales are looked up by number, which a trace would keep for every later input
        if torch.jit.is_tracing():
            transforms.refuse("FsScheduler" if what is None else f"FsScheduler.{what}")
        loop = getattr(self._local, "loop", None)
        if loop is not None:
            return loop
        with self._lock:
            loops = list(self._all)
        if len(loops) > 1:
            raise ValueError(
                f"FsScheduler: {len(loops)} other threads have a loop and this one has none; call "
                "set_timesteps in the thread that steps"
            )
        if not loops and what is not None:
            raise ValueError(
                f"FsScheduler.{what}: there are no timesteps yet; call set_timesteps first"
            )
        return loops[0] if loops else None


@lru_cache(maxsize=32)
def _unscaled(plan: Plan) -> Plan:
    """The plan without input scales: a pipeline scales its own model input, so the run need not
    write one.
    """
    return plan if (plan.c == 1.0).all() else replace(plan, c=np.ones_like(plan.c))


_drawing = threading.local()


def _drawn(row: int, name: int) -> Tensor:
    """A Run's noise source: what the step now running in this thread draws. It holds no state, so
    copies of a run do not share one.
    """
    _drawing.drawn = True
    return _drawing.draw(name)


def _number(timestep: int | float | Tensor) -> float:
    try:
        return float(timestep)
    except (TypeError, ValueError):
        raise TypeError(
            f"FsScheduler: timestep is a {type(timestep).__name__}; one of scheduler.timesteps is "
            "accepted"
        ) from None
