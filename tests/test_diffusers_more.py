"""FsScheduler in place of the rarer classes, where a step is no table of coefficients: noises,
strengths and what else a step is told, beside the class itself.
"""

import numpy as np
import pytest
import test_diffusers
import torch

import fastsample
from tests.oracle.pipelines import loop, network, start

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
SD, KARRAS = test_diffusers.SD, test_diffusers.KARRAS
V = {"prediction_type": "v_prediction"}


def pair(name, compat="diffusers", **config):
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    return peer, FsScheduler.from_config(peer, compat=compat)


@pytest.mark.parametrize("config", [{}, KARRAS, {"prediction_type": "v_prediction"}])
@pytest.mark.parametrize("seed", [3, [3, 5]])
def test_a_seed_of_dpm_solver_sde_draws_the_same_path(config, seed):
    """One path for the batch or one for each sample; a generator is taken in its place."""
    pytest.importorskip("torchsde")
    schedulers = pair("DPMSolverSDE", **SD, noise_sampler_seed=seed, **config)
    x = 14.0 * start(2, 3, 4, 4)
    theirs, ours = (loop(s, x, 6) for s in schedulers)
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    drawn = [loop(schedulers[1], x, 6, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
    assert torch.equal(*drawn) and not torch.allclose(drawn[0], ours, rtol=1e-3)


@pytest.mark.parametrize("tau", [None, lambda t: 0.5 if t > 300 else 0.0, lambda t: 1.3])
def test_tau_of_sa_solver_is_that_of_the_timestep(tau):
    """A function of it, which no file says; what it says is a number from 0 up."""
    config = SD | {"tau_func": tau}
    with test_diffusers.in_double("SASolver"):
        peer, ours = pair("SASolver", **config)
        exact = test_diffusers.table(peer, 8, torch.float64)
        assert np.abs(test_diffusers.table(ours, 8, torch.float64) - exact).max() < 1e-12
    wrong = FsScheduler(source="SASolverScheduler", tau_func=lambda t: -1.0, compat=None)
    with pytest.raises(ValueError, match="what tau_func says = -1.0; a number from 0 up"):
        wrong.set_timesteps(4)


@pytest.mark.parametrize("config", [{}, V, {"prediction_type": "sample"}])
@pytest.mark.parametrize("eta", [None, 0.0, 0.7, 1.0])
def test_eta_of_tcd_is_its_own(eta, config):
    """.3 where nobody says one; and what stands before a step's noise, in bfloat16 too."""
    given = {} if eta is None else {"eta": eta}
    peer, ours = pair("TCD", **config)
    x, ends = start(2, 3, 4, 4), []
    for scheduler in (peer, ours):
        ends.append(loop(scheduler, x, 5, generator=torch.Generator().manual_seed(3), **given))
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-5)
    for begin in (0, 2):
        for scheduler in (peer, ours):
            scheduler.set_timesteps(5)
            scheduler.set_begin_index(begin)
        y = x
        for t in ours.timesteps[begin:]:
            f, steps = network(y, t), []
            for scheduler in (peer, ours):
                words = {"generator": torch.Generator().manual_seed(3), **given}
                steps.append(scheduler.step(f, t, y, **words, return_dict=begin > 0))
            steps = [s.to_tuple() if begin else s for s in steps]
            assert [len(s) for s in steps] == [2, 2]
            for theirs, own in zip(*steps, strict=True):
                assert torch.allclose(theirs, own, rtol=1e-4, atol=1e-5)
            y = steps[0][0]
    ours.set_timesteps(5)
    t, words = ours.timesteps[0], {"return_dict": False, **given}
    f, x = network(x, t).bfloat16(), x.bfloat16()
    rough = ours.step(f, t, x, **words)[1]
    ours.set_timesteps(5)
    fine = ours.step(f.float(), t, x.float(), **words)[1]
    assert rough.dtype == torch.bfloat16 and torch.equal(rough, fine.bfloat16())  # rounded once
    ours.set_timesteps(5)
    with pytest.raises(ValueError, match="tcd: gamma = 1.5; a number from 0 to 1"):
        ours.step(x, t, x, eta=1.5)


# what a step is told of its run: (class, its options, arguments of step)
TOLD = [
    *(("LMSDiscrete", {}, {"order": k}) for k in (1, 2, 3)),
    ("LMSDiscrete", KARRAS | V, {"order": 2}),
    ("EulerDiscrete", {}, {"s_churn": 3.0}),
    ("EulerDiscrete", V, {"s_churn": 3.0, "s_tmin": 0.5, "s_tmax": 5.0, "s_noise": 1.1}),
    ("EulerDiscrete", {"prediction_type": "sample"}, {"s_churn": 30.0}),
    ("EulerDiscrete", KARRAS | {"final_sigmas_type": "sigma_min"}, {"s_churn": 2.0}),
    ("EDMEuler", {"sigma_data": 0.7}, {"s_churn": 3.0, "s_noise": 0.9}),
    ("EDMEuler", V, {"s_churn": 2.0, "s_tmin": 1.0}),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}, {"s_churn": 3.0, "s_tmin": 0.4}),
]


