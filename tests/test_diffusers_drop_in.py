"""The drop-in keeps the pictures: a peer's config in, by whatever door, the peer's own samples out;
and what is said where it cannot.
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
from fastsample.schedules import DiscreteVP
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
QUIET = "ignore::DeprecationWarning", "ignore::FutureWarning"  # diffusers' own
pytestmark = pytest.mark.filterwarnings("error::UserWarning", *QUIET)
FsScheduler = fastsample.FsScheduler
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = SD | {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}
ZERO_SNR = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
ZERO_SNR |= {"prediction_type": "v_prediction"}
WAN = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
LEADING = SD | {"timestep_spacing": "leading", "steps_offset": 1}
KARRAS = SD | {"use_karras_sigmas": True}
NAMES = """DDIM DDPM LCM EulerDiscrete EulerAncestralDiscrete HeunDiscrete DPMSolverMultistep
    DPMSolverSinglestep UniPCMultistep FlowMatchEulerDiscrete"""
CLASSES = [f"{name}Scheduler" for name in NAMES.split()]
TRAINED = "beta_start", "beta_end", "beta_schedule", "prediction_type", "clip_sample"
PUBLISHED = [
    *((source, {}) for source in CLASSES),
    ("PNDMScheduler", SD15),
    ("DDIMScheduler", ZERO_SNR | {"clip_sample": False}),
    ("LCMScheduler", SD | {"clip_sample": False}),
    ("DDIMScheduler", SD | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("EulerDiscreteScheduler", LEADING),
    ("EulerAncestralDiscreteScheduler", LEADING),
    ("EulerDiscreteScheduler", ZERO_SNR),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("DPMSolverMultistepScheduler", KARRAS | {"algorithm_type": "dpmsolver++"}),
    ("DPMSolverMultistepScheduler", KARRAS | {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3, "timestep_spacing": "trailing"}),
    ("UniPCMultistepScheduler", WAN),
    ("UniPCMultistepScheduler", WAN | {"use_karras_sigmas": True}),
    ("DDIMScheduler", {"timestep_spacing": "linspace"}),
]


def model(x, t):
    gain = 1 + 0.1 * np.sin(0.017 * float(t))
    return torch.tanh(0.7 * x + torch.sin(x.roll(1, -1))) * gain + 0.2 * x


def walk(scheduler, x, steps, begin=0):
    """(end, sum of the sizes of the states) of a pipeline's loop."""
    scheduler.set_timesteps(steps)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x, sizes = x * float(getattr(scheduler, "init_noise_sigma", 1.0)), 0.0
    takes = "generator" in inspect.signature(scheduler.step).parameters
    given = {"generator": torch.Generator().manual_seed(3)} if takes else {}
    for t in scheduler.timesteps[begin:]:
        sizes += float(x.abs().max())
        told = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(told, t), t, x, **given, return_dict=False)[0]
    return x, sizes + float(x.abs().max())


@pytest.mark.parametrize(
    ("source", "config"),
    PUBLISHED,
    ids=[f"{s}-{'-'.join(map(str, c.values()))}" for s, c in PUBLISHED],
)
def test_the_peers_pictures(source, config):
    """At 1 to 50 steps and from the middle. Bound: 16 float32 roundings of every state, through
    what a loop makes of a moved start.
    """
    ours = FsScheduler.from_config(getattr(diffusers, source)(**config))
    assert ours.config.compat == "diffusers"
    for steps, begin in ((1, 0), (2, 0), (6, 0), (20, 0), (50, 0), (20, 8)):
        theirs = getattr(diffusers, source)(**config)
        x = start(1, 3, 8, 8)
        a, sizes = walk(theirs, x, steps, begin)
        b, moved = (walk(ours, y, steps, begin)[0] for y in (x, x * (1 + 1e-3)))
        growth = max(1.0, float((moved - b).abs().max()) / (1e-3 * float(x.abs().max())))
        assert (a - b).abs().max() <= 16 * np.finfo(np.float32).eps * sizes * growth


def saved(scheduler, path):
    scheduler.save_pretrained(path)
    return FsScheduler.from_pretrained(path)


def as_json(scheduler):
    return FsScheduler.from_config(json.loads(scheduler.to_json_string()))


