"""Timesteps held in a type of 16 bits, in which 999 is 1000: the entry that they stand for, or a
sentence where they stand for two.
"""

import numpy as np
import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
from tests.beside import CONFIGS, N, X, both  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COARSE = [torch.bfloat16, torch.half]
VP, EULER = "DDIMScheduler", "EulerDiscreteScheduler"
FLOW = "FlowMatchEulerDiscreteScheduler"
each_mode = pytest.mark.parametrize("compat", ["diffusers", None])


def begin(scheduler):
    dynamic = scheduler.config.get("use_dynamic_shifting")
    scheduler.set_timesteps(4, **({"mu": 0.9} if dynamic else {}))


def steps(scheduler, told):
    """The samples of a run whose timesteps go through `told` first."""
    begin(scheduler)
    draw, x, seen = torch.Generator().manual_seed(0), X * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        fed = scheduler.scale_model_input(x, told(t))
        x = scheduler.step(0.1 * fed, told(t), x, generator=draw).prev_sample
        seen += [fed, x]
    return seen


OF = {f"{k} {name}": (name, config) for k, (name, config) in enumerate(CONFIGS)}


@pytest.mark.pairs(of=OF, dtype=[*COARSE], compat=["diffusers", None])
def test_a_run_is_the_one_of_its_own_timesteps(of, dtype, compat):
    """Handed back in the sample's dtype, as tensors and as single values, from the noise end and
    from a place that only the timestep says.
    """
    name, config = of
    _, ours = both(name, config, compat=compat)
    whole = steps(ours, lambda t: t)
    for told in (lambda t: t.to(dtype), lambda t: t.to(dtype).reshape(1)):
        assert all(torch.equal(a, b) for a, b in zip(steps(ours, told), whole, strict=True))
    if name == "PNDMScheduler":
        return
    at = ours.order * 2 - ours.order // 2
    ends = []
    for told in (lambda t: t, lambda t: t.to(dtype)):
        begin(ours)
        t = told(ours.timesteps[at])
        noisy = ours.add_noise(X, N, told(ours.timesteps[at : at + 1]))
        ends += [noisy, ours.step(0.1 * X, t, noisy, generator=torch.Generator().manual_seed(0))[0]]
    assert torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[3])


@each_mode
@pytest.mark.parametrize("name", [VP, EULER])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.half, torch.float32])
def test_noise_at_the_training_edge(name, kind, compat):
    """999 is 1000 in bfloat16; a timestep further out stays a sentence."""
    _, ours = both(name, {}, compat=compat)
    found = ours.add_noise(X, N, torch.tensor([999, 0]).to(kind))
    assert torch.equal(found, ours.add_noise(X, N, torch.tensor([999, 0])))
    if name == VP:
        v = ours.get_velocity(X, N, torch.tensor([999, 0]).to(kind))
        assert torch.equal(v, ours.get_velocity(X, N, torch.tensor([999, 0])))
    for far in (1008, 2000) if kind == torch.bfloat16 else (1001, 2000):
        with pytest.raises(ValueError, match="timestep .*; 0 to 999 is accepted"):
            ours.add_noise(X, N, torch.tensor([far, 0]).to(kind))


@each_mode
def test_lists_of_timesteps(compat):
    """The edge of a list too, and np.float16; in the middle they are what they say, as in the
    class.
    """
    for name, top in ((EULER, 999), (VP, 999), (FLOW, 1000)):
        peer, ours = both(name, {}, compat=compat)
        if name == VP:  # whose own takes no list
            ours = fs.FsScheduler.from_config(peer, compat=None)
        ours.set_timesteps(timesteps=[top, 500, 96])
        right, given = ours.timesteps, torch.tensor([top, 500, 96])
        for kept in (given.bfloat16(), given.half(), given.half().numpy()):
            ours.set_timesteps(timesteps=kept)
            assert torch.equal(ours.timesteps, right)


@each_mode
def test_two_that_one_may_stand_for_are_a_sentence_but_in_their_turn(compat):
    _, ours = both(EULER, {"timestep_spacing": "leading"}, compat=compat)
    ours.set_timesteps(500)
    told = "timestep 992 in torch.bfloat16 stands for 994 and 990 of the schedule; scheduler.time"
    assert ours.timesteps[2] == 994
    with pytest.raises(ValueError, match=told):
        ours.step(X, ours.timesteps[2].bfloat16(), X)
    x = X
    for t in ours.timesteps[:4]:
        x = ours.step(0.1 * X, t.bfloat16(), x).prev_sample
    assert ours.step_index == 4 and torch.isfinite(x).all()
    with pytest.raises(ValueError, match="is out of order; 990 is next"):
        ours.step(X, ours.timesteps[400].bfloat16(), x)


def test_tokens_of_16_bits_at_the_timestep():
    _, ours = both(VP, {})
    ours.set_timesteps(4)
    t = ours.timesteps[0]
    tokens = torch.full((2, 6), float(t)).bfloat16()
    right = ours.step(N, t, X).prev_sample
    ours.set_timesteps(4)
    found = ours.step(-N, t, X, per_token_timesteps=tokens).prev_sample
    assert torch.equal(found, right) or torch.allclose(found, right)


def test_a_number_of_numpy():
    _, ours = both(EULER, {})
    ours.set_timesteps(4)
    y = ours.step(N, ours.timesteps[2], X).prev_sample
    ours.set_timesteps(4)
    assert torch.equal(ours.step(N, np.float16(float(ours.timesteps[2])), X).prev_sample, y)