@pytest.mark.parametrize(("name", "config", "given"), TOLD)
def test_what_a_step_is_told_makes_its_rows(name, config, given):
    """Beside the class in float64, noise for noise; not what it is without; and nothing else in the
    middle of a run.
    """
    states = []
    config = config if name.startswith(("EDM", "Flow")) else SD | config
    with test_diffusers.in_double(name):
        peer, ours = pair(name, **config)
        for scheduler, words in ((peer, given), (ours, given), (ours, {})):
            drawn = {"generator": torch.Generator().manual_seed(3)} if "s_churn" in given else {}
            x = 9.0 * start(2, 3, 4, 4, dtype=torch.float64)
            states.append(loop(scheduler, x, 7, **words, **drawn))
            if drawn:  # as often as the class, for whatever is drawn next
                states.append(torch.randn(3, generator=drawn["generator"]))
    ends, draws = (states[::2], states[1::2]) if "s_churn" in given else (states, [])
    assert (ends[0] - ends[1]).abs().max() <= 1e-12 * ends[0].abs().max()
    assert not torch.allclose(ends[1], ends[2], rtol=1e-3)
    assert not draws or torch.equal(*draws[:2])
    ours.set_timesteps(4)
    x = ours.step(x, ours.timesteps[0], x, **given).prev_sample
    with pytest.raises(ValueError, match="the defaults after .* = .*; one value for the whole run"):
        ours.step(x, ours.timesteps[1], x)


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_noises_of_dpm_solver_sde_are_scaled(compat):
    pytest.importorskip("torchsde")
    schedulers = pair("DPMSolverSDE", compat, **SD, noise_sampler_seed=3)
    x = 14.0 * start(2, 3, 4, 4)
    if compat:
        theirs, ours = (loop(s, x, 6, s_noise=0.5) for s in schedulers)
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
    loop(schedulers[1], x, 6, s_noise=0.5)
    schedulers[1].set_timesteps(6)
    schedulers[1].step(x, schedulers[1].timesteps[0], x, s_noise=0.5)
    assert schedulers[1]._loops.get()._run.plan.note["arguments"]["s_noise"] == 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("EulerDiscrete", r"euler\(\.\.\., s_churn=3\) by"),
        (
            "FlowMatchHeunDiscrete",
            r"heun\(\.\.\., space='rho', s_churn=3\) from below sigma = 1 by",
        ),
    ],
)
def test_churn_of_an_exact_run_is_a_plan(name, words):
    """As the sentence says: noise comes before the model is asked, at the level it leads to."""
    _, ours = pair(name, None)
    x = start(1, 2, 4, 4)
    ours.set_timesteps(6)
    with pytest.raises(
        ValueError, match=f"exact run, .*; compat='diffusers', or a plan of .*{words}"
    ):
        ours.step(x, ours.timesteps[0], x, s_churn=3.0)
    if name == "EulerDiscrete":
        table = fastsample.schedules.DiscreteVP.linear()
        grid, kind = fastsample.grids.leading(table, 6), "eps"
        plan = fastsample.solvers.euler(table, grid, prediction=kind, s_churn=3.0)
    else:
        grid, flow = np.linspace(0.9, 0.0, 7), fastsample.schedules.Flow()
        model = fastsample.Model(None, flow, "flow", time=1000)
        plan = fastsample.solvers.heun(model, grid, space="rho", s_churn=3.0)
    planned = FsScheduler.from_plan(plan, like=ours)
    noise = {"generator": torch.Generator().manual_seed(3)}
    end = loop(planned, x * planned.init_noise_sigma, plan.nfe, **noise)
    assert plan.L and torch.isfinite(end).all() and float(planned.timesteps[0]) > grid[0]


