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


def walk(scheduler, steps, begin=0, x=X, edit=None, told=None):
    scheduler.set_timesteps(steps)
    for i, t in enumerate(scheduler.timesteps[begin:]):
        f = model(x.to(told or x.dtype), t).to(x.dtype)
        x = scheduler.step(f, t, x, return_dict=False)[0]
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


def test_gradients_of_the_class():
    """Through every base that a Runge-Kutta step comes back to, and through the history."""
    found = []
    for scheduler in beside({}):
        x = X.clone().requires_grad_()
        walk(scheduler, 6, x=x).square().sum().backward()
        found.append(x.grad)
    assert apart(*found) < 1e-11


def test_half_precision():
    """The dtype of the class; nearer to the class in float64 than its own half-precision steps."""
    fine, ours = beside({})
    plain = diffusers.PNDMScheduler()
    want, x = walk(fine, 10), X.half()
    ends = [walk(s, 10, x=x, told=torch.float32) for s in (plain, ours)]
    assert ends[0].dtype == ends[1].dtype == torch.float16
    errors = [apart(want, end.double()) for end in ends]
    assert errors[1] < 0.02 and errors[1] < 2 * errors[0]


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


@pytest.mark.parametrize("skip", [False, True])
def test_steps_by_name(skip):
    """What step does at its place, and a sentence where the other is due."""
    peer = diffusers.PNDMScheduler(skip_prk_steps=skip)
    ours = FsScheduler.from_config(peer)
    assert ours.prk_timesteps is ours.plms_timesteps is None
    want = walk(ours, 10)
    for scheduler in (ours, peer):
        scheduler.set_timesteps(10)
    for name in ("prk_timesteps", "plms_timesteps"):
        assert np.array_equal(getattr(ours, name), getattr(peer, name))
        with pytest.raises(AttributeError, match=rf"{name} cannot be set .* set_timesteps\(n\)"):
            setattr(ours, name, [1, 2])
    x, names = X, ("step_prk", "step_plms")
    for name, other in (names, names[::-1]):
        for t in getattr(ours, name[5:] + "_timesteps"):
            with pytest.raises(ValueError, match=f"{other}: .* {name}, or step, is accepted there"):
                getattr(ours, other)(x, t, x)
            x = getattr(ours, name)(model(x, t), t, x).prev_sample
    assert torch.equal(want, x)
    with pytest.raises(IndexError, match="set_timesteps starts again"):
        ours.step_plms(x, 0, x)
    ddim = FsScheduler.from_config(diffusers.DDIMScheduler())
    assert not any(hasattr(ddim, name) for name in (*names, "prk_timesteps", "ets"))


def test_the_exact_steps_by_name_from_the_middle():
    scheduler = exact()
    scheduler.set_timesteps(8)
    scheduler.set_begin_index(12)
    with pytest.raises(ValueError, match="step_prk: .* step_plms, or step, is accepted there"):
        scheduler.step_prk(X, scheduler.timesteps[12], X)
    assert torch.isfinite(scheduler.step_plms(X, scheduler.timesteps[12], X).prev_sample).all()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_history_that_was_written(skip, prediction):
    """It goes on from it as the class does, from any timestep; a deep copy stands where it stood;
    the next set_timesteps forgets it. Not in the middle of a run, and not without compat.
    """
    peer, ours = beside({"skip_prk_steps": skip, "prediction_type": prediction})
    past = [X + k for k in range(4)]
    for scheduler in (peer, ours):
        scheduler.set_timesteps(10)
        scheduler.ets = past[:]
    name = "step_plms" if skip else "step_prk"
    steps = [(name, 5), ("step_plms", 7), ("step_plms", 0), *(("step", t) for t in (800, 750, 90))]
    steps, x = steps + [("step", t) for t in range(700, 130, -50)], X
    for called, t in steps:
        twin, given = copy.deepcopy(ours), (model(x, t), t, x)
        want, a, b = (getattr(s, called)(*given).prev_sample for s in (peer, ours, twin))
        assert apart(want, a) < 1e-12 and torch.equal(a, b)
        x = want
    assert ours.step_index == len(steps)
    with pytest.raises(ValueError, match=r"ets were written to this run"):
        ours.select([0])
    plain = FsScheduler.from_config(diffusers.PNDMScheduler(**peer.config))
    assert torch.equal(walk(ours, 10), walk(plain, 10))
    plain.set_timesteps(10)
    plain.step(X, plain.timesteps[0], X)
    for scheduler in (plain, exact()):
        with pytest.raises(AttributeError, match="ets cannot be set"):
            scheduler.ets = past


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_a_history_of_any_dtype_keeps_the_samples(kind):
    peer = diffusers.PNDMScheduler(skip_prk_steps=True)
    ours, ends = FsScheduler.from_config(peer), []
    for scheduler in (peer, ours):
        scheduler.set_timesteps(10)
        scheduler.ets = [(X + k).to(kind) for k in range(3)]
        ends.append(scheduler.step(0.1 * X.to(kind), 700, X.to(kind)).prev_sample)
    assert ends[0].dtype == ends[1].dtype == kind
    assert apart(ends[0].double(), ends[1].double()) < 8 * torch.finfo(kind).eps


def test_a_written_history_of_another_shape_is_not_broadcast():
    ours = FsScheduler.from_config(diffusers.PNDMScheduler())
    ours.set_timesteps(10)
    ours.ets = [X[:, :1]] * 3
    for given in ((X, 500, X), (X[:1, :1], 500, X), ((X,), 500, X)):
        with pytest.raises(ValueError, match=r"are \[\[.*; tensors of one shape are accepted"):
            ours.step(*given)
    assert ours.step_index is None


def test_what_a_written_history_cannot_do_is_a_sentence():
    ours = FsScheduler.from_config(diffusers.PNDMScheduler())
    ours.set_timesteps(10)
    ours.ets = [X]
    with pytest.raises(ValueError, match=r"step_plms: the history has 1 .*; step is accepted"):
        ours.step_plms(X, 500, X)
    assert torch.isfinite(ours.step(X, 500, X).prev_sample).all()
    with pytest.raises(IndexError, match=r"from timestep .*; one inside, .* is accepted"):
        ours.step(X, 5000, X)
    for _ in range(11):
        ours.step(X, 500, X)
    with pytest.raises(ValueError, match=r"step_prk: 12 steps were made, .*; step is accepted"):
        ours.step_prk(X, 500, X)
    assert torch.isfinite(ours.step(X, 500, X).prev_sample).all()


def test_steps_by_name_need_timesteps():
    ours = FsScheduler.from_config(diffusers.PNDMScheduler())
    with pytest.raises(ValueError, match="step_plms: there are no timesteps yet"):
        ours.step_plms(X, 1, X)
