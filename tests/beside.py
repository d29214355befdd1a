"""Configs of every source, and a diffusers scheduler beside the FsScheduler in its place."""

import diffusers
import torch

import fastsample as fs
from fastsample.interop.diffusers.outside import TABLES
from fastsample.interop.diffusers.sources import SOURCES

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NEEDED = {
    "PNDMScheduler": {"skip_prk_steps": True},
    "DPMSolverSDEScheduler": {"noise_sampler_seed": 3},
}
# told to set_timesteps and step what no others are: test_diffusers_rare.py
RARE = {"SCMScheduler", "DDPMWuerstchenScheduler", "UnCLIPScheduler"}
COMMON = [name for name in SOURCES if name not in RARE]
CONFIGS = [(name, NEEDED.get(name, {})) for name in COMMON] + [
    ("EulerDiscreteScheduler", SD | {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    ("DDIMScheduler", SD | {"set_alpha_to_one": False}),
    ("PNDMScheduler", SD),
    ("HeunDiscreteScheduler", SD | {"use_karras_sigmas": True}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
]
READ = ["timesteps", "sigmas", "init_noise_sigma", "num_inference_steps", "step_index"]
READ += ["begin_index", "order", *sorted(TABLES)]
# what we have where a class has it not; PNDM has no timesteps before set_timesteps
MORE = {"sigmas", "step_index", "begin_index", "init_noise_sigma", "num_inference_steps"}
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
N = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def both(name, config, **given):
    peer = getattr(diffusers, name)(**config)
    return peer, fs.FsScheduler.from_config(peer, **given)


def alike(ours, theirs):
    if not isinstance(theirs, torch.Tensor):
        return type(ours) is type(theirs) and ours == theirs
    same = isinstance(ours, torch.Tensor) and ours.dtype == theirs.dtype
    return same and torch.equal(ours, theirs)


def close(ours, theirs):
    """To the rounding of diffusers' own float32 arithmetic."""
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


def set_both(peer, ours):
    given = {"mu": 0.9} if peer.config.get("use_dynamic_shifting") else {}
    for scheduler in (peer, ours):
        scheduler.set_timesteps(7, **given)
