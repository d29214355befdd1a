"""What a step takes of what the model says, and what it draws. Imports no diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .calls import check_end, check_tokens
from .manners import with_learned
from .path import along
from .sources import UNCLIP

LEARNED = ("DDPMScheduler", UNCLIP)  # their noise is of the variance that the model predicts


class Answers:
    """The parts of a step apart from its row (see `Readings`).

    _learned: the second half of the model's channels is a variance; _negative: its output is that
    of the plan with the other sign; _paths: noises are increments of a path; _noise: one draw for
    a step.
    """

    config: Mapping
    _source: type | None
    _settings: dict
    _learned: bool
    _negative: bool
    _paths: bool
    _noise: Callable[..., Tensor]

    # -- inside ------------------------------------------------------------------------------------
    def _prediction(self, model_output: Tensor, timestep, sample: Tensor, per_token) -> Tensor:
        """The part of the model's output that predicts, with the plan's sign."""
        if not (isinstance(model_output, Tensor) and isinstance(sample, Tensor)):
            return model_output  # for the loop to refuse
        if self._learned and model_output.dim() == sample.dim() > 1:
            channels = sample.shape[1]
            if model_output.shape[1] == 2 * channels:
                # the other half predicts a variance, which these solvers do not use
                model_output = model_output[:, :channels]
        if per_token is not None:
            check_tokens(per_token, timestep)
        return -model_output if self._negative != (per_token is not None) else model_output

    def _drawing(
        self, loop, model_output, timestep, sample, others: Mapping
    ) -> Callable[..., Tensor]:
        """`_noise`, of the deviation that the model predicts where the class has it from there."""
        if self._source is not None and self._source.__name__ == UNCLIP:
            check_end(loop, timestep, others.get("prev_timestep"))
        if self._paths and loop.compat:
            return along(loop, self._source, self._settings, timestep, sample, self._noise)
        if not (self._learned and self._source.__name__ in LEARNED):
            return self._noise
        variance = self._settings["variance_type"]
        return with_learned(self._noise, loop, variance, model_output, timestep, sample)
