"""Schedulers of diffusers that are one of our solvers under another name, by superposition as in
test_peers.py.
"""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracle.peers import Basis, Trace, probe, scheduler
from test_peers import KIND, VP, compare, discrete, own_sigmas, own_times, pytestmark  # noqa: F401

from fastsample.schedules import EDM, DiscreteVP, Flow, TrigFlow
from fastsample.schedules import VP as Continuous
from fastsample.solvers import SOLVERS


class OneAStep(Basis):
    """A step that draws twice is given the same noise twice: it adds but one of them."""

    def noise(self, *levels):
        return self.vector(self.calls + self.outputs)


EPS = {"prediction_type": "epsilon"}
EDM_CASES = [
    ("edm_euler", "EDMEuler", {}, "euler", {}, 0),
    (
        "edm_dpmsolver_multistep",
        "EDMDPMSolverMultistep",
        {},
        "dpmpp_2m",
        {"compat": "diffusers"},
        0,
    ),
    ("cosine_dpmsolver_multistep", "CosineDPMSolverMultistep", EPS, "dpmpp_2m_sde", {}, 7),
]


@pytest.mark.parametrize("module, name, config, ours, options, draws", EDM_CASES)
def test_on_edm(module, name, config, ours, options, draws):
    peer = scheduler(module, f"{name}Scheduler", sigma_data=0.7, **config)
    trace, _ = probe(peer, 7, draws)
    schedule = EDM(sigma_min=peer.config.sigma_min, sigma_max=1000.0, sigma_data=0.7)
    plan = SOLVERS[ours](schedule, own_sigmas(schedule, peer), prediction="edm", **options)
    compare(plan, trace)


@pytest.mark.parametrize(
    "module, name, more, ours, draws",
    [
        ("ddim_parallel", "DDIMParallel", {"clip_sample": False}, "ddim", 0),
        (
            "ddim_cogvideox",
            "CogVideoXDDIM",
            {"clip_sample": False, "snr_shift_scale": 1.0},
            "ddim",
            0,
        ),
        ("ddpm_parallel", "DDPMParallel", {"clip_sample": False}, "ddpm", 7),
    ],
)
def test_on_the_table(module, name, more, ours, draws):
    peer = scheduler(module, f"{name}Scheduler", **VP, **more)
    options = {"compat": "diffusers"} if ours == "ddpm" else {}
    discrete(peer, ours, "epsilon", times=own_times, draws=draws, **options)


def test_cogvideox_dpm():
    peer = scheduler("dpm_cogvideox", "CogVideoXDPMScheduler", **VP, snr_shift_scale=1.0)
    own, past = peer.step, SimpleNamespace(x0=None, t=None)

    def step(output, t, x):
        x, x0 = own(output, past.x0, t, past.t, x, return_dict=False)
        past.x0, past.t = x0, t
        return (x,)

    peer.step = step
    trace, _ = probe(peer, 7, 7, OneAStep)
    schedule = DiscreteVP.scaled_linear()
    grid = own_times(schedule, peer)
    compare(SOLVERS["dpmpp_2m_sde"](schedule, grid, prediction="eps"), trace)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_unclip(prediction):
    """With a fixed variance; told where its step ends, as its pipeline does."""
    peer = scheduler("unclip", "UnCLIPScheduler", clip_sample=False, prediction_type=prediction)
    own = peer.step

    def step(output, t, x):
        lower = peer.timesteps[peer.timesteps < t]
        return own(output, t, x, int(lower[0]) if len(lower) else None)

    peer.step = step
    trace, _ = probe(peer, 6, 5)
    schedule = DiscreteVP(peer.alphas_cumprod.numpy())
    grid = np.append(peer.timesteps.numpy().astype(float), -1.0)
    options = {"prediction": KIND[prediction], "compat": "diffusers"}
    compare(SOLVERS["ddpm"](schedule, grid, **options), trace)


def test_consistency_decoder():
    """EDM's preconditioning of x/alpha on a table of cosines."""
    peer = scheduler("consistency_decoder", "ConsistencyDecoderScheduler")
    trace, _ = probe(peer, 2, 1)
    schedule = DiscreteVP(peer.sqrt_alphas_cumprod.numpy() ** 2)
    compare(SOLVERS["lcm"](schedule, [1008, 512, -1], prediction="edm", boundary=False), trace)


