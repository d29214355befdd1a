"""A drop-in scheduler for diffusers' pipelines: `FsScheduler`."""

import sys

from . import loops, runs
from .scheduler import FsScheduler, FsSchedulerOutput, SchedulerMixin

# files of saved pipelines that name this module need the base class in it
__all__ = ["FsScheduler", "FsSchedulerOutput", "SchedulerMixin"]

# The file of a saved pipeline names the module of each of its parts, and diffusers takes it from
# those that have been imported: `import fastsample` is enough for this one.
FsScheduler.__module__ = "fastsample"
FsSchedulerOutput.__module__ = __name__  # pickles say so, whatever file it stands in
# Pickles of schedulers made while this folder was a file name these two.
sys.modules |= {f"{__name__}_loop": loops, f"{__name__}_runs": runs}