def bad_options():
    """(source, arguments of step, sentence)"""
    accepted = "1, 2, 3 or 4 is accepted"
    for order in (0, 5, 2.5, True):
        yield (
            "LMSDiscrete",
            {"order": order},
            f"order = {order} of LMSDiscreteScheduler; {accepted}",
        )
    up = "a number from 0 up is accepted"
    yield "EulerDiscrete", {"s_churn": -1.0}, f"s_churn = -1.0 of EulerDiscreteScheduler; {up}"
    yield "EulerDiscrete", {"s_churn": 1.0, "s_noise": "a"}, f"s_noise = 'a' of Euler.*; {up}"
    yield "FlowMatchHeunDiscrete", {"s_churn": float("nan")}, f"s_churn = nan of Flow.*; {up}"
    yield "DPMSolverSDE", {"s_noise": float("inf")}, f"s_noise = inf of DPMSolverSDE.*; {up}"
    yield "HeunDiscrete", {"order": 2}, "order = 2 of HeunDiscreteScheduler is not reproduced; 4"


@pytest.mark.parametrize(("name", "given", "sentence"), list(bad_options()))
def test_what_no_rows_are_made_of_is_refused(name, given, sentence):
    _, ours = pair(name)
    ours.set_timesteps(4)
    x = start(1, 4)
    with pytest.raises(ValueError, match=sentence):
        ours.step(x, ours.timesteps[0], x, **given)
    assert ours.step_index is None


@pytest.mark.parametrize(
    ("name", "config", "solver"),
    [
        ("DEISMultistep", {"solver_order": 3, "lower_order_final": False}, "deis"),
        ("LMSDiscrete", {}, "lms"),
        ("KDPM2Discrete", {}, "dpm_2"),
        ("KDPM2AncestralDiscrete", {}, "dpm_2_ancestral"),
        ("DPMSolverSDE", {}, "dpmpp_sde"),
        ("TCD", {}, "tcd"),
    ],
)
def test_exact_runs_are_the_solvers_own(name, config, solver):
    """Rows of the registry's solver on the exact grid, the model told the label of every call."""
    _, ours = pair(name, None, **config)
    ours.set_timesteps(6)
    plan = ours.plan
    assert plan.note["solver"] == solver and plan.note["compat"] == "exact"
    maker = getattr(fastsample.solvers, solver)
    table = fastsample.schedules.from_json(plan.note["schedule"])
    words = {k: v for k, v in plan.note["arguments"].items() if k != "space"}
    again = maker(table, plan.note["grid"], prediction=plan.note["prediction"], **words)
    assert np.array_equal(plan.M, again.M) and np.array_equal(plan.sigma, again.sigma)
    if name != "TCD":  # levels and labels belong together
        betas = fastsample.interop.diffusers.grids.noise_schedule(ours.config)
        calls = np.flatnonzero(plan.call >= 0)
        level = np.exp(-betas.half_log_snr(plan.t[calls - 1, 0]))
        assert np.allclose(level, plan.sigma[calls] / plan.alpha[calls], rtol=2e-3)


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_a_parallel_class_is_the_one_it_is_made_of(name):
    """Saved and loaded too. It has one method less, for which a step at each timestep stands."""
    config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    peer, ours = pair(f"{name}Parallel", **SD, **config)
    assert ours.config.source == f"{name}Scheduler" and ours.config.timestep_spacing == "trailing"
    x, ends = start(2, 3, 4, 4), []
    for scheduler in (peer, ours, FsScheduler.from_config(ours.config)):
        ends.append(loop(scheduler, x, 5, generator=torch.Generator().manual_seed(3)))
    assert torch.allclose(*ends[:2], rtol=1e-4, atol=1e-5) and torch.equal(*ends[1:])
    with pytest.raises(
        AttributeError, match="step at each timestep, of DDIM and DDPM in any order"
    ):
        _ = ours.batch_step_no_noise
    if name == "DDIM":
        for scheduler in (peer, ours):
            scheduler.set_timesteps(5)
        times, f = ours.timesteps[[1, 3]], 0.3 * x
        theirs = peer.batch_step_no_noise(f, times, x)
        each = [ours.step(f[k : k + 1], t, x[k : k + 1]).prev_sample for k, t in enumerate(times)]
        assert torch.allclose(theirs, torch.cat(each), rtol=1e-5, atol=1e-5)


