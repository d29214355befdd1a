"""FsScheduler takes arguments where the source class takes them: positions, signatures, and what
lands in the wrong place.
"""

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
import torch

import fastsample
from fastsample import solvers
from fastsample.grids import trailing
from fastsample.interop.diffusers.sources import SOURCES
from fastsample.schedules import DiscreteVP
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
CONFIG = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
}


def peer(source, **config):
    return getattr(diffusers, source)(**CONFIG.get(source, {}) | config)


def calm(x, t):
    return network(x / 10, t)


def last(scheduler, *places, steps=4, shape=(1, 2, 4, 4), model=calm, **given):
    """The end of a loop whose step gets these arguments after the sample."""
    x = start(*shape)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t), t, x, *places, **given)[0]
    return x


def seeded():
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("compat", ["auto", None])
@pytest.mark.parametrize("source", SOURCES)
def test_signatures_are_the_sources_own(source, compat):
    theirs = peer(source)
    ours = FsScheduler.from_config(theirs, compat=compat)
    copies = (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)))
    for scheduler in (ours, *copies, FsScheduler.from_config(ours.config)):
        assert inspect.signature(scheduler.step) == inspect.signature(theirs.step)
    own, said = (inspect.signature(s.set_timesteps).parameters for s in (theirs, ours))
    assert list(said)[: len(own)] == list(own) and all(said[name] == own[name] for name in own)
    # pipelines look for them: exact runs take any list
    extra = {"timesteps", "sigmas"} - own.keys() if compat is None else set()
    assert said.keys() - own.keys() == extra
    assert all(said[name].kind is inspect.Parameter.KEYWORD_ONLY for name in extra)


@pytest.mark.parametrize(
    ("source", "before"),
    [
        ("EulerAncestralDiscreteScheduler", ()),
        ("DDPMScheduler", ()),
        ("LCMScheduler", ()),
        ("DPMSolverMultistepScheduler", ()),
        ("DDIMScheduler", (1.0, False)),
        ("EulerDiscreteScheduler", (0.0, 0.0, float("inf"), 1.0)),
        ("FlowMatchEulerDiscreteScheduler", (0.0, 0.0, float("inf"), 1.0)),
        ("DPMSolverSinglestepScheduler", ()),
    ],
)
def test_a_positional_generator_is_the_generator(source, before):
    """The bits of the keyword, and the peer's picture."""
    ours = FsScheduler.from_config(peer(source))
    named = dict(zip(list(inspect.signature(ours.step).parameters)[3:], before, strict=False))
    placed = last(ours, *before, seeded())
    assert torch.equal(placed, last(ours, generator=seeded(), **named))
    assert torch.allclose(placed, last(peer(source), *before, seeded()), rtol=1e-4, atol=1e-5)
    draws = source.startswith(("EulerA", "DDPM", "LCM", "DPMSolverM", "DDIM"))
    assert torch.equal(placed, last(ours, **named)) != draws


@pytest.mark.parametrize(
    "source", ["UniPCMultistepScheduler", "HeunDiscreteScheduler", "PNDMScheduler"]
)
def test_return_dict_stands_where_it_does_there(source):
    ours = FsScheduler.from_config(peer(source))
    ours.set_timesteps(3)
    x = start(1, 2, 4, 4)
    assert type(ours.step(x, ours.timesteps[0], x, False)) is tuple
    assert ours.step(x, ours.timesteps[1], x, True).prev_sample.shape == x.shape


@pytest.mark.parametrize(
    ("source", "config", "places"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, (None, "cpu", [1.0, 0.6, 0.2])),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, (3, None, None, 0.8)),
        ("LCMScheduler", {}, (3, None, 20)),
        ("LCMScheduler", {}, (3, None, None, None, 0.5)),
        ("DPMSolverMultistepScheduler", {}, (None, None, None, [900, 500, 100])),
        ("DDPMScheduler", {}, (None, None, [900, 500, 100])),
        ("HeunDiscreteScheduler", {}, (3, None, 500)),
        ("HeunDiscreteScheduler", {}, (None, None, None, [900, 500, 100])),
        ("EulerDiscreteScheduler", {}, (None, None, None, [14.0, 3.0, 0.5, 0.0])),
        ("UniPCMultistepScheduler", FLOW, (3, None, np.array([1.0, 0.6, 0.2]))),
    ],
)
def test_set_timesteps_by_position_is_the_peers(source, config, places):
    theirs = peer(source, **config)
    ours, named = FsScheduler.from_config(theirs), FsScheduler.from_config(theirs)
    theirs.set_timesteps(*places)
    ours.set_timesteps(*places)
    names = inspect.signature(theirs.set_timesteps).parameters
    named.set_timesteps(**dict(zip(names, places, strict=False)))
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.timesteps, named.timesteps)


