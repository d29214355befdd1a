"""FsScheduler against the diffusers classes it stands in for, by superposition and in a pipeline;
its contract with pipelines.

A scheduler's step is linear in the sample, the model outputs and the noises, so a run on basis
vectors is its table of coefficients. Peers are probed in float64 and in float32: their own
rounding, float32 against float64, is the unit of every bound here.
"""

import contextlib
import inspect
from unittest import mock

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle import peers

diffusers = pytest.importorskip("diffusers")
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
diffusers.utils.logging.set_verbosity_error()
FsScheduler = fastsample.FsScheduler

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
PLMS = {"skip_prk_steps": True, "steps_offset": 1}
ZERO_SNR = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
FINER = 2.0**-29  # float64 rounding, in units of float32 rounding
MODULES = {
    "DDIM": "ddim",
    "DDPM": "ddpm",
    "EulerDiscrete": "euler_discrete",
    "EulerAncestralDiscrete": "euler_ancestral_discrete",
    "HeunDiscrete": "heun_discrete",
    "DPMSolverMultistep": "dpmsolver_multistep",
    "DPMSolverSinglestep": "dpmsolver_singlestep",
    "UniPCMultistep": "unipc_multistep",
    "LCM": "lcm",
    "FlowMatchEulerDiscrete": "flow_match_euler_discrete",
    "PNDM": "pndm",
}
NO_CLIP = ("DDIM", "DDPM")  # clipping is not linear; it has a test of its own
CASES = [
    *(
        (name, {"prediction_type": kind})
        for kind in ("epsilon", "v_prediction", "sample")
        for name in (
            "DDIM",
            "DDPM",
            "EulerDiscrete",
            "HeunDiscrete",
            "DPMSolverMultistep",
            "DPMSolverSinglestep",
            "UniPCMultistep",
            "LCM",
        )
    ),
    ("EulerAncestralDiscrete", {}),
    ("EulerAncestralDiscrete", {"prediction_type": "v_prediction"}),
    *(("DPMSolverMultistep", {"solver_order": p, "use_karras_sigmas": True}) for p in (1, 2, 3)),
    *(
        ("DPMSolverMultistep", {"solver_order": p, "final_sigmas_type": "sigma_min"})
        for p in (1, 2, 3)
    ),
    *(("DPMSolverMultistep", {"solver_order": p, "solver_type": "heun"}) for p in (2, 3)),
    *(
        ("DPMSolverMultistep", {"solver_order": p, "algorithm_type": "sde-dpmsolver++"})
        for p in (1, 2)
    ),
    *(
        (
            "UniPCMultistep",
            {"solver_order": p, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        )
        for p in (1, 2, 3)
    ),
    *(("UniPCMultistep", {"solver_order": p, "use_karras_sigmas": True}) for p in (1, 3)),
    *(
        (name, FLOW | {"solver_order": p})
        for name in ("DPMSolverMultistep", "UniPCMultistep")
        for p in (2, 3)
    ),
    (
        "DPMSolverMultistep",
        {"solver_type": "heun", "algorithm_type": "sde-dpmsolver++", "use_lu_lambdas": True},
    ),
    ("DPMSolverMultistep", {"euler_at_final": True, "final_sigmas_type": "sigma_min"}),
    ("DPMSolverSinglestep", {"solver_type": "heun"}),
    (
        "DPMSolverMultistep",
        {
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
        },
    ),
    ("UniPCMultistep", {"use_exponential_sigmas": True}),
    ("EulerDiscrete", {"use_beta_sigmas": True, "timestep_spacing": "trailing"}),
    (
        "EulerDiscrete",
        {"timestep_spacing": "leading", "final_sigmas_type": "sigma_min", "steps_offset": 1},
    ),
    ("DDIM", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    *(("PNDM", PLMS | {"prediction_type": kind}) for kind in ("epsilon", "v_prediction")),
]
TO_SIGMA_MIN = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
# grids that only the class itself has: steps off the next timestep, or of length 0; orders that
# follow the whole run
PEERS_OWN = [
    *(
        ("DDIM", {"timestep_spacing": kind, "prediction_type": "v_prediction"})
        for kind in ("linspace", "trailing")
    ),
    ("DDIM", {"set_alpha_to_one": False}),
    ("DDIM", ZERO_SNR),
    *(
        ("PNDM", PLMS | {"timestep_spacing": kind, "prediction_type": "v_prediction"})
        for kind in ("linspace", "trailing")
    ),
    ("PNDM", {"skip_prk_steps": True}),
    ("PNDM", PLMS | {"set_alpha_to_one": True}),
    *((name, TO_SIGMA_MIN) for name in ("DPMSolverMultistep", "UniPCMultistep", "EulerDiscrete")),
    *(
        (
            "DPMSolverMultistep",
            {"algorithm_type": "sde-dpmsolver++", "final_sigmas_type": "sigma_min"} | more,
        )
        for more in ({}, {"euler_at_final": True})
    ),
    *(
        ("DPMSolverMultistep", {"solver_order": 3, "final_sigmas_type": "sigma_min"} | more)
        for more in (
            {"lower_order_final": False},
            {"lower_order_final": False, "solver_type": "heun"},
            {"euler_at_final": True},
        )
    ),
]
IDS, OWN_IDS = (
    [f"{name}-{'-'.join(map(str, config.values()))}" for name, config in cases]
    for cases in (CASES, PEERS_OWN)
)


def made(name, config):
    """The peer, and its config with what makes it linear."""
    config = config if name == "FlowMatchEulerDiscrete" else SD | config
    return config | ({"clip_sample": False} if name in NO_CLIP else {})


def in_double(name):
    """The peer's module reads float64 where it says float32, or says nothing, as long as this
    lasts.
    """
    code = __import__(f"diffusers.schedulers.scheduling_{MODULES[name]}", fromlist=["x"])
    return peers._replaced(
        code,
        torch=peers._Instead(torch, float32=torch.float64),
        np=peers._Instead(np, float32=np.float64),
    )


def table(scheduler, steps, dtype, begin=0, **settings):
    """States [calls+1, size] of a run on basis vectors: start 0, model outputs, then one noise a
    step.
    """
    scheduler.set_timesteps(steps, **settings)
    times = scheduler.timesteps[begin:]
    basis = torch.eye(1 + 2 * len(times), dtype=dtype)
    noise = iter(basis[1 + len(times) :])
    takes = inspect.signature(scheduler.step).parameters
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x, states = basis[:1], []
    code = __import__(
        "fastsample.interop.diffusers"
        if isinstance(scheduler, FsScheduler)
        else type(scheduler).__module__,
        fromlist=["x"],
    )
    drawn = mock.patch.object(code, "randn_tensor", lambda *a, **k: next(noise)[None])
    with drawn if hasattr(code, "randn_tensor") else contextlib.nullcontext():
        for k, t in enumerate(times):
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            states.append(x)
            given = (
                {"variance_noise": basis[1 + len(times) + k][None]}
                if isinstance(scheduler, FsScheduler)
                else {}
            )
            x = scheduler.step(
                basis[1 + k][None],
                t,
                x,
                **{n: v for n, v in given.items() if n in takes},
                return_dict=False,
            )[0]
    return torch.cat([*states, x]).double().numpy()


def both(name, config, steps, begin=0, **settings):
    """(ours in float64, peer in float64, peer in float32): coefficient tables of equal size."""
    with in_double(name):
        peer = getattr(diffusers, f"{name}Scheduler")(**config)
        exact = table(peer, steps, torch.float64, begin, **settings)
        ours = table(
            FsScheduler.from_config(peer, compat="diffusers"),
            steps,
            torch.float64,
            begin,
            **settings,
        )
    return (
        ours,
        exact,
        table(
            getattr(diffusers, f"{name}Scheduler")(**config),
            steps,
            torch.float32,
            begin,
            **settings,
        ),
    )


@pytest.mark.parametrize("steps", [6, 17])
@pytest.mark.parametrize(("name", "config"), CASES + PEERS_OWN, ids=IDS + OWN_IDS)
def test_coefficients_are_the_peers(name, config, steps):
    """compat reproduces every coefficient to float64: within 32 times what the peer's own rounding
    becomes there.
    """
    ours, exact, rounded = both(name, made(name, config), steps)
    bound = 32 * (FINER * np.abs(rounded - exact).max() + np.finfo(float).eps * np.abs(exact).max())
    assert np.abs(ours - exact).max() <= bound


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("DPMSolverMultistep", 3),
        ("UniPCMultistep", 3),
        ("HeunDiscrete", 6),
        ("EulerDiscrete", 3),
        ("DPMSolverSinglestep", 3),
        ("DPMSolverSinglestep", 4),
        ("LCM", 2),
        ("DDIM", 3),
        ("PNDM", 1),
        ("PNDM", 2),
        ("PNDM", 5),
    ],
)
def test_a_run_from_the_middle_is_the_peers(name, begin):
    """img2img: the plan is compiled from the begin index; orders ramp up again and the last steps
    count from the whole run.
    """
    ours, exact, rounded = both(name, made(name, PLMS if name == "PNDM" else {}), 8, begin)
    assert np.abs(ours - exact).max() <= 32 * (
        FINER * np.abs(rounded - exact).max() + np.finfo(float).eps * np.abs(exact).max()
    )