def test_a_flow_that_grows_on_the_way_is_refused():
    """FlowMatchLCM's scale factors; at each size a run of its own is accepted."""
    with pytest.raises(ValueError, match=r"scale_factors = \[0.5\] of FlowMatchLCM.*; None is acc"):
        pair("FlowMatchLCM", scale_factors=[0.5])
    _, ours = pair("FlowMatchLCM", shift=3.0)
    assert not hasattr(ours, "set_scale_factors") and ours.shift == 3.0
    with pytest.raises(AttributeError, match="samples of one size; a run of its own for each size"):
        ours.set_scale_factors([0.5], "bicubic")
    peer = diffusers.FlowMatchLCMScheduler(invert_sigmas=True)
    with pytest.raises(
        ValueError, match="invert_sigmas = True of FlowMatchLCM.*; False is accepted"
    ):
        FsScheduler.from_config(peer)


@pytest.mark.parametrize("config", [{}, {"sigma_data": 1.0, "rho": 5.0}, {"clip_denoised": False}])
@pytest.mark.parametrize(
    "words",
    [
        {"num_inference_steps": 1},
        {"num_inference_steps": 40},
        {"timesteps": [22, 0]},
        {"timesteps": [39, 20, 3]},
    ],
    ids=str,
)
def test_a_consistency_model_is_told_as_its_own(config, words):
    """Its places count up from the noisiest; one step draws nothing, others a noise each; the last
    of 40 stands at sigma_min, where D is x.
    """
    ends = []
    for scheduler in pair("CMStochasticIterative", **config):
        scheduler.set_timesteps(**words)
        draws = torch.Generator().manual_seed(3)
        x = scheduler.init_noise_sigma * torch.randn(2, 3, 4, 4, generator=draws)
        for t in scheduler.timesteps:
            told = scheduler.scale_model_input(x, t)
            x = scheduler.step(3.0 * torch.tanh(told + t / 500), t, x, draws).prev_sample
        ends.append((scheduler.timesteps, scheduler.sigmas, x, torch.rand(1, generator=draws)))
    for own, theirs in zip(*ends, strict=True):
        assert own.dtype == theirs.dtype and torch.allclose(own, theirs, rtol=1e-5, atol=1e-5)
    assert bool(x.abs().max() <= 1.0 + 1e-5) is config.get("clip_denoised", True)


def test_a_consistency_model_s_words():
    """Exact runs are `solvers.cm` where nothing is bounded; another class's model is none, and its
    own steps and timesteps are bounded.
    """
    _, ours = pair("CMStochasticIterative", None, clip_denoised=False)
    ours.set_timesteps(4)
    plan = ours.plan
    assert plan.note["solver"] == "cm" and plan.sigma[-1] == 0.002 and plan.L == 1
    assert np.allclose(ours.timesteps, 250.0 * np.log(plan.sigma[1:-1]), rtol=1e-6)
    assert np.allclose(plan.c[:-2], (plan.sigma[1:-1] ** 2 + 0.25) ** -0.5, rtol=1e-15)
    assert float(ours.init_noise_sigma) == plan.sigma[1] == pytest.approx(80.0)
    for steps, sentence in ((41, "41 steps of 40 timesteps; at most 40"), (0, "0 steps; a whole")):
        with pytest.raises(ValueError, match=sentence):
            ours.set_timesteps(steps)
    with pytest.raises(ValueError, match="numbers from 39 down to 0"):
        ours.set_timesteps(timesteps=[40, 3])
    for name in ("EDMEuler", "EulerDiscrete", "FlowMatchEulerDiscrete"):
        peer = getattr(diffusers, f"{name}Scheduler")()
        with pytest.raises(ValueError, match="samples consistency models, and .* others"):
            FsScheduler.from_config(peer, source="CMStochasticIterativeScheduler")