def by_way_of_euler(peer):
    """A peer made from the config of ours, which was another class's."""
    other = FsScheduler.from_config(peer, source="EulerDiscreteScheduler", compat=None)
    return FsScheduler.from_config(type(peer).from_config(other.config, **peer.config))


DOORS = {
    "scheduler": lambda peer, path: FsScheduler.from_config(peer),
    "config": lambda peer, path: FsScheduler.from_config(peer.config, source=type(peer).__name__),
    "json": lambda peer, path: as_json(peer),
    "constructor": lambda peer, path: FsScheduler(source=type(peer).__name__, **peer.config),
    "peer's folder": saved,
    "own config": lambda peer, path: FsScheduler.from_config(FsScheduler.from_config(peer).config),
    "own json": lambda peer, path: as_json(FsScheduler.from_config(peer)),
    "own folder": lambda peer, path: saved(FsScheduler.from_config(peer), path),
    "copy": lambda peer, path: copy.deepcopy(FsScheduler.from_config(peer)),
    "pickle": lambda peer, path: pickle.loads(pickle.dumps(FsScheduler.from_config(peer))),
    "a peer made from ours": lambda peer, path: by_way_of_euler(peer),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("source", "config"), [("DDIMScheduler", {}), ("PNDMScheduler", SD15)])
def test_every_door_keeps_them(door, source, config, tmp_path):
    peer = getattr(diffusers, source)(**config)
    made = DOORS[door](peer, tmp_path)
    assert (made.config.source, made.config.compat) == (source, "diffusers")
    x = start(1, 3, 8, 8)
    compat, exact = (FsScheduler.from_config(peer, compat=c) for c in ("diffusers", None))
    a, b, c = (loop(scheduler, x, 6, model) for scheduler in (made, compat, exact))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_exact_is_asked_for_and_stays(tmp_path):
    """compat=None is told from nothing given, after save and load too; a plan has none."""
    peer = diffusers.DDIMScheduler()
    exact = FsScheduler.from_config(peer, compat=None)
    exact.save_pretrained(tmp_path)
    for made in (
        exact,
        FsScheduler.from_pretrained(tmp_path),
        FsScheduler.from_config(exact.config),
        FsScheduler.from_config(exact),
        copy.deepcopy(exact),
        pickle.loads(pickle.dumps(exact)),
        FsScheduler(compat=None),
    ):
        assert made.config.compat is None
    assert FsScheduler().config.compat == FsScheduler(compat="auto").config.compat == "diffusers"
    assert FsScheduler.from_config(exact.config, compat="auto").config.compat == "diffusers"
    schedule = DiscreteVP.linear()
    planned = FsScheduler.from_plan(solvers.ddim(schedule, trailing(schedule, 4), prediction="eps"))
    planned.save_pretrained(tmp_path)
    assert planned.config.compat is FsScheduler.from_pretrained(tmp_path).config.compat is None
    with pytest.raises(ValueError, match="compat = 'diffusers'; a plan is exact, None is accepted"):
        FsScheduler.from_config(planned.config, compat="diffusers")


def exact_configs():
    """(config, what cannot be done with it)"""
    unmade = "itself cannot be made with this config"
    name = "DPMSolverMultistepScheduler"
    yield {"beta_schedule": "sigmoid"}, f"{name} {unmade} .NotImplementedError"


@pytest.mark.parametrize(("config", "what"), list(exact_configs()))
def test_a_config_that_cannot_be_reproduced_is_exact_with_one_warning(config, what, tmp_path):
    with pytest.warns(UserWarning, match=what) as said:
        made = FsScheduler(**config)
    assert len(said) == 1 and "every run is exact instead" in str(said[0].message)
    assert said[0].filename == __file__
    assert made.config.compat is None
    made.set_timesteps(2)
    # as it became, and without a second warning
    assert saved(made, tmp_path).config.compat is None
    copy.deepcopy(made)