@pytest.mark.parametrize(
    "module, name, ours, options, draws",
    [
        ("flow_match_lcm", "FlowMatchLCM", "lcm", {"boundary": False}, 5),
        ("flow_map_euler_discrete", "FlowMapEulerDiscrete", "euler", {}, 0),
        ("minimax_h3", "MiniMaxH3", "euler", {}, 0),
    ],
)
def test_on_flow(module, name, ours, options, draws):
    peer = scheduler(module, f"{name}Scheduler", shift=3.0)
    if name == "MiniMaxH3":
        own = peer.step
        peer.step = lambda output, t, x: own(-output, t, x)
    trace, _ = probe(peer, 5, draws)
    plan = SOLVERS[ours](Flow(), own_sigmas(Flow(), peer), prediction="flow", **options)
    compare(plan, trace)


def driven(calls: int, draws: int, run) -> Trace:
    """run(x, ask, noise) from basis vectors, ask(x) -> an output."""
    basis, trace = Basis(calls, draws), Trace()
    tensor = lambda v: torch.from_numpy(v)[None]

    def ask(x):
        trace.states.append(x[0].numpy().copy())
        return tensor(basis.output())

    end = run(tensor(basis.vector(0)), ask, lambda *a, **k: tensor(basis.noise()))
    trace.states.append(end[0].numpy().copy())
    return trace


def test_scm(monkeypatch):
    """Its output is multiplied by sigma_data before, as pipelines do."""
    peer, times = scheduler("scm", "SCMScheduler", sigma_data=0.5), [1.5, 1.1, 0.6, 0.0]
    peer.num_inference_steps = 3
    peer.timesteps = torch.tensor(times, dtype=torch.float64)

    def run(x, ask, noise):
        monkeypatch.setattr(sys.modules[type(peer).__module__], "randn_tensor", noise)
        for t in peer.timesteps[:-1]:
            x = peer.step(0.5 * ask(x), t, x)[0]
        return x

    plan = SOLVERS["lcm"](TrigFlow(0.5), times, prediction="trigflow", boundary=False)
    compare(plan, driven(3, 3, run))


def test_wuerstchen(monkeypatch):
    """But for its last step, which draws nothing though it ends above sigma = 0."""
    peer = scheduler("ddpm_wuerstchen", "DDPMWuerstchenScheduler")
    peer.s = peer.s.double()
    peer._init_alpha_cumprod = torch.cos(peer.s / (1 + peer.s) * torch.pi * 0.5) ** 2
    peer.set_timesteps(6)
    peer.timesteps = peer.timesteps.double()
    times = peer.timesteps[:-1]

    def run(x, ask, noise):
        monkeypatch.setattr(sys.modules[type(peer).__module__], "randn_tensor", noise)
        for t in times[:-1]:
            x = peer.step(ask(x), t[None], x)[0]
        return x

    trace = driven(len(times) - 1, len(times) - 1, run)
    bar = peer._alpha_cumprod(times, "cpu").numpy()
    schedule = Continuous()
    grid = schedule.time(0.5 * (np.log(bar) - np.log1p(-bar)))
    compare(SOLVERS["ddpm"](schedule, grid, prediction="eps"), trace)


def test_karras_ve(monkeypatch):
    """Its network says (x0 - x)/sigma, which is -eps."""
    found = importlib.import_module("diffusers.schedulers.deprecated.scheduling_karras_ve")
    peer, n = found.KarrasVeScheduler(s_min=0.0, s_max=1e5), 6
    peer.set_timesteps(n)
    levels = np.append(peer.schedule.numpy()[::-1].astype(float), 0.0)  # sigma², as it is there

    def run(x, ask, noise):
        monkeypatch.setattr(found, "randn_tensor", noise)
        for sigma, after in pairwise(levels):
            hat, raised = peer.add_noise_to_input(x, sigma)
            out = peer.step(-ask(hat), raised, after, hat)
            x = out.prev_sample
            if after:
                said = -ask(x)
                x = peer.step_correct(said, raised, after, hat, x, out.derivative).prev_sample
        return x

    schedule, config = EDM(sigma_max=1e4), peer.config
    words = {"s_churn": config.s_churn, "s_tmin": config.s_min, "s_tmax": config.s_max}
    plan = SOLVERS["heun"](schedule, levels, prediction="eps", s_noise=config.s_noise, **words)
    compare(plan, driven(2 * n - 1, n, run))
