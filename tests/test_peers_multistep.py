"""Multistep solvers against k-diffusion's and diffusers' own, by superposition, as in
test_peers.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle.peers import probe, probe_k, scheduler
from test_peers import KARRAS, SIGMAS, VP, compare, discrete, multistep, pytestmark  # noqa: F401

from fastsample import grids
from fastsample.schedules import EDM, Flow
from fastsample.schedules import VP as ContinuousVP
from fastsample.solvers import SOLVERS

# peer, its options, our solver, its options, draws
SCHEDULE = ContinuousVP()
K_CASES = [
    ("lms", {}, "lms", {}, 0),
    ("lms", {"order": 2}, "lms", {"order": 2}, 0),
    ("dpmpp_3m_sde", {}, "dpmpp_3m_sde", {"compat": "k-diffusion"}, 6),
]


@pytest.mark.parametrize("peer, theirs, ours, options, draws", K_CASES)
def test_equals_k_diffusion(peer, theirs, ours, options, draws):
    trace, _ = probe_k(peer, SIGMAS, len(SIGMAS) - 1, draws, **theirs)
    grid = grids.from_sigmas(EDM(), SIGMAS)
    compare(SOLVERS[ours](EDM(), grid, prediction="x0", **options), trace)


def test_equals_k_diffusion_over_a_flow_s_sigma():
    """Which is ComfyUI's dpmpp_2m on a flow: another row than in the flow's own lambda."""
    sigmas = np.array([1.0, 0.93, 0.8, 0.6, 0.3, 0.05, 0.0])
    trace, _ = probe_k("dpmpp_2m", sigmas, 6)
    grid = grids.from_sigmas(Flow(), sigmas)
    compare(SOLVERS["dpmpp_2m"](Flow(), grid, prediction="x0", compat="comfyui"), trace)
    with pytest.raises(AssertionError, match="is rounding"):
        compare(SOLVERS["dpmpp_2m"](Flow(), grid, prediction="x0"), trace)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_equals_diffusers_dpm_solver(order, variant):
    config = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    peer = multistep(**KARRAS, **config, solver_order=order, solver_type=variant)
    options = {"order": order, "variant": variant, "compat": "diffusers"}
    discrete(peer, "dpm_solver", "epsilon", **options)


@pytest.mark.parametrize("variant", ["midpoint", "heun"])
def test_equals_diffusers_sde_in_noise_form(variant):
    config = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
    peer = multistep(**KARRAS, **config, solver_type=variant)
    options = {"variant": variant, "eta": 1.0, "compat": "diffusers"}
    discrete(peer, "dpm_solver", "epsilon", draws=7, **options)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_diffusers_deis(order):
    peer = scheduler("deis_multistep", "DEISMultistepScheduler", **VP, solver_order=order)
    discrete(peer, "deis", "epsilon", order=order, compat="diffusers")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_diffusers_lms(prediction):
    peer = scheduler("lms_discrete", "LMSDiscreteScheduler", **KARRAS, prediction_type=prediction)
    discrete(peer, "lms", prediction, scaled=True)


@pytest.mark.parametrize("p, c", [(1, 2), (2, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_equals_diffusers_sa_solver(p, c, tau):
    peer = scheduler(
        "sasolver",
        "SASolverScheduler",
        **VP,
        predictor_order=p,
        corrector_order=c,
        tau_func=lambda t: tau,
    )
    options = {"predictor_order": p, "corrector_order": c, "tau": tau, "compat": "diffusers"}
    options |= {"lower_order_final": True}
    discrete(peer, "sa_solver", "epsilon", draws=7, **options)


def test_equals_diffusers_ipndm():
    """It lays out sigma = sin² and asks for v; from its second point on, for it divides by alpha,
    which is 0 at the first.
    """
    peer = scheduler("ipndm", "IPNDMScheduler")
    lay_out = peer.set_timesteps

    def from_second(*args):
        lay_out(*args)
        for name in ("timesteps", "alphas", "betas"):
            setattr(peer, name, getattr(peer, name)[1:])

    peer.set_timesteps = from_second
    trace, _ = probe(peer, 9)
    grid = grids.from_sigmas(SCHEDULE, (peer.betas / peer.alphas).numpy())
    compare(SOLVERS["ipndm"](SCHEDULE, grid, prediction="v"), trace)