FLOWING = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parametrize(
    ("config", "steps", "what"),
    [
        ({}, {"sigmas": [14.0, 3.0, 0.5, 0.0]}, "takes no sigmas"),
        ({"source": "DDIMScheduler"}, {"timesteps": [900, 500, 100]}, "takes no timesteps"),
        (FLOWING, {"timesteps": [900, 500, 100]}, "fails there .TypeError"),
    ],
)
def test_a_run_that_cannot_be_reproduced_is_exact_with_one_warning(config, steps, what):
    kinds = ("auto", None, "diffusers")
    scheduler, exact, strict = (FsScheduler(**config, compat=c) for c in kinds)
    with pytest.warns(UserWarning, match=what) as said:
        scheduler.set_timesteps(**steps)
    said = [w for w in said if w.category is UserWarning]  # the class divides by 0 on the way
    assert len(said) == 1 and "this run is exact instead" in str(said[0].message)
    assert said[0].filename == __file__
    exact.set_timesteps(**steps)
    assert scheduler.plan.to_bytes() == exact.plan.to_bytes()
    assert scheduler.init_noise_sigma == exact.init_noise_sigma
    with pytest.raises(ValueError, match="compat=None"):
        strict.set_timesteps(**steps)
    ends = [
        loop(s, start(1, 3, 8, 8), 6, model, generator=torch.Generator().manual_seed(1))
        for s in (scheduler, strict)
    ]
    assert torch.equal(*ends)  # the next run is the peer's again


def test_exact_plms_meets_its_schedule_and_its_order():
    """Rows leave x on the schedule (1e-9, the makers' own check); on a smooth model PLMS converges,
    v as eps.
    """
    x = start(1, 3, 8, 8, dtype=torch.float64)
    config = SD15 | {"timestep_spacing": "trailing", "source": "PNDMScheduler", "compat": None}

    def ends(kind, steps):
        """One model in two words: eps, or v = alpha eps - sigma x0 of the same eps."""
        scheduler = FsScheduler(**config, prediction_type=kind)
        table = scheduler.alphas_cumprod.double()

        def told(x, t):
            alpha, sigma = table[int(t)].sqrt(), (1 - table[int(t)]).sqrt()
            eps = model(x, t)
            return eps if kind == "epsilon" else (eps - sigma * x) / alpha

        return loop(scheduler, x, steps, told), scheduler

    (a, scheduler), (b, _) = ends("epsilon", 20), ends("v_prediction", 20)
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)  # the float32 table above
    assert scheduler.plan.consistency() < 1e-9
    assert scheduler.num_inference_steps == 20 and len(scheduler.timesteps) == 21
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(1)
    y = x
    for t in scheduler.timesteps[1:]:
        y = scheduler.step(model(y, t), t, y)[0]
    assert scheduler.plan.nfe == 21 and torch.isfinite(y).all()


