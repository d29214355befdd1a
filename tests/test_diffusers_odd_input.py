"""What is no number, no list of times and no list of generators is refused in a sentence, whatever
the class; names that a class lacks are lacked without a crash.
"""

import inspect
from unittest import mock

import pytest
import torch

pytest.importorskip("diffusers")
import diffusers  # noqa: E402

from fastsample.interop.diffusers import FsScheduler  # noqa: E402

X = torch.ones(3, 1, 2, 2)


def made(name, **words):
    return FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")(), **words)


@pytest.mark.parametrize(
    ("name", "option", "value", "low"),
    [
        ("CogVideoXDDIM", "snr_shift_scale", None, 0),
        ("UnCLIP", "clip_sample_range", None, 0),
        ("DDPMWuerstchen", "s", -1.0, -1),
        ("DDPMWuerstchen", "s", float("nan"), -1),
        ("CosineDPMSolverMultistep", "sigma_min", None, 0),
        ("CosineDPMSolverMultistep", "sigma_min", 0.0, 0),
        ("EDMEuler", "sigma_max", float("inf"), 0),
        ("EDMDPMSolverMultistep", "rho", 0.0, 0),
    ],
)
def test_an_option_that_is_no_number_above_the_least(name, option, value, low):
    with pytest.raises(ValueError, match=f"FsScheduler: {option} = {value}; a number > {low} is"):
        made(name, **{option: value})


@pytest.mark.parametrize("name", ["CosineDPMSolverMultistep", "EDMEuler"])
@pytest.mark.parametrize("times", [["a"], [float("nan"), 0.2]])
def test_timesteps_of_edm_that_are_no_numbers(name, times):
    with pytest.raises(ValueError, match="set_timesteps: timesteps = .*a list of numbers"):
        made(name).set_timesteps(timesteps=times)


@pytest.mark.parametrize("name", ["SCM", "EDMEuler", "DDIM"])
@pytest.mark.parametrize(
    "times", [[[0.5, 0.2]], 5, "a", torch.ones(1, 2), torch.tensor(5.0), torch.ones(1, 2).half()]
)
def test_timesteps_that_are_not_one_list(name, times):
    with pytest.raises(ValueError, match="timesteps or sigmas = .*; one list of numbers is acc"):
        made(name).set_timesteps(timesteps=times)


@pytest.mark.parametrize("times", [[1.0, 0.5], [2.0, 0.2], [0.9, -0.2], [0.5, 0.0]])
def test_an_angle_beyond_all_levels(times):
    with pytest.raises(ValueError, match="falling numbers between 0 and 1, ends excluded"):
        made("CosineDPMSolverMultistep").set_timesteps(timesteps=times)


@pytest.mark.parametrize("name", ["EDMEuler", "EDMDPMSolverMultistep"])
@pytest.mark.parametrize("times", [[900, 500, 100], [900, 0.5], [0.5, -900]])
def test_what_no_level_of_edm_is_told(name, times):
    """A trained index, as other classes count, in place of ln(sigma)/4."""
    said = r"timesteps \[.*accepted, ln.sigma./4: 1.096 at sigma_max, -1.554 at sigma_min"
    with pytest.raises(ValueError, match=said):
        made(name).set_timesteps(timesteps=times)


@pytest.mark.parametrize("name", ["UnCLIP", "DDPMWuerstchen", "SCM"])
def test_more_steps_than_a_plan_has(name):
    with pytest.raises(ValueError, match="1000000 steps; at most 65535 are accepted"):
        made(name).set_timesteps(10**6)


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_generators_of_a_path_are_one_for_each_sample(count):
    ours = made("CosineDPMSolverMultistep")
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match=f"a list of {count}, {count} .* for 3 samples"):
        ours.step(X, ours.timesteps[0], X, [torch.Generator() for _ in range(count)])
    with pytest.raises(ValueError, match="a list of 3, 0 of them"):
        ours.step(X, ours.timesteps[0], X, [None] * 3)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "SCM", "PNDM"])
def test_every_member_can_be_asked_for(name):
    ours = made(name)
    for _ in range(2):
        assert ("step_prk" in dict(inspect.getmembers(ours))) == (name == "PNDM")
        assert mock.Mock(spec=ours).step
        ours.set_timesteps(5)


def test_who_writes_to_the_history_is_told_what_is_accepted():
    ours = made("DPMSolverMultistep")
    assert not hasattr(ours, "_init_step_index")
    with pytest.raises(AttributeError, match="as LEDITS.+ does, from_config with source=.DDIMSch"):
        ours._init_step_index(0)