@pytest.mark.parametrize(("name", "begin"), [("HeunDiscrete", 6), ("EulerDiscrete", 3)])
def test_a_first_timestep_says_where_a_run_begins(name, begin):
    """Without a begin index: the timestep itself, as a tensor, a view or a number; of Heun's two
    equal ones the one that starts a step.
    """
    ends = []
    for given in (lambda v: v, torch.clone, float):
        ours = FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")(**SD), compat=None)
        ours.set_timesteps(8)
        x = torch.ones(1, 4)
        for t in ours.timesteps[begin:]:
            x = ours.step(0.1 * ours.scale_model_input(x, given(t)), given(t), x).prev_sample
        ends.append(x)
    assert (
        torch.equal(ends[0], ends[1]) and torch.equal(ends[0], ends[2]) and torch.isfinite(x).all()
    )


@pytest.mark.parametrize(("name", "config"), CASES, ids=IDS)
def test_grid_and_labels_are_the_peers(name, config):
    """compat: the very timesteps, dtype and sigmas. Exact: the same where nothing is rounded, else
    within the rounding of a label.
    """
    peer = getattr(diffusers, f"{name}Scheduler")(**made(name, config))
    ours, exact = (
        FsScheduler.from_config(peer, compat="diffusers"),
        FsScheduler.from_config(peer, compat=None),
    )
    for scheduler in (peer, ours, exact):
        scheduler.set_timesteps(12)
    assert (
        torch.equal(peer.timesteps, ours.timesteps) and peer.timesteps.dtype == ours.timesteps.dtype
    )
    assert (
        len(peer.timesteps) == len(exact.timesteps)
        and (peer.timesteps - exact.timesteps).abs().max() <= 1.0
    )
    if hasattr(peer, "sigmas"):
        assert torch.allclose(peer.sigmas[: len(ours.sigmas)], ours.sigmas, rtol=4e-7, atol=0)
    if hasattr(peer, "init_noise_sigma"):
        assert ours.init_noise_sigma == pytest.approx(float(peer.init_noise_sigma), rel=1e-6)
    assert ours.order == peer.order
