"""A drop-in scheduler for diffusers' pipelines: `FsScheduler`."""

import sys

from . import loops, runs
from .scheduler import FsScheduler, FsSchedulerOutput, SchedulerMixin

__all__ = ["FsScheduler", "FsSchedulerOutput", "SchedulerMixin"]  # pipelines look for the last here

# model_index.json and pickles say so, whatever file they stand in
FsScheduler.__module__ = FsSchedulerOutput.__module__ = __name__
# Pickles of schedulers made while this folder was a file name these two.
sys.modules |= {f"{__name__}_loop": loops, f"{__name__}_runs": runs}
