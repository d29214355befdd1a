"""What an FsScheduler cannot do is said in a sentence, before anything runs."""

import copy
import re
import sys
from functools import partial

import pytest
import torch

import fastsample
from fastsample.interop.diffusers.sources import SAME, SOURCES
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAN = float("nan")


def of(name, **config):
    """A scheduler from a diffusers one of this name, when called."""
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    return partial(FsScheduler.from_config, peer)


def timed(*steps, timesteps=None, sigmas=None, **config):
    """set_timesteps of a scheduler of this config, when called."""
    lists = {k: v for k, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
    return lambda: FsScheduler(**config).set_timesteps(*steps, **lists)


def refused():
    """(what is refused when called, sentence)"""
    yield of("FlowMapEulerDiscrete"), "FlowMapEulerDiscreteScheduler is not reproduced, nor is a"
    yield of("CogVideoXDPM"), "source='DPMSolverMultistepScheduler', which runs on its noise"
    config = diffusers.LCMScheduler().config
    yield partial(FsScheduler.from_config, config), "fits LCMScheduler, TCDScheduler;"
    config = {"_class_name": "os.system"}
    yield partial(FsScheduler.from_config, config), "os.system is not reproduced"
    yield partial(FsScheduler.from_config, "folder"), "a str was given"
    yield of("UniPCMultistep", solver_order=5), "solver_order = 5"
    two = partial(FsScheduler, use_karras_sigmas=True, use_beta_sigmas=True)
    yield two, "use_karras_sigmas and use_beta_sigmas = True at once; one of them is accepted"
    yield partial(FsScheduler, algorithm_type="dpmsolver+++"), "algorithm_type = 'dpmsolver+++'"
    yield of("DDPM", variance_type="fixed"), "variance_type = 'fixed'"
    yield partial(FsScheduler, beta_start=NAN), "beta_start = nan"
    yield partial(FsScheduler, beta_end=-0.1), "beta_end = -0.1"
    yield partial(FsScheduler, num_train_timesteps=10**9), "num_train_timesteps = 1000000000"
    yield partial(FsScheduler, compat="k"), "compat = 'k'"
    yield partial(FsScheduler, plan="AAAA"), "the config's plan cannot be read"
    yield partial(FsScheduler, prediction_type="flow_prediction"), "on vp scale"
    yield timed(0), "0 steps"
    yield timed(-1), "-1 steps"
    yield timed(2.5), "2.5 steps"
    yield timed(), "one number of steps"
    yield timed(2000, compat=None), "at most 1000"
    yield timed(timesteps=[1, 500, 9]), "falling"
    yield timed(timesteps=[5000, 10]), "from 999 down"
    yield timed(sigmas=[1.0, 1.0, 0.0]), "strictly falling"
    yield timed(sigmas=[NAN, 0.0]), "sigmas = nan; a number"
    yield timed(sigmas=[]), "-1 steps"
    yield timed(4, sigmas=[1.0, 0.5, 0.0]), "num_inference_steps beside sigmas"
    yield timed(timesteps=[9, 5], use_karras_sigmas=True), "use_karras_sigmas"
    yield timed(sigmas=[1.0, 0.0], compat="diffusers"), "takes no sigmas"
    shifting = {"source": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}
    yield timed(8, **shifting), "mu = None"
    x = torch.zeros(1, 3)
    yield lambda: FsScheduler().step(x, 999, x), "call set_timesteps first"
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "compat": None}

    def first_step():
        scheduler = FsScheduler(**zero_snr)
        scheduler.set_timesteps(8)
        scheduler.scale_model_input(x, scheduler.timesteps[0])

    yield first_step, "epsilon at timestep 999, where alpha = 0 and a sample holds no trace of the"


@pytest.mark.parametrize(("make", "sentence"), list(refused()))
def test_what_cannot_be_done_is_said_in_a_sentence(make, sentence):
    with pytest.raises((ValueError, TypeError)) as error:
        make()
    assert sentence in str(error.value) and "\n" not in str(error.value)


