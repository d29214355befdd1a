"""How far from where a diffusers class ends an FsScheduler ends with compat="diffusers", and with
compat=None (exact levels and labels): rms of the difference over rms of each sample, of the one the
largest, of the other in percent.

The model is the exact one of `models.analytic.waves` at the level of the label it is told, so all
runs solve one problem; samples start from the same noise and draw the same.
"""

import diffusers
import pytest
import torch
from measure import figure

import fastsample as fs

STEPS, SAMPLES = (6, 10, 25), 8
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = SD | {"steps_offset": 1, "set_alpha_to_one": False}
LEADING = SD | {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = SD | {"timestep_spacing": "trailing", "clip_sample": False}
KARRAS = SD | {"use_karras_sigmas": True}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
CASES = {
    "FlowMatchEuler of shift 3": ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    "UniPC on flow sigmas": ("UniPCMultistep", FLOW),
    "DPM++ 2M on flow sigmas": ("DPMSolverMultistep", FLOW),
    "Euler on linspace": ("EulerDiscrete", SD),
    "Euler ancestral on linspace": ("EulerAncestralDiscrete", SD),
    "Heun on linspace": ("HeunDiscrete", SD),
    "LCM": ("LCM", SD | {"clip_sample": False}),
    "DPM++ 2M on linspace": ("DPMSolverMultistep", SD),
    "DPM++ 2M on Karras": ("DPMSolverMultistep", KARRAS),
    "DPM++ 2M SDE on Karras": (
        "DPMSolverMultistep",
        KARRAS | {"algorithm_type": "sde-dpmsolver++"},
    ),
    "DPM++ singlestep": ("DPMSolverSinglestep", SD),
    "UniPC on linspace": ("UniPCMultistep", SD),
    "DDIM on leading": ("DDIM", SD15 | {"clip_sample": False}),
    "PNDM on leading": ("PNDM", SD15 | {"skip_prk_steps": True}),
    "Euler on leading": ("EulerDiscrete", LEADING),
    "DDIM on trailing": ("DDIM", TRAILING),
    "DDPM on leading": ("DDPM", SD | {"clip_sample": False}),
}
WORLD = fs.models.analytic.waves()
LADDER = fs.schedules.DiscreteVP.scaled_linear()


def told(flow):
    """(x [B,*], timestep) -> the exact velocity of a flow, or eps."""

    def model(x, t):
        t = float(t)
        alpha, sigma = (
            (1 - t / 1000, t / 1000) if flow else map(float, (LADDER.alpha(t), LADDER.sigma(t)))
        )
        x0, eps = WORLD.posterior(x, alpha, sigma)
        return eps - x0 if flow else eps

    return model


def end(scheduler, x, steps, flow):
    """What a pipeline's loop ends with."""
    torch.manual_seed(1)
    scheduler.set_timesteps(steps)
    x, model = x * float(getattr(scheduler, "init_noise_sigma", 1.0)), told(flow)
    for t in scheduler.timesteps:
        scaled = x if flow else scheduler.scale_model_input(x, t)
        x = scheduler.step(model(scaled, t), t, x, return_dict=False)[0]
    return x


def apart(a, b):
    """Of each sample [B]."""
    return ((a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)).double()


@pytest.mark.parametrize("name", CASES)
def bench_exact(benchmark, name):
    benchmark.group = "exact"
    source, config = CASES[name]
    peer = getattr(diffusers, f"{source}Scheduler")(**config)
    flow = bool(config.get("shift") or config.get("use_flow_sigmas"))
    compat, exact = (fs.FsScheduler.from_config(peer, compat=c) for c in ("diffusers", None))
    x = torch.randn(SAMPLES, *WORLD.shape, generator=torch.Generator().manual_seed(0))
    theirs = [end(peer, x, steps, flow) for steps in STEPS]
    pairs = zip(theirs, STEPS, strict=True)
    off = max(float(apart(a, end(compat, x, steps, flow)).max()) for a, steps in pairs)
    if not off <= 2e-5:
        raise AssertionError(f"{name}: {off:.1e} from the class with compat='diffusers'")
    figure(benchmark, f"{name}: compat, at most", off)
    for a, steps in zip(theirs, STEPS, strict=True):
        moved = apart(a, end(exact, x, steps, flow))
        figure(benchmark, f"{name}: None, {steps} steps", (100 * moved).tolist(), "%")
    benchmark.pedantic(end, args=(exact, x, STEPS[0], flow), rounds=1)
