"""Our plans against other libraries' samplers, by superposition: every state of both, as
coefficients over start, model outputs and noises.

The peers run in float64 on their own grids; ours is made from their sigmas. k-diffusion's model
gives x0 at alpha = 1; diffusers' gives eps, v, x0 or a flow's velocity. Where a peer deviates from
the exact formula our plan is made with compat=.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import numpy as np
import pytest
from oracle.linear import EPS
from oracle.peers import probe, probe_k, scheduler
from oracle.probe import states

from fastsample import grids
from fastsample.schedules import EDM, DiscreteVP, Flow
from fastsample.solvers import SOLVERS

if find_spec("diffusers") is None or find_spec("k_diffusion") is None:
    pytest.skip(
        "the peers are not installed: pip install 'fastsample[bench]'; pip install --no-deps "
        "k-diffusion",
        allow_module_level=True,
    )

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # diffusers' own
VP = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KARRAS = VP | {"use_karras_sigmas": True}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SIGMAS = np.array([14.6, 9.7, 4.1, 1.7, 0.6, 0.2, 0.05, 0.0])
KIND = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


def compare(plan, trace, *, scaled: bool = False, known: float = 0.0, scale: tuple = ()) -> None:
    """Every state of the plan against the peer's, with the start normalised to 1; scaled: the
    peer's state is x/alpha; known: what the peer adds that is no rounding; scale: of guidance.

    Rounding: both know lambda to eps (1 + |lambda|), hence weights to that over the shortest step,
    and add a few terms a step.
    """
    run = states(plan, raw=True, scale=scale)
    ours = run.states
    if scaled:
        ours = ours / np.append(plan.alpha[run.row], plan.alpha[-1])[:, None]
    ours[:, 0] /= ours[0, 0]
    theirs, spare = np.split(np.array(trace.states), [ours.shape[1]], axis=1)
    # a peer may draw a noise and add none of it
    assert not spare.any(), "the peer adds noise where the plan draws none"
    assert ours.shape == theirs.shape
    gap = np.abs(ours - theirs).max(1) / np.maximum(np.abs(theirs).max(1), 1)
    with np.errstate(divide="ignore"):
        lam = np.log(plan.alpha) - np.log(plan.sigma)
    lam = np.unique(lam[1:][np.isfinite(lam[1:])])
    shortest = np.min(np.diff(lam)[np.diff(lam) > 1e-9], initial=1.0)
    room = known + 32 * EPS * len(theirs) * (1 + np.abs(lam).max()) / shortest
    assert gap.max() <= room, (
        f"state {gap.argmax()} of {len(gap) - 1} differs by {gap.max():.1e}; {room:.1e} is rounding"
    )


CHURN = {"s_churn": 2.0, "s_tmin": 0.1, "s_tmax": 50.0, "s_noise": 1.003}
LOUD, SDE = {"eta": 1.7, "s_noise": 0.9}, {"eta": 0.4, "s_noise": 1.1}
HEUN, OUR_HEUN = {"solver_type": "heun"}, {"variant": "heun"}
# peer, its options, our solver, its options, evaluations a step, noises the peer draws
K_CASES = [
    ("euler", {}, "euler", {}, 1, 0),
    ("euler_ancestral", {}, "euler_ancestral", {}, 1, 6),
    ("euler_ancestral", {"eta": 0.6}, "euler_ancestral", {"eta": 0.6}, 1, 6),
    ("euler_ancestral", LOUD, "euler_ancestral", LOUD, 1, 6),
    ("heun", {}, "heun", {}, 2, 0),
    ("heun", CHURN, "heun", CHURN, 2, 7),
    ("heun", {"s_churn": 40.0}, "heun", {"s_churn": 40.0}, 2, 7),
    ("dpmpp_2m", {}, "dpmpp_2m", {}, 1, 0),
    ("dpmpp_2m_sde", {}, "dpmpp_2m_sde", {}, 1, 6),
    ("dpmpp_2m_sde", SDE | HEUN, "dpmpp_2m_sde", SDE | OUR_HEUN, 1, 6),
    ("dpmpp_2s_ancestral", {"eta": 0.0}, "dpmpp_2s", {}, 2, 7),
    ("dpmpp_3m_sde", {"eta": 0.0}, "dpmpp_3m", {"compat": "k-diffusion"}, 1, 6),
]


@pytest.mark.parametrize(
    "peer, theirs, ours, options, calls, draws", K_CASES, ids=[f"{c[0]}-{c[1]}" for c in K_CASES]
)
def test_equals_k_diffusion(peer, theirs, ours, options, calls, draws):
    steps = len(SIGMAS) - 1
    total = calls * steps - (calls - 1)
    trace, basis = probe_k(peer, SIGMAS, total, draws, **theirs)
    schedule = EDM()
    plan = SOLVERS[ours](schedule, grids.from_sigmas(schedule, SIGMAS), prediction="x0", **options)
    asked = [float(plan.sigma[i]) for i in range(plan.rows) if plan.call[i] >= 0]
    np.testing.assert_allclose(asked, trace.asked, rtol=8 * EPS * 8)
    compare(plan, trace)


def own_sigmas(schedule, peer) -> np.ndarray:
    return grids.from_sigmas(schedule, peer.sigmas.numpy())


def own_times(schedule, peer) -> np.ndarray:
    return grids.from_timesteps(schedule, peer.timesteps.numpy().astype(float))


def discrete(
    peer, solver, prediction, *, scaled=False, steps=7, draws=0, times=own_sigmas, **options
) -> None:
    """Probe a diffusers scheduler on the scaled-linear table and compare; times gives the grid."""
    trace, _ = probe(peer, steps, draws)
    schedule = DiscreteVP.scaled_linear()
    plan = SOLVERS[solver](schedule, times(schedule, peer), prediction=KIND[prediction], **options)
    compare(plan, trace, scaled=scaled)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_equals_diffusers_ddim(prediction, eta):
    peer = scheduler("ddim", "DDIMScheduler", **VP, clip_sample=False, prediction_type=prediction)
    step = peer.step
    peer.step = lambda out, t, x: step(out, t, x, eta=eta)
    discrete(peer, "ddim", prediction, draws=7 if eta else 0, times=own_times, eta=eta)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("karras", [False, True])
def test_equals_diffusers_euler_and_ancestral(prediction, karras):
    config = VP | {"prediction_type": prediction}
    more = {"use_karras_sigmas": karras}
    peer = scheduler("euler_discrete", "EulerDiscreteScheduler", **config, **more)
    discrete(peer, "euler", prediction, scaled=True)
    if not karras:
        module, name = "euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"
        peer = scheduler(module, name, **config)
        discrete(peer, "euler_ancestral", prediction, scaled=True, draws=7)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_diffusers_heun(prediction):
    config = KARRAS | {"prediction_type": prediction}
    peer = scheduler("heun_discrete", "HeunDiscreteScheduler", **config)

    def each(schedule, peer):  # it lists every level but the ends twice
        levels = peer.sigmas.numpy()
        return grids.from_sigmas(schedule, np.append(levels[0], levels[1::2]))

    discrete(peer, "heun", prediction, scaled=True, times=each)


DPM = [
    ("dpmpp_2m", {}, {}),
    ("dpmpp_2m", HEUN, OUR_HEUN),
    ("dpmpp_3m", {"solver_order": 3}, {}),
    ("dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver++"}, {"eta": 1.0}),
    ("dpmpp_2m_sde", {"algorithm_type": "sde-dpmsolver++"} | HEUN, {"eta": 1.0} | OUR_HEUN),
]


def multistep(**config):
    return scheduler("dpmsolver_multistep", "DPMSolverMultistepScheduler", **config)


@pytest.mark.parametrize("solver, theirs, options", DPM, ids=[f"{c[0]}-{c[1]}" for c in DPM])
@pytest.mark.parametrize(
    "prediction, steps", [("epsilon", 7), ("v_prediction", 15), ("sample", 14)]
)
def test_equals_diffusers_dpm_multistep(solver, theirs, options, prediction, steps):
    peer = multistep(**KARRAS, prediction_type=prediction, **theirs)
    sde = solver == "dpmpp_2m_sde"
    options = options if sde else options | {"compat": "diffusers"}
    discrete(peer, solver, prediction, steps=steps, draws=steps if sde else 0, **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_diffusers_dpm_singlestep(prediction):
    """It walks a grid in pairs; if even in log sigma, each second level is our half-way stage."""
    peer = scheduler(
        "dpmsolver_singlestep",
        "DPMSolverSinglestepScheduler",
        **VP,
        prediction_type=prediction,
        use_exponential_sigmas=True,
        final_sigmas_type="zero",
        lower_order_final=True,
    )

    def every_second(schedule, peer):
        return grids.from_sigmas(schedule, np.append(peer.sigmas.numpy()[:9:2], 0.0))

    discrete(peer, "dpmpp_2s", prediction, steps=9, times=every_second)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_diffusers_unipc(order, variant, prediction):
    # its bh1 is NaN at sigma = 0
    config = KARRAS if variant == "bh2" else VP | {"final_sigmas_type": "sigma_min"}
    config = config | {"solver_order": order, "solver_type": variant, "prediction_type": prediction}
    peer = scheduler("unipc_multistep", "UniPCMultistepScheduler", **config)
    discrete(peer, "unipc", prediction, steps=9, order=order, variant=variant)


def flow(peer, solver: str, **options) -> None:
    trace, _ = probe(peer, 8)
    grid = own_sigmas(Flow(), peer)
    compare(SOLVERS[solver](Flow(), grid, prediction="flow", **options), trace)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_diffusers_unipc_on_flow(order):
    peer = scheduler("unipc_multistep", "UniPCMultistepScheduler", **FLOW, solver_order=order)
    flow(peer, "unipc", order=order)


def test_equals_diffusers_dpm_multistep_on_flow():
    flow(multistep(**FLOW), "dpmpp_2m", compat="diffusers")


def test_equals_diffusers_flow_match_euler():
    module, name = "flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler"
    flow(scheduler(module, name, shift=3.0), "euler")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_equals_diffusers_lcm(prediction):
    peer = scheduler("lcm", "LCMScheduler", **VP, prediction_type=prediction)
    discrete(peer, "lcm", prediction, steps=4, draws=4, times=own_times)


def test_probe_tells_a_wrong_row():
    """The comparison can fail: 2M midpoint is not 2M heun, and half of the third-order weight is
    not all of it.
    """
    peer = multistep(**KARRAS, solver_order=3)
    with pytest.raises(AssertionError, match="is rounding"):
        discrete(peer, "dpmpp_3m", "epsilon")
    assert math.isfinite(float(peer.sigmas[0]))
