"""FsSchedulerOutput: what a step of an FsScheduler returns."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor

from .moments import Moments, unrounded


@dataclass(init=False)
class FsSchedulerOutput(BaseOutput):
    """prev_sample [B,*]: the sample at the next timestep; pred_original_sample [B,*]: the data
    predicted here, if the source gives it; pred_noised_sample [B,*]: TCD's, at the lower level from
    which noise was added.

    mean [B,*], std [B], log_prob [B]: of the normal distribution that prev_sample was drawn from,
    formed when they are read, so before prev_sample is written to. log_prob is summed over a
    sample's numbers, in float64 (DDPO and Flow-GRPO divide by their count); None where std is 0,
    which has no density. A step that draws nothing has std 0 and mean prev_sample. std is [B,*]
    under learned variances and where tokens have levels of their own, and at least float32.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None
    pred_noised_sample: Tensor | None = None

    def __init__(
        self,
        prev_sample: Tensor,
        pred_original_sample: Tensor | None = None,
        moments: Moments | None = None,
        pred_noised_sample: Tensor | None = None,
    ):
        """Fills what BaseOutput's own would find out by walking over the fields."""
        words, put = self.__dict__, OrderedDict.__setitem__
        words["prev_sample"], words["pred_original_sample"] = prev_sample, pred_original_sample
        put(self, "prev_sample", prev_sample)
        if pred_original_sample is not None:
            put(self, "pred_original_sample", pred_original_sample)
        if pred_noised_sample is not None:
            words["pred_noised_sample"] = pred_noised_sample
            put(self, "pred_noised_sample", pred_noised_sample)
        if moments is not None:
            words["_moments"] = moments

    @property
    def mean(self) -> Tensor:
        moments = self.__dict__.get("_moments")
        return self.prev_sample if moments is None else moments.mean(self.prev_sample)

    @property
    def std(self) -> Tensor:
        x, moments = self.prev_sample, self.__dict__.get("_moments")
        return unrounded(x, 0.0) if moments is None else moments.std(x)

    @property
    def log_prob(self) -> Tensor | None:
        moments = self.__dict__.get("_moments")
        return None if moments is None else moments.log_prob(self.prev_sample)
