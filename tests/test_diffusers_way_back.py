"""What a moved scheduler keeps for the class it came from, and how classes of somebody's own are
read.
"""

import inspect

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:FsScheduler"
)
FsScheduler = fastsample.FsScheduler
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ROADS = [
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, "HeunDiscrete"),
    ("FlowMatchEulerDiscrete", {"shift": 3.0, "use_dynamic_shifting": True}, "DPMSolverMultistep"),
    ("UniPCMultistep", {"flow_shift": 5.0}, "FlowMatchEulerDiscrete"),
    ("DPMSolverMultistep", {"flow_shift": 3.0}, "LCM"),
    ("PNDM", SD | {"skip_prk_steps": True, "steps_offset": 1}, "DPMSolverSinglestep"),
    ("DDIM", SD | {"clip_sample": False, "set_alpha_to_one": False}, "EulerDiscrete"),
    ("DDPM", {"thresholding": True, "variance_type": "fixed_large"}, "EulerAncestralDiscrete"),
    ("EulerDiscrete", SD | {"use_karras_sigmas": True}, "DDIM"),
]


def of(name, **config):
    if "flow_shift" in config:
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    return getattr(diffusers, f"{name}Scheduler")(**config)


def has_options_of(scheduler, peer, but=()):
    mine, theirs = scheduler.config, peer.config
    return all(mine[k] == v for k, v in theirs.items() if k[:1] != "_" and k not in but)


@pytest.mark.parametrize("name, config, over", ROADS)
def test_the_class_that_it_came_from_has_its_options_again(name, config, over, tmp_path):
    """pipe.scheduler = Class.from_config(pipe.scheduler.config), as with a scheduler of diffusers
    in between; through a file and through an FsScheduler too.
    """
    peer = of(name, **config)
    scheduler = FsScheduler.from_config(peer, source=f"{over}Scheduler")
    scheduler.save_pretrained(tmp_path)
    # a file says its own class's defaults as if somebody had set them
    own = inspect.signature(getattr(diffusers, f"{over}Scheduler")).parameters
    for between, but in ((scheduler, ()), (FsScheduler.from_pretrained(tmp_path), own)):
        assert has_options_of(type(peer).from_config(between.config), peer, but)
        assert has_options_of(FsScheduler.from_config(between, source=type(peer)), peer, but)


def test_the_shift_that_stands_is_the_one_that_goes_back():
    scheduler = FsScheduler.from_config(
        of("FlowMatchEulerDiscrete", shift=3.0), source="UniPCMultistepScheduler", shift=6.0
    )
    assert (scheduler.config.flow_shift, scheduler.config["shift"]) == (6.0, 6.0)
    scheduler = FsScheduler.from_config(scheduler, flow_shift=8.0)
    assert diffusers.FlowMatchEulerDiscreteScheduler.from_config(scheduler.config).config.shift == 8
    s, sigmas = np.linspace(1.0, 0.001, 5)[:-1], 8.0 / (7.0 + 1.0 / np.linspace(1.0, 0.001, 5)[:-1])
    scheduler.set_timesteps(4)
    assert np.allclose(sigmas, 8.0 * s / (1.0 + 7.0 * s))
    assert np.allclose(scheduler.sigmas[:-1], sigmas, atol=2e-6)


def own(name, **words):
    """A class that somebody made of diffusers' and changed nothing in."""
    base = getattr(diffusers, f"{name}Scheduler")
    made = type(
        f"My{name}", (base,), {"__init__": lambda self, *a, **k: base.__init__(self, *a, **k)}
    )
    return made(**words)


@pytest.mark.parametrize(
    "name, words, source",
    [
        ("DDIM", SD | {"clip_sample": False}, "DDIM"),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, "FlowMatchEulerDiscrete"),
        ("CogVideoXDDIM", {}, "CogVideoXDDIM"),
    ],
)
def test_a_class_of_ones_own_is_read_as_the_one_it_is_made_of_where_that_is_said(
    name, words, source
):
    mine, theirs = own(name, **words), of(name, **words)
    said = (
        f"FsScheduler: My{name} is not reproduced; from_config with source='{source}Scheduler', "
        "which runs on its noise schedule, is accepted"
    )
    with pytest.raises(ValueError) as refused:
        FsScheduler.from_config(mine)
    assert str(refused.value) == said
    x = start(1, 3, 4, 4)
    pair = [FsScheduler.from_config(s, source=f"{source}Scheduler") for s in (mine, theirs)]
    assert torch.equal(*(loop(scheduler, x, 5) for scheduler in pair))


