"""FsSchedulerOutput: what a step of an FsScheduler returns."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass(init=False)
class FsSchedulerOutput(BaseOutput):
    """prev_sample [B,*]: the sample at the next timestep; pred_original_sample [B,*]: the data
    predicted here, if the source gives it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None

    def __init__(self, prev_sample: Tensor, pred_original_sample: Tensor | None = None):
        """Fills what BaseOutput's own would find out by walking over the fields."""
        words, put = self.__dict__, OrderedDict.__setitem__
        words["prev_sample"], words["pred_original_sample"] = prev_sample, pred_original_sample
        put(self, "prev_sample", prev_sample)
        if pred_original_sample is not None:
            put(self, "pred_original_sample", pred_original_sample)
