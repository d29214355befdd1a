"""A drop-in scheduler for diffusers' pipelines: `FsScheduler`.

Of the scheduler classes of diffusers 0.42.1 it stands in for those in `sources`; a Parallel one is
the class it is made of. It does not for

    class, "Scheduler" left out                why
    Amused, BlockRefinement, DiscreteDDIM,     tokens, no noise levels
    EntropyBound, VQDiffusion
    CogVideoXDPM                               a step is told the prediction before it, and draws
                                               twice; another class, by source=, runs on its levels
                                               (`sources.CLOSEST`)
    RePaint                                    goes back up under a mask; the same
    Helios, HeliosDMD                          stages of several sizes
    Piflow                                     an output of several parts
    KarrasVe, ScoreSdeVe                       methods that pipelines call by turns, and no one step
    FlowMapEulerDiscrete                       where a step goes is told to the step
    MiniMaxH3                                  two a request, on a clock that rises to the data; a
                                               Sampler runs `solvers.euler` on Flow(shift), told
                                               1 - sigma, its output negated
    RFD4Proteina                               its score is multiplied by a factor of the time,
                                               as in no solver, under a mask told to the step

and of the classes that it stands in for it leaves out

    class                          what                           why
    (any)                          betas of 1 and more            no level is left of the data
    DDIMInverse                    timestep_spacing='linspace'    nor has the class
    DDPMWuerstchen                 unlike timesteps [B]           a run has one for all samples
    DPMSolverMultistepInverse      sde-..                         a noise of negative variance: NaN
                                   use_flow_sigmas                runs from noise to data there
    (both)                         timesteps=, sigmas=            nor have the classes
    EDMEuler                       pred_original_sample=          an x0 that is not the model's
    EulerDiscrete, EDMEuler,       s_churn in an exact run        a plan of `solvers` by from_plan
    FlowMatchHeunDiscrete          s_churn beside a bound of x0   diffusers' has none there
    FlowMatchEulerDiscrete         invert_sigmas beside           ends in noise
                                   stochastic_sampling
    FlowMatchLCM                   scale_factors                  samples change their size
    FlowMatchLCM,                  invert_sigmas                  ends in noise
    LTXEulerAncestralRF
    LMSDiscrete                    order above 4                  nor has `solvers.lms`
    (Parallel classes)             batch_step_no_noise            a run has one timestep for all
    SASolver                       corrector_order above 4        nor has the class
    UnCLIP                         another prev_timestep=         a run goes to its next timestep
    UniPCMultistep                 solver_order above 4           nor has `solvers.unipc`
                                   solver_p                       another scheduler's step

each with a sentence that says what to write instead.
"""

import sys

try:
    import diffusers as diffusers
except ImportError as error:
    why = "FsScheduler: diffusers is not installed; pip install 'fastsample[diffusers]'"
    raise ImportError(why, name="diffusers") from error

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
