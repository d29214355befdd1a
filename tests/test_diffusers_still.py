"""Steps of length 0: levels that repeat, by more steps than timesteps, by a list, by a table whose
float32 entries are equal. As the class takes them; where it divides by 0, as the limit has them.
LCM's step to its own level, which ends a list of timesteps that strength cut.
"""

import numpy as np
import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()

pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
FEW = {"num_train_timesteps": 10}
# betas of 1e-9: a level three times, and sigma = 0 three times at the data end
MIDDLE = FEW | {"trained_betas": [1e-2] * 3 + [1e-9] * 3 + [1e-2] * 4}
END = FEW | {"trained_betas": [1e-9] * 3 + [1e-2] * 7}
FREE = {"DDIM": {"clip_sample": False}, "DDPM": {"clip_sample": False}}
FREE |= {"LCM": {"clip_sample": False, "original_inference_steps": 10}}
DRAWING = ("DDPM", "LCM", "EulerAncestralDiscrete")
MULTISTEP = ("DPMSolverMultistep", "UniPCMultistep")
LEVELLED = ("HeunDiscrete", "EulerAncestralDiscrete", "EulerDiscrete")
REPEATED = [
    *((name, MIDDLE, 7) for name in ("DDIM", "DDPM", "LCM", *LEVELLED)),
    *((name, MIDDLE, 10) for name in ("LCM", *LEVELLED)),
    ("LCM", END, 7),
    *((name, FEW | {"timestep_spacing": "trailing"}, 15) for name in LEVELLED),
    *(("HeunDiscrete", {}, [900, *pair, 200]) for pair in ((500, 500), (500, 200))),
]
DIVIDED = [
    *((name, END, 7) for name in ("DDIM", "DDPM", *LEVELLED)),
    *(
        (name, table, 7)
        for name in ("DPMSolverMultistep", "UniPCMultistep")
        for table in (END, MIDDLE)
    ),
    *((name, FEW | {"timestep_spacing": "leading"}, 15) for name in LEVELLED),  # an IndexError
    ("HeunDiscrete", {}, [900, 900, 500, 200]),
]


def both(name, config):
    peer = getattr(diffusers, f"{name}Scheduler")(**FREE.get(name, {}) | config)
    return peer, fs.FsScheduler.from_config(peer, compat="diffusers")


def model(x, t):
    return 0.3 * torch.tanh(x) + 0.0002 * t


def walk(name, scheduler, steps, edit=None, **given):
    """(states, the generator's state) of a loop of so many steps, or over these timesteps."""
    listed = isinstance(steps, list)
    scheduler.set_timesteps(**{"timesteps" if listed else "num_inference_steps": steps}, **given)
    generator = torch.Generator().manual_seed(3)
    drawn = {"generator": generator} if name in DRAWING else {}
    x, states = X * float(getattr(scheduler, "init_noise_sigma", 1.0)), []
    for t in scheduler.timesteps:
        asked = scheduler.scale_model_input(x, t)
        x = scheduler.step(model(asked, t), t, x, **drawn).prev_sample
        states.append(x)
        x = x if edit is None else edit(x)
    return torch.stack(states), generator.get_state()


def assert_alike(name, config, steps, **given):
    peer, ours = both(name, config)
    (theirs, drawn), (states, own) = (walk(name, s, steps, **given) for s in (peer, ours))
    assert torch.equal(ours.timesteps, peer.timesteps) and torch.equal(own, drawn)
    assert torch.isfinite(theirs).all()
    assert (states - theirs).abs().max() <= 3e-6 * theirs.abs().max()
    return ours


@pytest.mark.parametrize(("name", "config", "steps"), REPEATED)
def test_a_level_that_repeats_is_the_classs_step(name, config, steps):
    ours = assert_alike(name, config, steps)
    levels = ours._loops.get()
    at = levels.sigma / levels.alpha
    pairs = np.diff(at[np.r_[0, 1 : len(at) : ours.order]])
    assert (pairs == 0.0).any()
    assert_alike(name, config, steps, edit=lambda x: 0.9 * x)
    assert_alike(name, config, steps, edit=lambda x: x.clone().mul_(0.9))


@pytest.mark.parametrize(("name", "config", "steps"), DIVIDED)
def test_where_the_class_divides_by_0_a_step_of_length_0_changes_nothing(name, config, steps):
    peer, ours = both(name, config)
    try:
        theirs, _ = walk(name, peer, steps)
        assert not torch.isfinite(theirs).all()
    except IndexError:
        pass
    states, _ = walk(name, ours, steps)
    assert torch.isfinite(states).all()
    loop = ours._loops.get()
    at = loop.sigma / loop.alpha
    for k in np.flatnonzero(at[:-1] == at[1:]):
        if name in LEVELLED and k and ours.order == 1:
            assert torch.equal(states[k], states[k - 1])


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("compat", ["auto", "diffusers"])
def test_lcm_on_a_list_that_strength_cut_ends_as_the_class_does(strength, compat):
    """Which takes no step of it for the last one of the whole, and noises x0 back up."""
    times = [999, 759, 499, 259]
    peer = diffusers.LCMScheduler()
    ours = fs.FsScheduler.from_config(peer, compat=compat)
    ends = [walk("LCM", s, times, strength=strength) for s in (peer, ours)]
    assert len(ends[0][0]) == int(4 * strength) and torch.equal(ends[0][1], ends[1][1])
    assert (ends[0][0] - ends[1][0]).abs().max() <= 3e-6 * ends[0][0].abs().max()
    assert (float(ours.sigmas[-1]) > 0.0) == (strength < 1.0)
    counted = [walk("LCM", s, 4, strength=strength)[0] for s in (peer, ours)]
    assert (counted[0] - counted[1]).abs().max() <= 3e-6 * counted[0].abs().max()
    assert float(ours.sigmas[-1]) == 0.0


@pytest.mark.parametrize("compat", ["auto", "diffusers"])
def test_a_strength_that_leaves_no_step_is_refused(compat):
    ours = fs.FsScheduler.from_config(diffusers.LCMScheduler(), compat=compat)
    with pytest.raises(ValueError, match=r"strength = 0.2 leaves none of 4 timesteps; .*accepted"):
        ours.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.2)
    ours.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.25)
    assert ours.timesteps.tolist() == [259]


def test_pndm_counts_no_stride_over_a_table_that_repeats():
    _, ours = both("PNDM", MIDDLE | {"skip_prk_steps": True})
    with pytest.raises(ValueError, match="table repeats levels.*; compat=None is accepted"):
        ours.set_timesteps(7)
    exact = fs.FsScheduler.from_config(diffusers.PNDMScheduler(**MIDDLE), compat=None)
    exact.set_timesteps(7)
