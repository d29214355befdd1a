"""A real policy of LeRobot 0.4.4, whose noise scheduler is a diffusers one, on FsScheduler. In an
environment of its own (`make test-integrations`).
"""

import copy
import sys

import pytest
import torch

pytest.importorskip("lerobot", reason="make test-integrations has an environment with LeRobot")
sys.modules["transformers"] = None  # a policy that is not tried here does not go with its version 5
import cpu_torchvision  # noqa: E402, F401, I001

from lerobot.configs.types import FeatureType, PolicyFeature  # noqa: E402
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig  # noqa: E402
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy  # noqa: E402
from lerobot.policies.pi0 import modeling_pi0  # noqa: E402
from lerobot.policies.rtc.configuration_rtc import RTCConfig  # noqa: E402
from lerobot.policies.rtc.modeling_rtc import RTCProcessor  # noqa: E402
from test_lerobot_hook import chunk, contract, plan_of, velocity  # noqa: E402

del sys.modules["transformers"]

import fastsample as fs  # noqa: E402
from fastsample.interop import lerobot  # noqa: E402


def policy(kind, steps=10, **words):
    """A policy of states alone, untrained: 0.5 million parameters, actions of two numbers."""
    state = PolicyFeature(FeatureType.STATE, (4,))
    around = PolicyFeature(FeatureType.ENV, (6,))
    config = DiffusionConfig(
        input_features={"observation.state": state, "observation.environment_state": around},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        down_dims=(32, 64),
        n_groups=8,
        num_train_timesteps=100,
        num_inference_steps=steps,
        noise_scheduler_type=kind,
        device="cpu",
        **words,
    )
    torch.manual_seed(0)
    return DiffusionPolicy(config).eval()


@torch.no_grad()
def actions(policy, seed=1):
    """A chunk [3, n, 2] for three observations, from noise that is given; draws are the seed's."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random)
    batch = {"observation.state": draw(3, 2, 4), "observation.environment_state": draw(3, 2, 6)}
    torch.manual_seed(seed)
    return policy.diffusion.generate_actions(batch, noise=draw(3, policy.config.horizon, 2))


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["DDIM", "DDPM"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_a_diffusion_policy_acts_as_with_its_own_scheduler(kind, clip, prediction):
    own = policy(kind, clip_sample=clip, prediction_type=prediction)
    want, ours = actions(own), copy.deepcopy(own)
    ours.diffusion.noise_scheduler = fs.FsScheduler.from_config(own.diffusion.noise_scheduler)
    got = actions(ours)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert not torch.equal(actions(ours, seed=2), got)


def test_it_acts_by_a_plan_as_a_sampler_of_its_network_does():
    own = policy("DDIM", clip_sample=False)
    scheduler, unet = own.diffusion.noise_scheduler, own.diffusion.unet
    schedule = fs.schedules.DiscreteVP(scheduler.alphas_cumprod.double().numpy())
    model = fs.Model(unet, schedule, "eps", time=1, time_dtype=torch.long)
    grid = fs.grids.from_timesteps(schedule, [99, 74, 50, 25, 8])  # whole ones: it rounds them down
    plan = fs.solvers.dpmpp_2m(model, grid)
    own.diffusion.noise_scheduler = fs.FsScheduler.from_plan(plan, like=scheduler)
    own.diffusion.num_inference_steps = plan.nfe
    random = torch.Generator().manual_seed(1)
    told = torch.randn(3, own.diffusion.config.n_obs_steps * 10, generator=random)
    noise = torch.randn(3, own.config.horizon, 2, generator=random)
    with torch.no_grad():
        got = own.diffusion.conditional_sample(3, global_cond=told, noise=noise)
    want = fs.Sampler(plan, model)(noise=noise, cond={"global_cond": told})
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@torch.no_grad()
def test_real_time_chunking_leads_every_row_at_its_own_time():
    words = {"inference_delay": 2, "execution_horizon": 4, "prev_chunk_left_over": chunk()[:, :5]}
    ends, seen = [], []
    for hook in (contract, lerobot.euler_integrate, lerobot.integrator(plan_of(6))):
        real = RTCProcessor(RTCConfig(enabled=True, debug=True))
        ends.append(hook(velocity, chunk(), 6, rtc_processor=real, rtc_enabled=True, **words))
        seen.append(real.get_all_debug_steps())
    assert torch.equal(*ends[:2]) and not torch.equal(*ends[1:])
    for theirs, ours, plan in zip(*seen, strict=True):
        assert torch.equal(theirs.x1_t, ours.x1_t) and torch.equal(theirs.x_t, ours.x_t)
        assert ours.time == theirs.time and abs(plan.time - ours.time) < 1e-12


def test_its_flow_policies_have_no_hook_to_install_in():
    with pytest.raises(TypeError, match="has no euler_integrate"):
        lerobot.install(modeling_pi0, None)