@pytest.mark.parametrize("begin", [None, 2])
@pytest.mark.parametrize("source", [*CLASSES, "PNDMScheduler"])
def test_add_noise_goes_where_the_peers_goes(source, begin):
    """During a run and after it: by timesteps, as noise initialisation does after a run, or by the
    running step of a begin index.
    """
    config = SD15 if source.startswith("PNDM") else {}
    peer = getattr(diffusers, source)(**config)
    x, z = (start(2, 3, 4, 4, seed=k) for k in (0, 1))

    def noised(scheduler):
        at = scheduler.timesteps[[1, 4]]
        if hasattr(scheduler, "add_noise"):
            return scheduler.add_noise(x, z, at)
        return scheduler.scale_noise(x, at, z)  # FlowMatchEuler's word

    def added(scheduler):
        """What add_noise gives before every step, and after the last."""
        scheduler.set_timesteps(6)
        if begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        for t in scheduler.timesteps[begin or 0 :]:
            yield noised(scheduler)
            scheduler.step(x, t, x)
        yield noised(scheduler)

    ends = (torch.stack([*added(s)]) for s in (peer, FsScheduler.from_config(peer)))
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "config", "given"),
    [
        ("EulerAncestralDiscreteScheduler", {}, {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
        ("DDIMScheduler", {}, {"eta": 0.5}),
        ("DDIMScheduler", {}, {}),
        ("LCMScheduler", {}, {}),
        ("DDPMScheduler", {}, {}),
        ("DDPMScheduler", SD | {"timestep_spacing": "trailing"}, {}),
        ("EulerDiscreteScheduler", {}, {}),
    ],
)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_next_picture_of_one_generator_is_the_peers_too(source, config, given, steps):
    """A run draws as often as the source's own, its last noise, multiplied by 0, included: from a
    generator, and from torch's own.
    """
    peer, left = getattr(diffusers, source)(**config), []
    for scheduler in (peer, FsScheduler.from_config(peer)):
        generator = torch.Generator().manual_seed(3)
        torch.manual_seed(3)
        loop(scheduler, start(1, 2, 4, 4), steps, model, generator=generator, **given)
        loop(scheduler, start(1, 2, 4, 4), steps, model, **given)
        left.append(torch.stack([generator.get_state(), torch.get_rng_state()]))
    assert torch.equal(*left)


@pytest.mark.parametrize("target", CLASSES)
@pytest.mark.parametrize(
    ("source", "config"),
    [
        ("DDIMScheduler", {"clip_sample": False}),
        ("HeunDiscreteScheduler", {"beta_end": 0.02}),
        ("LCMScheduler", {}),
        ("PNDMScheduler", SD15),
        ("DPMSolverSinglestepScheduler", {"solver_order": 2}),
        ("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
    ],
)
def test_another_class_reads_a_config_of_ours_as_the_sources(source, config, target):
    """What nobody gave is the other class's own default, on the way in, on the way back, and from
    what was saved; but what the model was trained for is the source's on the way in.
    """
    peer, other = (getattr(diffusers, name) for name in (source, target))
    peer = peer(**config)
    ours = FsScheduler.from_config(peer)
    names = inspect.signature(other.__init__).parameters.keys() - {"self"}
    texts = [json.loads(s.to_json_string()) for s in (peer, ours)]
    trained = {"clip_sample": False} | {k: v for k, v in peer.config.items() if k in TRAINED}
    for theirs, mine in ((peer.config, ours.config), texts):
        want = dict(other.from_config(theirs).config)
        assert all(other.from_config(mine).config[name] == want[name] for name in names)
        if target == "FlowMatchEulerDiscreteScheduler" or want.get("variance_type", 0) is None:
            continue
        want |= trained
        # solver_type is told in the class's own words
        read = [FsScheduler.from_config(c, source=target)._settings for c in (theirs, mine)]
        assert all(config[name] == want[name] for config in read for name in names)


@pytest.mark.parametrize(
    ("source", "config", "edit"),
    [
        ("DDIMScheduler", {}, {"steps_offset": 1}),
        ("DDIMScheduler", {}, {"clip_sample": False}),
        ("PNDMScheduler", SD15, {"steps_offset": 0}),
        ("EulerDiscreteScheduler", {}, {"timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {}, {"prediction_type": "v_prediction"}),
        ("DPMSolverMultistepScheduler", {}, {"use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {}, {"final_sigmas_type": "sigma_min"}),
    ],
)
@pytest.mark.parametrize("way", ["register_to_config", "another dict"])
def test_a_config_edited_later_is_the_one_that_is_run(source, config, edit, way):
    """As pipelines edit it when they are made: the Stable Diffusion ones set steps_offset and
    clip_sample.
    """
    peer = getattr(diffusers, source)(**config)
    ours, ends = FsScheduler.from_config(peer), []
    plain = loop(ours, start(1, 3, 8, 8), 6, model)
    for scheduler in (peer, ours):
        if way == "register_to_config":
            scheduler.register_to_config(**edit)
        else:
            scheduler._internal_dict = type(scheduler.config)({**scheduler.config, **edit})
        ends.append(loop(scheduler, start(1, 3, 8, 8), 6, model))
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, ends[1], rtol=1e-2)
    for made in (
        FsScheduler.from_config(peer),
        FsScheduler.from_config(peer.config),
        FsScheduler.from_config(peer.config, source=source),
        FsScheduler.from_config(ours),
        FsScheduler.from_config(ours.config),
        copy.deepcopy(ours),
    ):
        assert torch.equal(loop(made, start(1, 3, 8, 8), 6, model), ends[1])
    ours.register_to_config(num_train_timesteps=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="num_train_timesteps = 0;"):
            ours.set_timesteps(4)