def test_levels_that_a_class_of_ones_own_has_changed_move_along():
    class Squared(diffusers.DDIMScheduler):
        def __init__(self, *args, **words):
            super().__init__(*args, **words)
            self.alphas_cumprod = self.alphas_cumprod**2

    assert list(inspect.signature(Squared).parameters) == ["args", "words"]
    scheduler = FsScheduler.from_config(Squared(clip_sample=False), source="DDIMScheduler")
    want = diffusers.DDIMScheduler().alphas_cumprod.double() ** 2
    assert torch.allclose(scheduler.alphas_cumprod.double(), want, rtol=1e-4)
    assert scheduler.config.clip_sample is False


WAN = {"_class_name": "FlowUniPCMultistepScheduler", "shift": 3.0, "solver_order": 2}


@pytest.mark.parametrize(
    "config, source, said",
    [
        (WAN, "UniPCMultistep", "FlowUniPCMultistepScheduler has shift = 3.0 and UniPC"),
        (WAN, "HeunDiscrete", "shift = 3.0 and HeunDiscreteScheduler would have 1.0"),
        ({"_class_name": "Mine", "snr_shift_scale": 3.0}, "DDIM", "snr_shift_scale = 3.0"),
        ({"_class_name": "Mine", "sigma_data": 1.0}, "EulerDiscrete", "sigma_data = 1.0 and"),
        ({"shift": 3.0, "mine": 1}, "DDIM", "a config without a class has shift = 3.0"),
    ],
)
def test_what_a_config_of_an_unknown_class_says_is_not_dropped(config, source, said):
    with pytest.raises(ValueError, match=f"FsScheduler.from_config: .*{said}") as refused:
        FsScheduler.from_config(config, source=f"{source}Scheduler")
    assert str(refused.value).endswith(f"a config in the words of {source}Scheduler is accepted")


def test_a_config_of_an_unknown_class_is_read_in_the_words_of_the_source():
    flags = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    made = [
        FsScheduler.from_config(WAN, source="UniPCMultistepScheduler", **flags),
        FsScheduler.from_config(WAN | {"mine": 1}, source="FlowMatchEulerDiscreteScheduler"),
    ]
    assert (made[0].config.flow_shift, made[1].config.shift, made[1].config.mine) == (3.0, 3.0, 1)
    for scheduler in made:
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
        assert np.allclose(scheduler.sigmas, [1.0, 0.75, 0.0])


@pytest.mark.parametrize("target", ["PNDM", "EulerAncestralDiscrete"])
def test_a_prediction_that_the_class_has_not_is_no_advice_to_take_another(target):
    peer = of("DDPM", prediction_type="sample", clip_sample=False)
    with pytest.raises(ValueError) as refused:
        FsScheduler.from_config(peer, source=f"{target}Scheduler")
    assert str(refused.value) == (
        "FsScheduler.from_config: DDPMScheduler has prediction_type = 'sample' and "
        f"{target}Scheduler takes epsilon or v_prediction there; source='DDPMScheduler' is accepted"
    )
    assert FsScheduler.from_config(peer, source="DDPMScheduler").config.prediction_type == "sample"


ZERO = SD | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}


@pytest.mark.parametrize("compat", ["auto", None])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_zero_terminal_snr_where_a_solver_divides_by_alpha(kind, compat):
    source = "PNDM"
    words = {"source": f"{source}Scheduler", "compat": compat}
    peer = of("DDIM", **ZERO, prediction_type=kind)
    with pytest.raises(ValueError) as refused:
        FsScheduler.from_config(peer, **words).set_timesteps(8)
    assert str(refused.value) == (
        "FsScheduler.set_timesteps: timestep 999 has zero terminal SNR, alpha = 0, by which "
        f"{source}Scheduler divides with prediction_type = {kind!r}; timestep_spacing='leading', "
        "which begins below it, is accepted"
    )
    scheduler = FsScheduler.from_config(peer, timestep_spacing="leading", **words)
    assert bool(loop(scheduler, start(1, 3, 4, 4), 8).isfinite().all())


@pytest.mark.parametrize("compat", ["auto", None])
@pytest.mark.parametrize("source", ["DDIM", "DDPM", "PNDM"])
def test_an_offset_beyond_the_last_timestep_is_said(source, compat):
    words = {"skip_prk_steps": True} if source == "PNDM" else {}
    peer = of(source, **SD, timestep_spacing="leading", steps_offset=1, **words)
    scheduler = FsScheduler.from_config(peer, compat=compat)
    with pytest.raises(ValueError) as refused:
        scheduler.set_timesteps(1000)
    assert str(refused.value) == (
        f"FsScheduler.set_timesteps: timestep 1000 of {source}Scheduler, with steps_offset = 1, is "
        "beyond 999; fewer steps are accepted"
    )
    scheduler.set_timesteps(500)
    assert int(scheduler.timesteps[0]) == 999
