"""FsScheduler takes arguments where the source class takes them: positions, signatures, and what
lands in the wrong place.
"""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch

import fastsample
from fastsample import solvers
from fastsample.grids import trailing
from fastsample.interop.diffusers_sources import SOURCES
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
    for method in (
        FsScheduler.from_config(ours.config),
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        ours,
    ):
        assert inspect.signature(method.step) == inspect.signature(theirs.step)
    own, said = (inspect.signature(s.set_timesteps).parameters for s in (theirs, ours))
    assert list(said)[: len(own)] == list(own) and all(said[name] == own[name] for name in own)
    extra = {
        name for name in ("timesteps", "sigmas") if name not in own
    }  # pipelines look for them: exact runs take any list
    assert said.keys() - own.keys() == (extra if compat is None else set())
    assert all(
        said[name].kind is inspect.Parameter.KEYWORD_ONLY for name in said.keys() - own.keys()
    )


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
    named.set_timesteps(
        **dict(zip(inspect.signature(theirs.set_timesteps).parameters, places, strict=False))
    )
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(
        ours.timesteps, named.timesteps
    )


def test_neutral_arguments_are_taken():
    """DDIMPipeline hands use_clipped_model_output, LTXConditionPipeline per_token_timesteps and the
    negated output.
    """
    ddim = FsScheduler.from_config(diffusers.DDIMScheduler())
    plain = last(ddim, eta=0.0)
    assert torch.equal(last(ddim, eta=0, use_clipped_model_output=None, generator=None), plain)
    loose = FsScheduler.from_config(diffusers.DDIMScheduler(clip_sample=False))
    assert torch.equal(
        last(loose, use_clipped_model_output=True), last(loose)
    )  # nothing is clipped
    euler, flow = (
        FsScheduler(source=f"{name}DiscreteScheduler") for name in ("Euler", "FlowMatchEuler")
    )
    assert torch.equal(last(euler, s_tmin=0.5, s_noise=1.003), last(euler))  # read by churn alone
    assert torch.equal(last(flow, s_churn=5.0), last(flow))  # FlowMatchEuler never reads it
    x = start(2, 6, 3)
    pairs = [diffusers.FlowMatchEulerDiscreteScheduler(), flow]
    ends = []
    for scheduler in pairs:
        scheduler.set_timesteps(4)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(
                -network(y, t), t, y, per_token_timesteps=t.expand(2, 6), return_dict=False
            )[0]
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
    generator, noise = seeded(), torch.zeros(1, 2, 4, 4)
    yield (
        "DDIMScheduler",
        (generator,),
        {},
        "eta is a Generator; a number is accepted, and a generator as generator=",
    )
    yield "DDIMScheduler", (), {"eta": "1"}, "eta is '1'; a number"
    yield "DDIMScheduler", (), {"eta": [generator]}, "eta is a list; a number"
    yield (
        "DDIMScheduler",
        (0.0, generator),
        {},
        "use_clipped_model_output is a Generator; False is accepted, and a generator as generator=",
    )
    yield (
        "DDIMScheduler",
        (0.0, True),
        {},
        "use_clipped_model_output = True of DDIMScheduler is not reproduced; False",
    )
    yield "DDIMScheduler", (), {"eta": 1.5}, "eta = 1.5; a number from 0 to 1 is accepted"
    yield "DDIMScheduler", (0.0,), {"eta": 0.0}, "eta was given twice"
    yield (
        "DDIMScheduler",
        (0.0, False, None, None, True, 1),
        {},
        "9 arguments by position; DDIMScheduler takes model_output",
    )
    yield "EulerDiscreteScheduler", (generator,), {}, "s_churn is a Generator"
    yield "EulerDiscreteScheduler", (0.0, 0.0, [generator]), {}, "s_tmax is a Generator"
    yield (
        "EulerDiscreteScheduler",
        (),
        {"s_churn": 3.0},
        "s_churn = 3.0 of EulerDiscreteScheduler is not reproduced; 0.0",
    )
    yield "EulerAncestralDiscreteScheduler", (0.0,), {}, "generator is 0.0; a torch.Generator"
    yield "LCMScheduler", (noise,), {}, "generator is a Tensor; a torch.Generator"
    yield "DPMSolverMultistepScheduler", (None, False), {}, "variance_noise is False; a tensor"
    yield (
        "FlowMatchEulerDiscreteScheduler",
        (),
        {"per_token_timesteps": torch.tensor([[1e3, 0.0]])},
        "per_token_timesteps from 0 to 1000",
    )
    yield (
        "FlowMatchEulerDiscreteScheduler",
        (),
        {"per_token_timesteps": generator},
        "per_token_timesteps is a Generator",
    )
    yield "UniPCMultistepScheduler", (), {"gamma": 1.0}, "gamma is not known"


@pytest.mark.parametrize(("source", "places", "given", "sentence"), list(bad_calls()))
def test_what_lands_in_the_wrong_place_is_said(source, places, given, sentence):
    scheduler = FsScheduler.from_config(peer(source))
    good = last(copy.deepcopy(scheduler), generator=seeded())
    with pytest.raises((TypeError, ValueError)) as error:
        last(scheduler, *places, **given)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert torch.equal(last(scheduler, generator=seeded()), good)


@pytest.mark.parametrize(
    ("source", "places", "given", "sentence"),
    [
        (
            "LCMScheduler",
            (3, None, None, None, 0.5),
            {"compat": None},
            "strength = 0.5; 1.0, or compat='diffusers', is accepted",
        ),
        (
            "HeunDiscreteScheduler",
            (3, None, 500),
            {"compat": None},
            "num_train_timesteps = 500; None, or compat",
        ),
        (
            "DDIMScheduler",
            (3, None, [5, 1]),
            {},
            "3 arguments by position; DDIMScheduler takes num_inference_steps, device",
        ),
    ],
)
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
    scheduler = FsScheduler.from_plan(
        solvers.ddim(schedule, trailing(schedule, 4, rounded=True), prediction="eps", eta=1.0)
    )
    names = list(inspect.signature(scheduler.step).parameters)
    assert (
        names[:6]
        == ["model_output", "timestep", "sample", "generator", "variance_noise", "return_dict"]
        and "eta" in names
    )
    drawn = last(scheduler, seeded())
    assert torch.equal(
        drawn, last(scheduler, generator=seeded(), eta=0.0, use_clipped_model_output=None)
    )
    with pytest.raises(TypeError, match="eta is a Generator"):
        last(scheduler, eta=seeded())
    with pytest.raises(TypeError, match="strength is not known to a plan"):
        scheduler.set_timesteps(4, strength=1.0)
    with pytest.raises(
        TypeError, match="positional"
    ):  # classes differ from their second argument on
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
    x = start(1, 2, 4, 4)
    assert torch.equal(
        FsScheduler.step(copy.deepcopy(scheduler), x, 999, x)[0], scheduler.step(x, 999, x)[0]
    )