def test_neutral_arguments_are_taken():
    """DDIMPipeline hands use_clipped_model_output, LTXConditionPipeline per_token_timesteps and the
    negated output.
    """
    ddim = FsScheduler.from_config(diffusers.DDIMScheduler())
    plain = last(ddim, eta=0.0)
    assert torch.equal(last(ddim, eta=0, use_clipped_model_output=None, generator=None), plain)
    loose = FsScheduler.from_config(diffusers.DDIMScheduler(clip_sample=False))
    # nothing is clipped
    assert torch.equal(last(loose, use_clipped_model_output=True), last(loose))
    euler = FsScheduler(source="EulerDiscreteScheduler")
    flow = FsScheduler(source="FlowMatchEulerDiscreteScheduler")
    assert torch.equal(last(euler, s_tmin=0.5, s_noise=1.003), last(euler))  # read by churn alone
    assert torch.equal(last(flow, s_churn=5.0), last(flow))  # FlowMatchEuler never reads it
    ends = []
    for scheduler in (diffusers.FlowMatchEulerDiscreteScheduler(), flow):
        scheduler.set_timesteps(4)
        y = start(2, 6, 3)
        for t in scheduler.timesteps:
            given = {"per_token_timesteps": t.expand(2, 6), "return_dict": False}
            y = scheduler.step(-network(y, t), t, y, **given)[0]
        ends.append(y)
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-6)
    assert torch.equal(ends[1], last(flow, model=network, shape=(2, 6, 3)))


def test_a_ddim_pipeline_runs_as_with_its_own_scheduler():
    torch.manual_seed(5)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(generator=seeded(), num_inference_steps=3, eta=0.5, output_type="np").images
    pipe.scheduler = FsScheduler.from_config(pipe.scheduler)
    ours = pipe(generator=seeded(), num_inference_steps=3, eta=0.5, output_type="np").images
    assert abs(theirs - ours).max() < 1e-4 and theirs.std() > 0.05


def bad_calls():
    """(source, arguments by position, by name, sentence)"""
    generator, noise, tokens = seeded(), torch.zeros(1, 2, 4, 4), torch.tensor([[1e3, 0.0]])
    source, as_it = "DDIMScheduler", "is accepted, and a generator as generator="
    yield source, (generator,), {}, f"eta is a Generator; a number {as_it}"
    yield source, (), {"eta": "1"}, "eta is '1'; a number"
    yield source, (), {"eta": [generator]}, "eta is a list; a number"
    clipped = "use_clipped_model_output"
    yield source, (0.0, generator), {}, f"{clipped} is a Generator; False {as_it}"
    yield source, (0.0, 2.0), {}, f"{clipped} = 2.0 of {source} is not reproduced; False"
    yield source, (), {"eta": 1.5}, "eta = 1.5; a number from 0 to 1 is accepted"
    yield source, (0.0,), {"eta": 0.0}, "eta was given twice"
    too_many = (0.0, False, None, None, True, 1)
    yield source, too_many, {}, f"9 arguments by position; {source} takes model_output"
    source = "EulerDiscreteScheduler"
    yield source, (generator,), {}, "s_churn is a Generator"
    yield source, (0.0, 0.0, [generator]), {}, "s_tmax is a Generator"
    yield source, (), {"s_churn": -3.0}, f"s_churn = -3.0 of {source}; a number from 0 up"
    yield "EulerAncestralDiscreteScheduler", (0.0,), {}, "generator is 0.0; a torch.Generator"
    yield "LCMScheduler", (noise,), {}, "generator is a Tensor; a torch.Generator"
    yield "DPMSolverMultistepScheduler", (None, False), {}, "variance_noise is False; a tensor"
    source, name = "FlowMatchEulerDiscreteScheduler", "per_token_timesteps"
    yield source, (), {name: tokens}, "per_token_timesteps is [1, 2] for a sample of [1, 2, 4, 4]"
    yield source, (), {name: generator}, "per_token_timesteps is a Generator"
    source = "DPMSolverMultistepScheduler"
    yield source, (), {name: tokens}, "per_token_timesteps from 0 to 1000"
    yield "UniPCMultistepScheduler", (), {"gamma": 1.0}, "gamma is not known"


