"""Lookup: the points of a loop, and which of them a timestep means."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ...kernels import transforms
from ...plan import Plan
from ...plan.provenance import on_schedule
from .manners import Manner
from .plan import init_scale, number
from .step_options import Told

ROUNDING = 1e-6  # relative: a timestep went through float32
COARSE = {torch.bfloat16: torch.bfloat16, torch.half: torch.half, np.dtype("float16"): torch.half}


def alike(labels: np.ndarray, timestep: object) -> np.ndarray:
    """Which of the labels [n] a timestep may stand for: to ROUNDING, or in a type of 16 bits those
    that are the timestep when held in it (999 is 1000 in bfloat16).
    """
    value, kind = number(timestep), getattr(timestep, "dtype", None)
    if kind in COARSE:
        return torch.from_numpy(labels).to(COARSE[kind]).double().numpy() == value
    return np.abs(labels - value) <= ROUNDING * np.maximum(1.0, np.abs(labels))


class Lookup:
    """Labels and input scales [calls] of a plan, timesteps [calls] as a tensor; alpha, sigma
    [calls + 1] of x at every call and at the end. begin: where a pipeline said that it begins;
    index: of the step that runs next, None before the first. manner: how the source goes by them;
    where it is blind the plan is no more than its labels and levels.

    A first sample was made by add_noise where this loop took anything to its first level before its
    first step: pipelines pack, cast and cut what add_noise gave them, so the tensor itself cannot
    say.
    """

    compat: bool
    timesteps: Tensor
    sigmas: Tensor | None = None
    begin: int | None = None
    index: int | None = None
    _noised = False
    _compile: Callable[[int, Told], Plan]
    _apart: Callable[[float], Lookup | None] | None
    _result: str

    def _points_of(self, plan: Plan, calls_per_point: int, unit: bool, manner: Manner) -> None:
        """unit: a run begins with unit noise, for its first step to multiply by init_scale."""
        rows, self._manner = np.flatnonzero(plan.call >= 0), manner
        self.plan, self._per_point, self._labels = plan, calls_per_point, plan.t[rows - 1, 0]
        points = np.append(rows, plan.rows - 1)
        self.alpha, self.sigma = plan.alpha[points], plan.sigma[points]
        self._scales = plan.c[rows - 1].tolist()
        self._factor = init_scale(plan) if unit and plan.sigma[0] else 1.0
        self._unscaled = self._factor == 1.0 and set(self._scales) == {1.0} and not manner.blind
        self.steps = (len(self) + calls_per_point - 1) // calls_per_point

    def __len__(self) -> int:
        return len(self._labels)

    def find(self, timestep: int | float | Tensor | None) -> int:
        """Index of the step that comes next: the running one, else the begin index the pipeline
        set, else that of the timestep; of a source that keeps no place, that of the timestep.
        """
        running = self.begin if self.index is None else self.index
        if running is not None and (timestep is None or not self._manner.free):
            return running
        at = 0 if timestep is None else self.where(timestep, running)
        if at is None and not self._manner.last:
            raise ValueError(
                f"FsScheduler: timestep {number(timestep):g} is not in the schedule; "
                f"scheduler.timesteps are accepted: {self._words()}"
            )
        return len(self) - 1 if at is None else at

    def check_seen(self, at: int | None) -> None:
        """ValueError for a step from where the model says nothing of the data."""
        if self._manner.blind and at == 0:
            raise ValueError(
                f"FsScheduler: epsilon at timestep {self._labels[0]:g}, where alpha = 0 and a "
                "sample holds no trace of the data; a run that begins below it, with "
                "set_begin_index(1) or from an image, or another prediction_type is accepted"
            )

    def begun(self, point: int, eta: Told) -> Plan:
        """The plan from a point of the grid on."""
        self.check_seen(point)
        return self.plan if not point and eta == 0.0 else self._compile(point, eta)

    def check_told(self) -> None:
        """ValueError where somebody wrote to the sigmas that a reader was told."""
        if self.sigmas is not None and not torch.equal(self.sigmas, self._as_told):
            raise ValueError(
                "FsScheduler.step: scheduler.sigmas was written to, which no step reads; other "
                "levels by set_timesteps(sigmas=...) are accepted"
            )

    def factor(self, at: int) -> float:
        """What a sample that comes to step `at` is multiplied by: init_scale where a run begins
        with a pipeline's unit noise, else 1.
        """
        return self._factor if at == 0 and not self._noised else 1.0

    def input_scale(self, timestep: int | float | Tensor | None) -> float:
        """What the sample that comes to the timestep is multiplied by for the model."""
        if self._unscaled:
            return 1.0
        if self._manner.blind:
            self.check_seen(self.where(timestep, self.begin if self.index is None else self.index))
            return 1.0
        at = min(self.find(timestep), len(self) - 1)
        return self._scales[at] * self.factor(at)

    def levels(self, timesteps: Tensor, by_index: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """(alpha, sigma) [n] that add_noise takes a sample to: by_index, where a begin index was
        set, at it or the running step, else at the timesteps; None if one of them is not of this
        loop.
        """
        if by_index and self.begin is not None:
            at = [self.find(None)] * timesteps.numel()
        else:
            told = timesteps.flatten()
            at = [self._told(t) for t in (told if told.dtype in COARSE else told.tolist())]
            if self._manner.last:
                at = [len(self) - 1 if k is None else k for k in at]
        if None in at:
            return None
        if self.compat and self._per_point == 2:  # half-way through a step, the level of its end
            at = [min(k + k % 2, len(self)) for k in at]
        if (last := max(at, default=0)) > 0:
            on_schedule("FsScheduler.add_noise", self.plan, f"an image at timestep {last}")
        self._noised = self._noised or (self.index is None and 0 in at)
        return self.alpha[at], self.sigma[at]

    def _told(self, timestep: float) -> int | None:
        """Index of a timestep that says no place; compat: of two that are equal the second, as
        index_for_timestep has it.
        """
        at = self.where(timestep)
        if at is None or not self.compat:
            return at
        return at + int((self._labels[at + 1 : at + 2] == self._labels[at]).any())

    def where(self, timestep: int | float | Tensor, expected: int | None = None) -> int | None:
        """Index of a timestep, or None. A view of our own tensor says where it stands without being
        read.
        """
        if isinstance(timestep, Tensor):
            timestep = transforms.bare("FsScheduler", timestep)
            if timestep.numel() != 1 and self._manner.each and timestep.dim() == 1:
                timestep = timestep[:1] if (timestep == timestep[:1]).all() else timestep
            if timestep.numel() != 1:
                raise ValueError(
                    f"FsScheduler: timestep has shape {list(timestep.shape)}; one timestep for the "
                    "whole batch is accepted"
                )
            if timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
                return timestep.storage_offset() - self.timesteps.storage_offset()
            if expected is not None and timestep.device.type != "cpu":
                return expected
        same = alike(self._labels, timestep)
        if expected is not None and expected < len(same) and same[expected]:
            return expected
        found = np.flatnonzero(same)
        if not len(found):
            return None
        ends = self._labels[found[[0, -1]]]
        if not alike(ends[:1], ends[1]).all():  # of a type of 16 bits
            either = " and ".join(f"{self._labels[k]:g}" for k in found[[0, -1]])
            raise ValueError(
                f"FsScheduler: timestep {number(timestep):g} in {timestep.dtype} stands for "
                f"{either} of the schedule; scheduler.timesteps themselves are accepted"
            )
        # Heun's second of two equal timesteps starts a step
        return int(found[-1 if self._per_point == 2 else 0])

    def _elsewhere(self, timestep) -> Lookup | None:
        """The loop of a step from a timestep that is not in the schedule, where there is one."""
        if self.where(timestep, self.index) is not None:
            return None
        other = self._apart(number(timestep))
        if other is not None:
            other = other.fresh(self.timesteps.device)
            other.spares = self.spares
        return other

    def _dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        """Of the next sample."""
        wide = self._result == "noise"
        if self._result == "sample" or (model_output.dtype == sample.dtype and not wide):
            return sample.dtype
        both = torch.promote_types(model_output.dtype, sample.dtype)
        both = torch.promote_types(both, torch.float32) if wide else both
        return model_output.dtype if self._result == "output" else both

    def _words(self) -> str:
        shown = [f"{t:g}" for t in self._labels]
        return ", ".join(shown if len(shown) <= 6 else [*shown[:3], "..", *shown[-2:]])
