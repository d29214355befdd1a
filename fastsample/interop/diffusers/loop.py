"""Loop: one sampling loop of an FsScheduler, a Run that is handed the sample at every step and
hands it back.

A float32 (float64) sample is the state itself: it is read where it lies, and the next one written
to memory of its own, so an edited or replaced sample needs no noticing. A half-precision sample has
a state in float32 beside it: a pipeline that hands back the very tensor it was given, unwritten,
goes on from that state and not from its half-precision copy; any other tensor becomes the new
state. History is kept then: a multistep solver goes on with its earlier predictions, and where a
method comes back to an earlier x (Heun's base, UniPC's corrected x), that x is a combination of the
state and the predictions, so an edit of the sample moves it by a matching amount; with compat as in
diffusers (`edits`).
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...kernels.backend import STATES
from ...kernels.transforms import refuse, watched
from ...plan import Plan
from ...runtime import arguments
from ...runtime.pool import placed
from ...runtime.run import Run
from ...runtime.select import chosen
from ...runtime.spares import Spares
from ..draws import Draws, drawn_now, now
from .edits import anchored, aside, counted, selected
from .gradients import Traced
from .lookup import Lookup
from .manners import PLAIN, Manner
from .moments import Moments, terms
from .plan import bare, number
from .step_options import Told, another


class Loop(Lookup):
    """One run through a plan, or through the plan from a later grid point on.

    plan: from the first point; compile(point, eta): from another, or with what steps are told
    (`step_options`). whole: int64 timesteps, else float32. calls_per_point: 2 for Heun, whose first
    point has 1.
    compat: the points are diffusers' own; sigmas: as it says them. unit: the pipeline begins with
    unit noise, and without compat init_scale is for the first step to multiply it by (flow
    pipelines know no init_noise_sigma). manner: what the source does beside the plan; apart(t): the
    loop of the one step from a timestep that is not in the schedule, or None. result: whose dtype
    the next sample has (`sources.Source`). past: what stands in timesteps beside those of steps.
    """

    spares: Spares  # of runs, the scheduler's
    moments: Moments | None = None  # of the last step, if it drew
    _run: Run | Traced | None = None
    _draws: Draws | None = None
    _returned: weakref.ref | None = None
    _anchored: dict[int, float] = {}  # noqa: RUF012 (never written to)
    # of a plan with anchored rows: what was handed back last, and what it was made from (`edits`)
    _handed = _read = None
    _version = _written = _read_written = 0
    _quick = _chosen = False

    def __init__(
        self,
        plan: Plan,
        compile: Callable[[int, Told], Plan],
        whole: bool,
        *,
        calls_per_point: int = 1,
        preview: bool = True,
        compat: bool = False,
        unit: bool = False,
        manner: Manner = PLAIN,
        apart: Callable[[float], Loop | None] | None = None,
        result: str = "sample",
        sigmas: Tensor | None = None,
        past: Sequence[float] = (),
    ):
        self.compat, self._compile, self._past = compat, compile, past
        self._preview, self._apart, self._result = preview, apart, result
        self._points_of(plan, calls_per_point, unit and not compat, manner)
        self._draws_at, self._bounds = manner.draws, manner.thresholding
        self._kind, self.own_sigmas = torch.int64 if whole else torch.float32, sigmas

    def fresh(self, device=None) -> Loop:
        """The loop at its start, with timesteps of its own; all that was looked up is shared."""
        twin = self._twin()
        every = torch.from_numpy(np.append(self._labels, self._past))
        twin.timesteps = times = every.to(device, self._kind)
        twin._next, twin._bytes = times.data_ptr(), times.element_size()
        return twin

    def again(self) -> Loop:
        """The loop at its start, with the begin index and the timesteps that it has."""
        twin = self._twin()
        twin.index = twin._run = twin._draws = twin._returned = None
        twin._quick, twin._next = False, self.timesteps.data_ptr()
        return twin

    def told(self, timesteps: Tensor | None = None, sigmas: Tensor | None = None) -> None:
        """The same numbers in other memory, for readers."""
        with self._lock:
            if sigmas is not None:
                self.sigmas, self._as_told = sigmas, sigmas.clone()
            if timesteps is not None:
                self.timesteps = times = timesteps.contiguous()
                self._bytes = times.element_size()
                self._next = times.data_ptr() + (self.index or 0) * self._bytes

    def __deepcopy__(self, memo: dict) -> Loop:
        """A loop of its own from here on: the run's state copied, plan and tables shared."""
        with self._lock:
            twin = self._twin()
            twin._run, twin._chosen = copy.deepcopy(self._run), self._run is not None
            twin._draws = None if self._draws is None else self._draws.copy()
        return twin

    def _twin(self) -> Loop:
        twin = object.__new__(Loop)
        twin.__dict__.update(self.__dict__)
        twin._lock = threading.Lock()
        return twin

    def step(
        self,
        model_output: Tensor,
        timestep,
        sample: Tensor,
        eta: Told,
        noise: Callable[..., Tensor],
        generator,
        variance_noise: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(next sample, predicted data or None), in the sample's dtype. noise(model_output,
        generator, variance_noise) gives one noise tensor.
        """
        with self._lock:
            due = self._quick or self.index is None
            try:  # a view of our own timesteps is known by its place
                due = due and timestep.data_ptr() == self._next and timestep.numel() == 1
            except (AttributeError, RuntimeError):  # a number, or a tensor that a transform made
                due = False
            if (
                due
                and sample.__class__ is Tensor
                and not sample.requires_grad
                and not torch.is_inference_mode_enabled()
                and (
                    self._handed is None
                    or (sample is self._handed and sample._version == self._written)
                )
            ):
                x = torch.empty_like(sample)
                if (
                    self._run.carries(model_output, sample, x)
                    if self._quick and eta == self._eta
                    else self._again(model_output, sample, eta, x)
                ):
                    return self._stepped(x)
            if self._apart is not None and (other := self._elsewhere(timestep)) is not None:
                ends = other.step(
                    model_output, timestep, sample, eta, noise, generator, variance_noise
                )
                self.moments = other.moments
                return ends
            draw = partial(noise, model_output, generator, variance_noise)
            if not torch.is_inference_mode_enabled():
                return self._step(model_output, timestep, sample, eta, draw)
            with torch.inference_mode(False), torch.no_grad():  # its tensors count no writes
                return self._step(model_output, timestep, sample, eta, draw)

    def skip(self, model_output: Tensor, timestep, sample: Tensor) -> None:
        """A step that somebody else makes, checked like any other; the next one begins anew."""
        with self._lock:
            at = self._checked(model_output, timestep, sample)
            self._run, self._quick, self.index = None, False, at + 1

    def select(self, index: object) -> None:
        """Go on with these samples, as `Run.select` has it."""
        with self._lock:
            if (run := self._run) is None:
                return
            index = chosen("FsScheduler.select", index, len(run.x))
            run.select(index)
            if self._draws is not None:
                self._draws.select(index)
            self._key = None  # it is no run of that shape any more
            selected(self, index)

    # -- inside ------------------------------------------------------------------------------------
    def _again(self, f: Tensor, sample: Tensor, eta: Told, x: Tensor) -> bool:
        """A first step into x on the run that a loop like this one left, where the plan draws
        nothing and the sample is the state itself; else False, nothing done.
        """
        plain = self.index is None and not self.begin and self._factor == 1.0 and eta == 0.0
        plain = plain and self._bounds is self.sigmas is None  # or somebody may have written there
        plain = plain and f.__class__ is Tensor and not (watched() or self._manner.blind)
        plain = plain and self._dtype(f, sample) == sample.dtype
        if not (plain and self._draws_nothing(self.plan, eta)):
            return False
        own, joined = bare(self.plan)
        key = self.spares.key(own, sample, f.dtype)
        run = self.spares.take(key) if joined and sample.dtype in STATES else None
        if run is None:
            return False
        if sample.is_cpu:
            arguments.check_values("sample", sample, where="FsScheduler.step")
        run.rewind()
        if not run.carries(f, sample, x):
            self.spares.give(key, run)
            return False
        self._run, self._key, self._eta, self.index, self.moments = run, key, eta, 0, None
        self._anchored = anchored(self.plan)
        self._handed, self._written = counted(sample) if self._anchored else (None, 0)
        self._carried = self._still = self._quick = True
        return True

    def _step(
        self, model_output: Tensor, timestep, sample: Tensor, eta: Told, draw: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """The step with every check, and its sentence."""
        at = self._checked(model_output, timestep, sample)
        if self._result == "noise":  # what it is added to is as wide from the second step on
            model_output = model_output.to(self._dtype(model_output, sample))
        if self._manner.free and self._run is not None:
            same = at == self.index and eta == self._eta and sample.shape == self._run.x.shape
            self._run = self._run if same else None  # every step may be a first one
        first = self._run is None
        begun, factor = sample, self.factor(at)
        if factor != 1.0:  # in the state's dtype: not rounded to half precision again
            begun = factor * sample.to(arguments.state_dtype(sample))
        if first:
            self._start(model_output, sample, begun.detach(), at, eta)
        elif eta != self._eta:
            raise another(eta, self._eta)
        given = model_output.requires_grad or sample.requires_grad
        if given and torch.is_grad_enabled() and not isinstance(self._run, Traced):
            self._run, self._key = Traced(self._run), None
        run, x_in, x = self._run, None, None
        traced = isinstance(run, Traced)
        if given and not traced:
            model_output, begun = model_output.detach(), begun.detach()
        edited, k, off = None, self._anchored.get(run.row), None
        if k is not None and self._handed is not None:
            edited = aside(self, model_output, begun, sample, k)
            model_output, begun, off = edited or (model_output, begun, None)
        self._carried = self._carried and sample.dtype == run.x.dtype and not traced
        if self._carried:
            x_in, x = placed(begun, run.x.stride(), begun.dtype), torch.empty_like(run.x)
        elif edited is not None or (not self._is_ours(sample) and (traced or not first)):
            run.x = begun.to(run.x.dtype)
        if self._bounds is not None:
            self._bounds.bound(run, model_output, begun if self._carried else run.x)
        if self._still:
            run.carry(model_output, x_in, x)
        else:
            self._drawing(model_output, x_in, x, draw)
        if off is not None:
            (run.x if x is None else x).add_(off)
        self._quick = self._carried and self._still and self._bounds is None
        kind = self._dtype(model_output, sample)
        if self._anchored and x_in is not None:
            self._handed, self._written = counted(x_in)
        return self._stepped(run.x.to(kind, copy=True) if x is None else x)

    def _drawing(self, model_output: Tensor, x_in, x, draw: Callable[[], Tensor]) -> None:
        """A row of a run that draws."""
        row, fresh = self._run.row, {}

        def drawn(name: int) -> Tensor:
            kept, noise = self._draws.keeps(name), self._draws(name, draw)
            if not kept:
                fresh[name] = noise
            return noise

        now.draw, now.drawn = drawn, False
        try:
            self._run.carry(model_output, x_in, x)
        finally:
            now.draw = None
        summed = partial(terms, self._run.plan, range(row, self._run.row), fresh)
        self.moments = Moments(summed, getattr(draw.func, "deviation", None)) if fresh else None
        owed = self._draws_at is not None and not now.drawn
        if owed and self._draws_at(self._labels[self.index], self._eta):
            # and leaves the generator where the source does, for whatever is drawn from it next
            draw()

    def _stepped(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a step that led to x hands back."""
        run, self.index = self._run, self.index + 1
        done = run.row >= run.end
        # elsewhere reading the status waits for the device
        if (done or x.is_cpu) and (bad := run.faults()):
            raise ValueError(
                f"FsScheduler.step: the state of sample {', '.join(map(str, bad[:8]))} is no "
                f"longer finite after timestep {self._labels[self.index - 1]:g}; finite model "
                "outputs are needed"
            )
        x0 = run.x0.to(x.dtype, copy=True) if self._preview else None
        if self._anchored:
            self._read, self._read_written = self._handed, self._written
            self._handed, self._written = x, x._version
        if done:
            if self._key is not None:
                self.spares.give(self._key, run)
            self._run, self._handed, self._read, self._quick = None, None, None, False
        elif self._carried:
            self._next += self._bytes
        else:
            self._returned, self._version = weakref.ref(x), x._version
        return x, x0

    def _start(self, model_output: Tensor, sample: Tensor, x: Tensor, at: int, eta: Told) -> None:
        """A run from step `at` on, at the state x that the sample stands for."""
        point = (at + self._per_point - 1) // self._per_point
        plan = self.begun(point, eta)
        if x.is_cpu:
            arguments.check_values("sample", x, where="FsScheduler.step")
        self._anchored, self._handed, self.moments = anchored(plan), None, None
        state, (own, joined) = arguments.state_dtype(sample), bare(plan)
        self._carried = joined and sample.dtype == state == self._dtype(model_output, sample)
        self._key = self.spares.key(own, sample, model_output.dtype)
        run = self.spares.take(self._key)
        if run is not None:
            run.rewind(None if self._carried else x)
        else:
            run = Run(
                own,
                latent=x,
                start=1,
                state_dtype=state,
                model_dtype=model_output.dtype,
                noise_source=drawn_now if arguments.drawn_from(own, 1, masked=False) else None,
                preview=self._preview,
                check=None,
            )
        self._still = self._draws_nothing(plan, eta)
        self._draws = Draws(plan) if plan.L else None
        self._next = self.timesteps.data_ptr() + at * self._bytes
        self._run, self._eta, self.index = run, eta, at

    def _draws_nothing(self, plan: Plan, eta: Told) -> bool:
        """Is there no step that draws, not even one whose noise is multiplied by 0?"""
        owed = self._draws_at
        return not plan.L and (owed is None or not any(owed(t, eta) for t in self._labels))

    def _checked(self, model_output: Tensor, timestep, sample: Tensor) -> int:
        """Index of the step, after all that must fit before a kernel runs. A timestep on another
        device is trusted where reading it would wait for that device.
        """
        for name, value in (("model_output", model_output), ("sample", sample)):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                what = f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"FsScheduler.step: {name} is {what}; a floating torch tensor [B, *], of a "
                    "model's tuple the first, is accepted"
                )
        if model_output.shape != sample.shape or model_output.device != sample.device:
            got, want = (f"{list(v.shape)} on {v.device}" for v in (model_output, sample))
            raise ValueError(
                f"FsScheduler.step: model_output is {got} for a sample of {want}; only that is "
                "accepted, nothing is broadcast"
            )
        refuse("FsScheduler.step", model_output, sample)
        self.check_told()
        expected = self.find(timestep)
        if not 0 <= expected < len(self):
            raise IndexError(
                f"FsScheduler.step: step {expected} of {len(self)} timesteps; set_timesteps starts "
                "again, a begin index inside is accepted"
            )
        told = not self._manner.free  # it goes by the timestep itself
        if told and self._run is not None and sample.shape != self._run.x.shape:
            raise ValueError(
                f"FsScheduler.step: sample is {list(sample.shape)} after "
                f"{list(self._run.x.shape)}; that is accepted, or other samples after select(index)"
            )
        told = told and (self.index is not None or self.begin is not None)
        if told and self.where(timestep, expected) != expected:
            raise ValueError(
                f"FsScheduler.step: timestep {number(timestep):g} is out of order; "
                f"{self._labels[expected]:g} is next, of {self._words()}"
            )
        return expected

    def _is_ours(self, sample: Tensor) -> bool:
        """Is this the tensor that the last step returned, unwritten since, or the samples chosen
        since?
        """
        if self._chosen:
            self._chosen = False
            return torch.equal(self._run.x.to(sample.dtype), sample)
        ours = self._returned is not None and self._returned() is sample
        return ours and sample._version == self._version
