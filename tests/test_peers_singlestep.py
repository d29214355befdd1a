"""Our Runge-Kutta plans against other libraries' samplers, by superposition, as test_peers.py has
it.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle.linear import EPS
from oracle.peers import k_diffusion, probe_k, scheduler
from oracle.probe import states
from test_peers import VP, compare, discrete

from fastsample import grids
from fastsample.interop.diffusers.dpm import Form, dpm
from fastsample.model import Model
from fastsample.schedules import EDM, Flow
from fastsample.solvers import SOLVERS
from fastsample.solvers._grouped import in_turn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own
SINGLE = [  # solver, its options; the class' options
    ("dpmpp_2s", {}, {"solver_order": 2}),
    ("dpmpp_2s", {"variant": "taylor"}, {"solver_order": 2, "solver_type": "heun"}),
    ("dpmpp_3s", {}, {"solver_order": 3}),
    ("dpmpp_3s", {"variant": "taylor"}, {"solver_order": 3, "solver_type": "heun"}),
    *(
        (
            "dpm_solver_singlestep",
            {"order": order, "variant": variant},
            {"solver_order": order, "solver_type": kind, "algorithm_type": "dpmsolver"},
        )
        for order in (1, 2, 3)
        for variant, kind in (("dpmsolver", "midpoint"), ("taylor", "heun"))
    ),
]


def single(**config):
    module, name = "dpmsolver_singlestep", "DPMSolverSinglestepScheduler"
    return scheduler(module, name, lower_order_final=True, **config)


@pytest.mark.parametrize("solver, options, theirs", SINGLE, ids=[f"{c[0]}-{c[1]}" for c in SINGLE])
@pytest.mark.parametrize("prediction, steps", [("epsilon", 7), ("v_prediction", 8), ("sample", 9)])
def test_equals_diffusers_singlestep(solver, options, theirs, prediction, steps):
    """Steps that leave every remainder, so every end of its list of orders. It takes noise-form
    steps to sigma_min alone.
    """
    end = "sigma_min" if "algorithm_type" in theirs else "zero"
    words = {"prediction_type": prediction, "final_sigmas_type": end, "use_karras_sigmas": True}
    peer = single(**VP, **words, **theirs)
    discrete(peer, solver, prediction, steps=steps, compat="diffusers", **options)


def fast(n: int):
    """k-diffusion's dpm_fast of n evaluations, with the call of its other samplers; in its last
    step, and without eta, it draws what it does not add.
    """
    code = k_diffusion()

    def sample(model, x, sigmas, disable=None, noise_sampler=None, eta=0.0, **words):
        low, high = float(sigmas[-1]), float(sigmas[0])
        drawn = lambda s, t: noise_sampler(s, t) if eta and t > 1.01 * low else 0.0 * x
        words |= {"noise_sampler": drawn, "eta": eta, "disable": True}
        return code.sample_dpm_fast(model, x, low, high, n, **words)

    return sample


@pytest.mark.parametrize("options", [{}, {"eta": 1.3}, {"eta": 0.7, "s_noise": 1.1}], ids=str)
@pytest.mark.parametrize("nfe", [5, 6, 7, 8, 12])
def test_equals_k_diffusion_dpm_fast(nfe, options, monkeypatch):
    """With eta = 1.3 more than one step would go below the end."""
    sigmas = np.exp(np.linspace(np.log(14.0), np.log(0.03), nfe // 3 + 2))
    monkeypatch.setattr(k_diffusion(), "sample_fast", fast(nfe), raising=False)
    trace, _ = probe_k("fast", sigmas, nfe, nfe // 3 if options else 0, **options)
    grid = grids.from_sigmas(EDM(), sigmas)
    plan = SOLVERS["dpm_fast"](EDM(), grid, prediction="x0", nfe=nfe, **options)
    asked = [float(plan.sigma[i]) for i in range(plan.rows) if plan.call[i] >= 0]
    np.testing.assert_allclose(asked, trace.asked, rtol=64 * EPS)
    compare(plan, trace)
    if not options:
        same = SOLVERS["dpm_solver_singlestep"](EDM(), grid, prediction="x0", nfe=nfe)
        assert np.array_equal(plan.M, same.M)


SIGMAS = np.array([14.6, 9.7, 4.1, 1.7, 0.6, 0.2, 0.05, 0.0])
CHURN = {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.003}


@pytest.mark.parametrize("options", [{}, CHURN], ids=["", "churn"])
def test_equals_k_diffusion_dpm_2(options):
    trace, _ = probe_k("dpm_2", SIGMAS, 13, 7 if options else 0, **options)
    plan = SOLVERS["dpm_2"](EDM(), grids.from_sigmas(EDM(), SIGMAS), prediction="x0", **options)
    asked = [float(plan.sigma[i]) for i in range(plan.rows) if plan.call[i] >= 0]
    np.testing.assert_allclose(asked, trace.asked, rtol=64 * EPS)
    compare(plan, trace)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("karras", [False, True])
def test_equals_diffusers_kdpm2(prediction, karras):
    words = {"prediction_type": prediction, "use_karras_sigmas": karras}
    peer = scheduler("k_dpm_2_discrete", "KDPM2DiscreteScheduler", **VP, **words)

    def each(schedule, peer):  # it lists every level but the first and the end twice
        levels = peer.sigmas.numpy()
        return grids.from_sigmas(schedule, np.append(levels[0], levels[1::2]))

    discrete(peer, "dpm_2", prediction, scaled=True, times=each)


def test_dpm_2_is_dpm_solver_of_order_2():
    """In rho; on a flow it is another method, that of its own sigma."""
    grid = grids.from_sigmas(EDM(), SIGMAS)
    ours = SOLVERS["dpm_2"](EDM(), grid, prediction="x0")
    same = SOLVERS["dpm_solver_singlestep"](EDM(), grid, prediction="x0", order=2)
    np.testing.assert_allclose(ours.M, same.M, rtol=64 * EPS, atol=64 * EPS)
    grid = grids.uniform(Flow(), 4, end="min")[1:]
    ours = SOLVERS["dpm_2"](Flow(), grid, prediction="x0")
    same = SOLVERS["dpm_solver_singlestep"](Flow(), grid, prediction="x0", order=2)
    assert np.abs(states(ours).states - states(same).states).max() > 1e-3


@pytest.mark.parametrize("variant, theirs", [("dpmsolver", "midpoint"), ("taylor", "heun")])
@pytest.mark.parametrize("order, noise", [(2, False), (3, False), (2, True), (3, True)])
def test_the_walk_is_that_of_fs_scheduler(order, noise, variant, theirs):
    """Rows written step by step over the outputs of a group, SDE and steps of length 0 included."""
    for n in (6, 7, 8):
        grid = grids.karras(EDM(), n, end="min" if noise else "zero")
        form = Form(noise=noise, variant=theirs, single=True, as_x0=True)
        orders = in_turn(n, 0, order, True)
        other = states(dpm(Model(None, EDM(), "x0"), grid, orders, form)).states
        words = {"order": order} if noise else {}
        name = "dpm_solver_singlestep" if noise else f"dpmpp_{order}s"
        words |= {"variant": variant, "compat": "diffusers"}
        ours = states(SOLVERS[name](EDM(), grid, prediction="x0", **words)).states
        assert np.abs(ours - other).max() <= 1e-12 * np.abs(other).max()
