"""PNDM with Runge-Kutta steps in front: the class's own pictures, in float64, and exact ones."""

import copy

import numpy as np
import pytest
import torch

import fastsample
from fastsample.interop.diffusers.pndm import runge_kutta_plms, with_repeats
from fastsample.model import Model
from fastsample.schedules import EDM, DiscreteVP
from tests.oracle.pipelines import start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
X = start(1, 3, 4, 4, dtype=torch.float64)
TRAINED = {"trained_betas": np.linspace(1e-3, 2e-2, 100).tolist(), "num_train_timesteps": 100}
VP = DiscreteVP.linear(1000, 1e-4, 0.02)
ENDS = [(True, "epsilon"), (False, "v_prediction"), (False, "epsilon")]
MORE = [{}, {"steps_offset": 1}, TRAINED, {"beta_schedule": "squaredcos_cap_v2"}]
CONFIGS = [  # every pair of a spacing with each of the others
    {"timestep_spacing": spacing, "set_alpha_to_one": one, "prediction_type": kind, **more}
    for i, spacing in enumerate(("leading", "linspace", "trailing"))
    for k, more in enumerate(MORE)
    for one, kind in [ENDS[(i + k) % 3]]
]


def model(x, t):
    swing = 1 + 0.1 * np.sin(0.017 * float(t))
    return torch.tanh(0.7 * x + torch.sin(x.roll(1, -1))) * swing + 0.2 * x


def walk(scheduler, steps, begin=0, x=X, edit=None):
    scheduler.set_timesteps(steps)
    for i, t in enumerate(scheduler.timesteps[begin:]):
        x = scheduler.step(model(x, t), t, x, return_dict=False)[0]
        x = x + 0.1 if i == edit else x
    return x


def beside(config):
    """The class's own scheduler, its table made float64, and ours in its place."""
    peer = diffusers.PNDMScheduler(**config)
    ours, fine = FsScheduler.from_config(peer), copy.copy(peer)
    assert ours.config.compat == "diffusers"
    for name in ("alphas_cumprod", "final_alpha_cumprod"):
        setattr(fine, name, getattr(peer, name).double())
    return fine, ours


def exact(**config):
    config = {"timestep_spacing": "trailing", "source": "PNDMScheduler"} | config
    return FsScheduler(compat=None, **config)


def apart(a, b):
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: "-".join(f"{v}"[:9] for v in c.values()))
def test_the_class_in_float64(config):
    """Whole loops, and loops from the middle, where the class warms up all the same."""
    fine, ours = beside(config)
    for steps, begin in ((5, 0), (10, 5), (27, 15), (50, 0)):
        want = walk(fine, steps, begin)
        # the class's formula loses digits where alpha is small
        assert apart(want, walk(ours, steps, begin)) < 1e-10
        assert torch.equal(ours.timesteps, fine.timesteps)
        assert ours.timesteps.dtype == fine.timesteps.dtype
        assert ours.num_inference_steps == steps
        every = X.expand(len(fine.timesteps), -1, -1, -1)
        added = [s.add_noise(every, every.flip(-1), fine.timesteps) for s in (fine, ours)]
        assert apart(*added) < 1e-6  # float32 of the class's square roots


@pytest.mark.parametrize("edit", [0, 1, 3, 11, 13])
def test_an_edit_of_the_latent_means_what_it_does_there(edit):
    """Inside a Runge-Kutta step the class goes on from where the step began."""
    fine, ours = beside({})
    assert apart(walk(fine, 10, edit=edit), walk(ours, 10, edit=edit)) < 1e-11