@pytest.mark.parametrize(("source", "places", "given", "sentence"), list(bad_calls()))
def test_what_lands_in_the_wrong_place_is_said(source, places, given, sentence):
    scheduler = FsScheduler.from_config(peer(source))
    good = last(copy.deepcopy(scheduler), generator=seeded())
    with pytest.raises((TypeError, ValueError)) as error:
        last(scheduler, *places, **given)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert torch.equal(last(scheduler, generator=seeded()), good)


def bad_timesteps():
    """(source, arguments of set_timesteps by position, of the scheduler by name, sentence)"""
    exact, source = {"compat": None}, "DDIMScheduler"
    strength = "strength = 0.5; 1.0, or compat='diffusers', is accepted"
    yield "LCMScheduler", (3, None, None, None, 0.5), exact, strength
    size = "num_train_timesteps = 500; None, or compat"
    yield "HeunDiscreteScheduler", (3, None, 500), exact, size
    places = f"3 arguments by position; {source} takes num_inference_steps, device"
    yield source, (3, None, [5, 1]), {}, places


@pytest.mark.parametrize(("source", "places", "given", "sentence"), list(bad_timesteps()))
def test_what_set_timesteps_does_not_take_is_said(source, places, given, sentence):
    with pytest.raises((TypeError, ValueError)) as error:
        FsScheduler(source=source, **given).set_timesteps(*places)
    assert sentence in str(error.value)
    with pytest.raises(TypeError, match="strength is not known to UniPCMultistepScheduler"):
        FsScheduler(source="UniPCMultistepScheduler").set_timesteps(3, strength=1.0)


def test_a_plan_takes_what_pipelines_hand():
    """Its own signature: generator and variance_noise by position, as the sources that draw have
    them; eta by name alone.
    """
    schedule = DiscreteVP.linear()
    grid = trailing(schedule, 4, rounded=True)
    scheduler = FsScheduler.from_plan(solvers.ddim(schedule, grid, prediction="eps", eta=1.0))
    names = list(inspect.signature(scheduler.step).parameters)
    order = "model_output timestep sample generator variance_noise return_dict"
    assert names[:6] == order.split() and "eta" in names
    named = last(scheduler, generator=seeded(), eta=0.0, use_clipped_model_output=None)
    assert torch.equal(last(scheduler, seeded()), named)
    with pytest.raises(TypeError, match="eta is a Generator"):
        last(scheduler, eta=seeded())
    with pytest.raises(TypeError, match="strength is not known to a plan"):
        scheduler.set_timesteps(4, strength=1.0)
    # classes differ from their second argument on
    with pytest.raises(TypeError, match="positional"):
        FsScheduler(1000, 3.0, source="FlowMatchEulerDiscreteScheduler")


def test_step_is_a_method_like_any_other():
    """It is pickled with its scheduler, hidden by what is set in its place, and of the class where
    no scheduler is.
    """
    scheduler = FsScheduler(source="DDIMScheduler")
    scheduler.set_timesteps(2)
    assert pickle.loads(pickle.dumps(scheduler.step)).__self__.config.source == "DDIMScheduler"
    scheduler.step = lambda *a: "mine"
    assert scheduler.step() == "mine"
    del scheduler.step
    x, twin = start(1, 2, 4, 4), copy.deepcopy(scheduler)
    assert torch.equal(FsScheduler.step(twin, x, 999, x)[0], scheduler.step(x, 999, x)[0])


def test_a_source_is_named_by_its_class_where_a_config_is_read():
    peer = diffusers.EulerDiscreteScheduler()
    for source in (diffusers.UniPCMultistepScheduler, "UniPCMultistepScheduler"):
        made = FsScheduler.from_config(peer.config, source=source)
        assert made.config.source == "UniPCMultistepScheduler"
        json.dumps(dict(made.config))
    with pytest.raises(TypeError, match="source is <class .*; the name of a diffusers class"):
        FsScheduler(source=diffusers.UniPCMultistepScheduler)


@pytest.mark.parametrize("source", ["DDIM", "EulerAncestralDiscrete", "DPMSolverSinglestep"])
@pytest.mark.parametrize("name", ["DDPM", "LCM", "DPMSolverMultistep"])
def test_what_nobody_set_is_the_sources_own_wherever_the_config_comes_from(name, source):
    """A config that was made here and not loaded names no class."""
    peer = getattr(diffusers, f"{name}Scheduler")()
    made = (FsScheduler.from_config(c, source=f"{source}Scheduler") for c in (peer, peer.config))
    of_peer, of_config = (dict(scheduler.config) for scheduler in made)
    assert of_peer == of_config