def bad_steps():
    """(what, (model output, timestep or its index, sample), sentence)"""
    x, f = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    nan, inf = torch.full_like(x, torch.nan), torch.full_like(x, torch.inf)
    yield "NaN latents", (f, 0, nan), "sample holds NaN"
    yield "infinite output", (inf, 0, x), "no longer finite"
    yield "output of batch 1", (f[:1], 0, x), "nothing is broadcast"
    yield "output of one channel", (f[:, :1], 0, x), "nothing is broadcast"
    yield "integer latents", (f, 0, x.long()), "sample is torch.int64"
    yield "a number for an output", (0.0, 0, x), "model_output is float"
    yield "a model's tuple", ((x, None), 0, x), "model_output is tuple; .*the first, is accepted"
    yield "a model's dict", ({"sample": x}, 0, x), "model_output is dict"
    yield "out of order", (f, 2, x), None
    yield "no such timestep", (f, None, x), "not in the schedule"
    yield "a batch of timesteps", (f, "batch", x), "one timestep for the whole batch"


@pytest.mark.parametrize(
    ("what", "given", "sentence"), list(bad_steps()), ids=[b[0] for b in bad_steps()]
)
def test_bad_steps_are_refused_and_leave_nothing_behind(what, given, sentence):
    scheduler = FsScheduler.from_config(diffusers.EulerDiscreteScheduler(**SD))
    scheduler.set_timesteps(5)
    good = loop(copy.deepcopy(scheduler), start(2, 3, 4, 4), 5)
    f, at, x = given
    times = scheduler.timesteps
    t = 1234 if at is None else times[:2] if at == "batch" else times[at]
    if sentence is None:  # a first step may start anywhere; a second may not
        scheduler.step(f, times[0], x)
        t, sentence = times[3], "is out of order; 749.25 is next"
    with pytest.raises((ValueError, TypeError), match=sentence.replace("[", "\\[")):
        scheduler.step(f, t, x)
    assert torch.equal(loop(scheduler, start(2, 3, 4, 4), 5), good)


def test_steps_past_the_end_and_other_shapes_are_refused():
    scheduler = FsScheduler.from_config(diffusers.UniPCMultistepScheduler())
    x = loop(scheduler, start(2, 3, 4, 4), 3)
    with pytest.raises(IndexError, match="step 3 of 3"):
        scheduler.step(x, scheduler.timesteps[-1], x)
    scheduler.set_timesteps(3)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="that is accepted, or other samples after select.index."):
        scheduler.step(x[:1], scheduler.timesteps[1], x[:1])
    scheduler.select([0])
    scheduler.step(x[:1], scheduler.timesteps[1], x[:1])


@pytest.mark.parametrize("index", [2.5, 1.0, "1", True, torch.tensor(1.0)])
def test_a_begin_index_is_whole(index):
    scheduler = FsScheduler.from_config(diffusers.UniPCMultistepScheduler())
    for _ in range(2):  # before set_timesteps and after
        with pytest.raises(TypeError, match="set_begin_index: .*; a whole number is accepted"):
            scheduler.set_begin_index(index)
        scheduler.set_timesteps(3)
    scheduler.set_begin_index(torch.tensor(1))
    assert scheduler.begin_index == 1


def test_the_table_of_what_is_left_out_is_whole():
    """Every scheduler class of diffusers is reproduced, or in the package's table."""
    package = sys.modules[FsScheduler.__mro__[1].__module__.rpartition(".")[0]]
    table = package.__doc__.partition("and of the classes")[0].partition("why\n")[2]
    named = set(re.findall(r"\w+", " ".join(line[:46] for line in table.splitlines())))
    kinds = ((n, getattr(diffusers, n)) for n in dir(diffusers) if n.endswith("Scheduler"))
    names = {n for n, k in kinds if isinstance(k, type) and hasattr(k, "config_name")}
    assert named == {n.removesuffix("Scheduler") for n in names - {*SOURCES, *SAME}}
