"""Our stochastic plans against other libraries' samplers, by superposition, as test_peers.py does
it: the peers' noises are injected, those of a Brownian path with the covariance that a path has.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle.linear import EPS
from oracle.peers import Basis, Brownian, probe, probe_k, scheduler
from test_peers import CHURN, KIND, SIGMAS, VP, compare, discrete, own_times

from fastsample import grids
from fastsample.schedules import EDM, DiscreteVP, Flow
from fastsample.solvers import SOLVERS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own
STEPS = len(SIGMAS) - 1
QUIET = {"eta": 0.6, "s_noise": 1.1}
# solver, its options, noises a step
K_CASES = [
    ("dpm_2_ancestral", {}, 1),
    ("dpm_2_ancestral", QUIET, 1),
    ("dpmpp_2s_ancestral", {}, 1),
    ("dpmpp_2s_ancestral", QUIET, 1),
    ("dpmpp_sde", {}, 2),
    ("dpmpp_sde", QUIET | {"r": 0.3}, 2),
]


@pytest.mark.parametrize("name, options, draws", K_CASES, ids=lambda v: str(v))
def test_equals_k_diffusion(name, options, draws):
    basis = {"basis": Brownian} if draws == 2 else {}
    trace, _ = probe_k(name, SIGMAS, 2 * STEPS - 1, draws * (STEPS - 1), **basis, **options)
    grid = grids.from_sigmas(EDM(), SIGMAS)
    plan = SOLVERS[name](EDM(), grid, prediction="x0", compat="k-diffusion", **options)
    asked = [float(plan.sigma[i]) for i in range(plan.rows) if plan.call[i] >= 0]
    np.testing.assert_allclose(asked, trace.asked, rtol=64 * EPS)
    compare(plan, trace)


@pytest.mark.parametrize("options", [CHURN, {"s_churn": 40.0}], ids=["CHURN", "bounded"])
def test_equals_k_diffusion_euler_with_churn(options):
    trace, _ = probe_k("euler", SIGMAS, STEPS, STEPS, **options)
    plan = SOLVERS["euler"](EDM(), grids.from_sigmas(EDM(), SIGMAS), prediction="x0", **options)
    compare(plan, trace)


def test_probe_tells_the_path_of_k_diffusion_from_the_equation_s():
    trace, _ = probe_k("dpmpp_sde", SIGMAS, 2 * STEPS - 1, 2 * (STEPS - 1), basis=Brownian)
    plan = SOLVERS["dpmpp_sde"](EDM(), grids.from_sigmas(EDM(), SIGMAS), prediction="x0")
    with pytest.raises(AssertionError, match="is rounding"):
        compare(plan, trace)


DIFFUSERS = [
    ("dpm_2_ancestral", "k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler", 1),
    ("dpmpp_sde", "dpmsolver_sde", "DPMSolverSDEScheduler", 2),
]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name, module, peer, draws", DIFFUSERS, ids=[c[0] for c in DIFFUSERS])
def test_equals_diffusers(name, module, peer, draws, prediction):
    """Both list every level but the first and the end twice."""
    peer = scheduler(module, peer, **VP, prediction_type=prediction)
    trace, _ = probe(peer, 6, draws * 5, basis=Brownian if draws == 2 else Basis)
    schedule, levels = DiscreteVP.scaled_linear(), peer.sigmas.numpy()
    grid = grids.from_sigmas(schedule, np.append(levels[0], levels[1::2]))
    plan = SOLVERS[name](schedule, grid, prediction=KIND[prediction], compat="diffusers")
    compare(plan, trace, scaled=True)


@pytest.mark.parametrize("options", [{}, QUIET], ids=str)
def test_equals_diffusers_ltx_ancestral(options):
    """It adds 1e-12 to 1 - down, and to its square, where it divides by them."""
    peer = scheduler("ltx_euler_ancestral_rf", "LTXEulerAncestralRFScheduler", **options)
    trace, _ = probe(peer, 8, 7)
    s, t = peer.sigmas.numpy()[:-2], peer.sigmas.numpy()[1:-1]
    down = t * (1 + (t / s - 1) * options.get("eta", 1.0))
    q = (1 - t) / (1 - down)
    up = np.sqrt(t**2 - (q * down) ** 2)
    known = 1e-12 * (1 / (1 - down) + (q * down / (1 - down)) ** 2 / (2 * up))
    grid = grids.from_sigmas(Flow(), peer.sigmas.numpy())
    plan = SOLVERS["euler_ancestral"](Flow(), grid, prediction="flow", **options)
    compare(plan, trace, known=known.sum())


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_equals_diffusers_ddpm(variance):
    config = VP | {"variance_type": variance, "clip_sample": False, "steps_offset": 1}
    peer = scheduler("ddpm", "DDPMScheduler", **config, timestep_spacing="leading")
    words = {"draws": 7, "times": own_times, "variance": variance, "compat": "diffusers"}
    discrete(peer, "ddpm", "epsilon", **words)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_equals_diffusers_tcd(prediction, gamma):
    """Its last step goes to entry 0 of the table."""
    peer = scheduler("tcd", "TCDScheduler", **VP, prediction_type=prediction)
    step = peer.step
    peer.step = lambda out, t, x: step(out, t, x, eta=gamma, return_dict=False)
    to_first = lambda schedule, peer: np.append(peer.timesteps.numpy().astype(float), 0.0)
    words = {"times": to_first, "gamma": gamma, "compat": "diffusers"}
    discrete(peer, "tcd", prediction, steps=4, draws=4 if gamma else 0, **words)


@pytest.mark.parametrize("spread", [0.5, 1.3])
def test_equals_diffusers_consistency_models(spread):
    """Its network says F of EDM's preconditioning, and its run ends at sigma_min."""
    config = {"sigma_data": spread, "clip_denoised": False, "s_noise": 1.1}
    peer = scheduler("consistency_models", "CMStochasticIterativeScheduler", **config)
    trace, _ = probe(peer, 5, 5)
    schedule = EDM(0.002, 80.0, spread)
    grid = grids.from_sigmas(schedule, peer.sigmas.numpy())
    words = {"sigma_data": spread, "s_noise": 1.1, "prediction": "edm"}
    compare(SOLVERS["cm"](schedule, grid, **words), trace)