def test_a_loop_of_our_own():
    """Algorithm 2 of Liu et al. written out: leading, 10 steps, every step 100, half of it 50."""
    table = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = (np.append(np.sqrt(v), end) for v, end in ((table, 1.0), (1 - table, 0.0)))

    def phi(x, t, to, e):
        to = max(to, -1)  # the end, without noise
        return alpha[to] / alpha[t] * x + (sigma[to] - alpha[to] / alpha[t] * sigma[t]) * e

    x, old = X, []
    for t in range(900, -1, -100):
        e = model(x, t)
        old = [e, *old[:3]]
        if t > 600:
            e2 = model(phi(x, t, t - 50, e), t - 50)
            e3 = model(phi(x, t, t - 50, e2), t - 50)
            e4 = model(phi(x, t, t - 100, e3), t - 100)
            e = (e + 2 * e2 + 2 * e3 + e4) / 6
        else:
            e = sum(w * f for w, f in zip((55, -59, 37, -9), old, strict=True)) / 24
        x = phi(x, t, t - 100, e)
    ours = FsScheduler.from_config(diffusers.PNDMScheduler(set_alpha_to_one=True))
    assert apart(x, walk(ours, 10)) < 1e-5  # the class's float32 table
    assert apart(x, walk(FsScheduler.from_config(ours, compat=None), 10)) < 1e-11


def test_the_exact_grid():
    """Rows leave x on the schedule; midpoints stand half-way; v is the eps of the same model."""
    scheduler, twin = exact(), exact(prediction_type="v_prediction")
    end = walk(scheduler, 8)
    assert scheduler.plan.consistency() < 1e-9
    assert scheduler.num_inference_steps == 8 and len(scheduler.timesteps) == 17
    told = [999.0, 936.5, 936.5, 874.0, 874.0, 811.5, 811.5, 749.0, 749.0, 686.5, 686.5, 624.0]
    assert scheduler.timesteps.tolist() == [*told, 624.0, 499.0, 374.0, 249.0, 124.0]
    twin.set_timesteps(8)
    x, plan = X, twin.plan
    for i, t in enumerate(twin.timesteps):
        alpha, sigma = plan.alpha[i + 1], plan.sigma[i + 1]
        x = twin.step((model(x, t) - sigma * x) / alpha, t, x)[0]
    assert apart(end, x) < 1e-10


@pytest.mark.parametrize(
    ("schedule", "ends", "order"), [(EDM(0.1, 10.0), (3.0, 1.0), 4), (VP, (900.0, 300.0), 2)]
)
def test_the_order(schedule, ends, order):
    """Where sigma/alpha falls evenly the fourth, which the weights alone make; else the second."""

    def end(steps):
        grid = with_repeats(np.linspace(*ends, steps + 1), skip_prk_steps=False)
        scheduler = FsScheduler.from_plan(runge_kutta_plms(Model(None, schedule, "eps"), grid))
        x = X * float(scheduler.init_noise_sigma)
        scheduler.set_timesteps(len(grid) - 1)
        for t, level in zip(scheduler.timesteps, scheduler.plan.sigma[1:], strict=False):
            x = scheduler.step(torch.tanh(x) * (1 + 0.1 * level), t, x)[0]
        return x

    finest, *others = (end(n) for n in (320, 20, 40, 80))
    errors = np.array([apart(finest, x) for x in others])
    assert np.allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.35)


@pytest.mark.parametrize("begin", range(17))
def test_an_exact_run_from_any_point(begin):
    """From wherever it begins, inside a Runge-Kutta step too, x keeps to the schedule: a model that
    always gives one noise comes to its data.
    """
    scheduler = exact()
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(begin)
    noise, data = start(1, 3, 4, 4, dtype=torch.float64, seed=1), X
    x = scheduler.add_noise(data, noise, scheduler.timesteps[begin])
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(noise, t, x)[0]
    assert apart(data, x) < 1e-9


def test_too_few_steps():
    said = "3 steps of PNDMScheduler with skip_prk_steps = False.*; 4 or more are accepted"
    for scheduler in (exact(), FsScheduler.from_config(diffusers.PNDMScheduler())):
        with pytest.raises(ValueError, match=said):
            scheduler.set_timesteps(3)
        assert torch.isfinite(walk(scheduler, 4)).all()
