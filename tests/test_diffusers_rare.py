"""FsScheduler in place of the classes that one family of pipelines has: Stable Audio's cosine,
SANA-Sprint's SCM, Stable Cascade's DDPM, CogVideoX's DDIM and unCLIP, beside the class itself; and
what isinstance says of it.
"""

import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
from oracle import peers

import fastsample
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("torchsde")  # of which the cosine's noise is a path
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:Should have:UserWarning",  # the class asks for its path below the lowest level
)
FsScheduler = fastsample.FsScheduler
COSINE, SCM = diffusers.CosineDPMSolverMultistepScheduler, diffusers.SCMScheduler
CASCADE, COG = diffusers.DDPMWuerstchenScheduler, diffusers.CogVideoXDDIMScheduler
UNCLIP = diffusers.UnCLIPScheduler
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}
ZERO = {"rescale_betas_zero_snr": True, "snr_shift_scale": 1.0, "timestep_spacing": "trailing"}
LISTED = {"max_timesteps": None, "intermediate_timesteps": None}
V, X0 = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}
CASES = [
    (COSINE, {}, {"num_inference_steps": 8}),
    (COSINE, {"solver_type": "heun", "sigma_schedule": "karras"}, {"num_inference_steps": 16}),
    (COSINE, {"prediction_type": "epsilon", "solver_order": 1}, {"num_inference_steps": 6}),
    (SCM, {}, {"num_inference_steps": 2}),
    (SCM, {"sigma_data": 0.7}, {"num_inference_steps": 4, "intermediate_timesteps": None}),
    (SCM, {}, {"num_inference_steps": 2, "timesteps": [1.5, 0.8, 0.1], **LISTED}),
    (CASCADE, {}, {"num_inference_steps": 7}),
    (CASCADE, {"scaler": 2.0, "s": 0.02}, {"num_inference_steps": 60}),
    (CASCADE, {"scaler": 0.5}, {"timesteps": [1.0, 0.6, 0.3, 0.1]}),
    (COG, {}, {"num_inference_steps": 7}),
    (COG, ZERO | V, {"num_inference_steps": 12}),
    (UNCLIP, {}, {"num_inference_steps": 7}),
    (UNCLIP, X0 | {"clip_sample_range": 2.0}, {"num_inference_steps": 25}),
    (UNCLIP, {"variance_type": "learned_range"}, {"num_inference_steps": 5}),
]
PAST = (SCM, CASCADE)  # with a timestep at the end at which no step is made


def walk(scheduler, kind, x, twin=None, **given):
    """(end, what is drawn next) of what the class's own pipelines do; twin: a copy that takes over
    after the second step.
    """
    scheduler.set_timesteps(**given)
    generator = torch.Generator().manual_seed(3)
    times = scheduler.timesteps[:-1] if kind in PAST else scheduler.timesteps
    for k, t in enumerate(times):
        scaled = scheduler.scale_model_input(x, t) if kind is COSINE else x
        words, f = {"generator": generator}, 0.5 * network(scaled, t)
        if kind is UNCLIP:
            words["prev_timestep"] = None if k == len(times) - 1 else times[k + 1]
            learned = scheduler.config.variance_type == "learned_range"
            f = torch.cat([f, torch.tanh(2.0 * f)], 1) if learned else f
        t = t.expand(len(x)) if kind is CASCADE else t
        x = scheduler.step(f, t, x, **words, return_dict=False)[0]
        scheduler = twin(scheduler) if twin and k == 1 else scheduler
    return x, torch.randn(3, generator=generator)


def both(kind, config, given, dtype):
    """(ours, its end, the class's end, of the class in the other precision) with what is asked of
    either.
    """
    code = __import__(kind.__module__, fromlist=["x"])
    double = dtype == torch.float64 and peers._replaced(code, **peers._in_double())
    with double or contextlib.nullcontext():
        peer, x = kind(**config), start(2, 3, 4, 4, dtype=dtype)
        ours = FsScheduler.from_config(peer, compat="diffusers")
        x = 9.0 * x if kind is COSINE else x
        (a, drawn), (b, again) = (walk(s, kind, x, **given) for s in (peer, ours))
        assert torch.equal(peer.timesteps, ours.timesteps) and torch.equal(drawn, again)
        assert peer.timesteps.dtype == ours.timesteps.dtype and a.dtype == b.dtype
    return ours, x, b, a


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize(("kind", "config", "given"), CASES)
def test_steps_and_draws_are_the_class_s_own(kind, config, given, dtype):
    """In float64 the class with tables of that; elsewhere as near as it rounds itself: unCLIP
    divides by alpha = 5e-5, and by what is left of 1 - alpha².
    """
    if dtype == torch.float64 and kind is SCM:
        return  # which draws float32 there
    ours, x, end, theirs = both(kind, config, given, dtype)
    _, _, exact, _ = both(kind, config, given, torch.float64) if kind is UNCLIP else (theirs,) * 4
    own = float((theirs.double() - exact.double()).abs().max()) if dtype != torch.float64 else 0.0
    room = 64 * len(ours.timesteps) ** 0.5 * EPS[dtype] * (1 + 2e4 * (kind is UNCLIP and not own))
    size = float(x.abs().max() + theirs.abs().max())
    assert (end.double() - theirs.double()).abs().max() <= room * size + 2.0 * own
    if dtype != torch.float64:
        assert torch.equal(walk(ours, kind, x, copy.deepcopy, **given)[0], end)


@pytest.mark.parametrize(("kind", "config", "given"), CASES)
def test_one_config_both_ways(kind, config, given, tmp_path):
    """Saved, loaded, pickled in the middle of it, and handed back to the class."""
    peer, x = kind(**config), start(1, 3, 4, 4)
    ours = FsScheduler.from_config(peer)
    assert (ours.config.source, ours.config.compat) == (kind.__name__, "diffusers")
    end = walk(ours, kind, x, **given)[0]
    ours.save_pretrained(tmp_path)
    loaded, again = FsScheduler.from_pretrained(tmp_path), pickle.loads(pickle.dumps(ours))
    named = {**peer.config, "_class_name": kind.__name__}
    for made in (loaded, again, *map(FsScheduler.from_config, (ours.config, named))):
        assert all(made.config[k] == v for k, v in ours.config.items() if k[0] != "_")
        assert torch.equal(walk(made, kind, x, **given)[0], end)
    back = kind.from_config(ours.config)
    assert {k: back.config[k] for k in peer.config} == dict(peer.config)


def test_exact_runs_are_the_solvers_own():
    levels = {"sigma_min": 0.3, "sigma_max": 500.0}
    ours = FsScheduler.from_config(COSINE(**levels), compat=None)
    ours.set_timesteps(20)
    edm = fastsample.schedules.EDM(**levels, sigma_data=1.0)
    grid = np.append(np.geomspace(500.0, 0.3, 20), 0.0)
    again = fastsample.solvers.dpmpp_2m_sde(edm, grid, prediction="edm")
    assert ours.plan.note["solver"] == "dpmpp_2m_sde" and np.allclose(
        ours.plan.M, again.M, rtol=1e-9
    )
    told = np.arctan(grid[:-1]) * 2.0 / np.pi
    assert np.allclose(ours.plan.t[:20, 0], told) and np.allclose(ours.timesteps, told)
    ours = FsScheduler.from_config(SCM(sigma_data=0.7), compat=None)
    ours.set_timesteps(3)
    grid = np.linspace(np.pi / 2, 0.0, 4)
    trig = fastsample.schedules.TrigFlow(0.7, t_min=1e-9)
    again = fastsample.solvers.lcm(trig, grid, prediction="trigflow")
    assert np.allclose(ours.plan.M, again.M) and ours.init_noise_sigma == 1.0
    assert np.allclose(0.7 * ours.plan.q, again.q)  # sigma_data is in the output already
    ours.set_timesteps(sigmas=[7.0, 0.7, 0.0])
    assert ours.timesteps.tolist() == pytest.approx([np.arctan(10.0), np.pi / 4, 0.0])
    ours = FsScheduler.from_config(COG(**ZERO, **V), compat=None)
    ours.set_timesteps(6)
    table = fastsample.schedules.DiscreteVP.scaled_linear().zero_terminal_snr()
    again = fastsample.solvers.ddim(table, ours.plan.note["grid"], prediction="v")
    assert np.allclose(ours.plan.M, again.M, atol=1e-9)


@pytest.mark.parametrize("kind", [COSINE, CASCADE, COG, UNCLIP])
def test_noise_is_that_of_the_class(kind):
    peer = kind()
    ours, (x, n) = FsScheduler.from_config(peer), start(2, 2, 3, 4, 4)
    for scheduler in (peer, ours):
        scheduler.set_timesteps(6)
    times = peer.timesteps[[1, 3]]
    a, b = (s.add_noise(x, n, times) for s in (peer, ours))
    assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(a.abs().max()))
    if kind is CASCADE:  # a level of no timestep of the run
        between = torch.tensor([0.9, 0.05])
        a, b = (s.add_noise(x, n, between) for s in (peer, ours))
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


# -- what is refused -------------------------------------------------------------------------------
def ready(kind, steps=3, compat="diffusers", **config):
    config = {"_class_name": kind.__name__, **config}
    scheduler = FsScheduler.from_config(config, compat=compat)
    scheduler.set_timesteps(steps, **({"intermediate_timesteps": None} if kind is SCM else {}))
    return scheduler, start(2, 3, 4, 4)


@pytest.mark.parametrize("kind", PAST)
def test_no_step_is_made_at_the_last_timestep(kind):
    scheduler, x = ready(kind)
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(x, t, x).prev_sample
    with pytest.raises(IndexError, match="step 3 of 3 timesteps"):
        scheduler.step(x, scheduler.timesteps[-1], x)


def test_one_timestep_for_all_samples():
    scheduler, x = ready(CASCADE)
    with pytest.raises(ValueError, match=r"shape \[2\]; one timestep for the whole batch"):
        scheduler.step(x, scheduler.timesteps[:2], x)
    scheduler.step(x, scheduler.timesteps[:1].repeat(2).bfloat16(), x)
    scheduler, x = ready(COG)
    with pytest.raises(ValueError, match=r"shape \[2\]; one timestep for the whole batch"):
        scheduler.step(x, scheduler.timesteps[:1].expand(2), x)


@pytest.mark.parametrize("told", [None, 0, 998])
def test_unclip_goes_on_to_its_own_next_timestep(told):
    scheduler, x = ready(UNCLIP)
    with pytest.raises(ValueError, match="at timestep 999, from which this run goes on to 500;"):
        scheduler.step(x, scheduler.timesteps[0], x, told)
    scheduler.step(x, scheduler.timesteps[0], x, prev_timestep=torch.tensor(500))


def test_unclip_steps_to_the_next_training_timestep_unasked():
    """To float32 rounding: its last step divides a beta of its table by what float32 leaves of 1 -
    alphas_cumprod, 4e-4 from that beta. In any order: what a step does is its timestep's.
    """
    peer, x = UNCLIP(**X0), start(2, 3, 4, 4)
    ours, ends, again = FsScheduler.from_config(peer), [], []
    for scheduler in (peer, ours):
        generator, y = torch.Generator().manual_seed(3), x
        for t in (*scheduler.timesteps[:4], *scheduler.timesteps[-60:]):
            y = scheduler.step(0.5 * torch.tanh(y), t, y, generator=generator).prev_sample
        ends.append(y)
        again.append(scheduler.step(0.5 * x, 7, x, generator=generator).prev_sample)
    assert torch.allclose(*ends, rtol=0, atol=1e-5 * float(ends[0].abs().max()))
    assert torch.allclose(*again, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: ready(CASCADE, scaler=0.0), "scaler = 0.0; a number > 0 is accepted"),
        (lambda: ready(COG, snr_shift_scale=-1.0), "snr_shift_scale = -1.0; a number > 0"),
        (lambda: ready(COSINE, solver_order=3), "solver_order = 3 of Cosine.*; 1 or 2 is accepted"),
        (
            lambda: ready(SCM, prediction_type="epsilon"),
            "prediction_type = 'epsilon' on trig scale",
        ),
        (lambda: ready(UNCLIP, variance_type="learned"), "variance_type = 'learned' of UnCLIP"),
        (
            lambda: ready(CASCADE, compat=None)[0].set_timesteps(sigmas=[2.0, 0.0]),
            "sigmas of DDPMWuerstchenScheduler, whose levels are those of its timesteps",
        ),
        (
            lambda: ready(SCM, compat=None)[0].set_timesteps(3, max_timesteps=2.0),
            "max_timesteps = 2.0; a number above 0 up to pi/2 is accepted",
        ),
        (
            lambda: FsScheduler.from_config(diffusers.EDMEulerScheduler(), source=COSINE),
            r"Cosine.* samples models that are told 2/pi·arctan\(sigma\), and EDMEulerScheduler",
        ),
        (
            lambda: FsScheduler.from_config(CASCADE(), source="DDPMScheduler"),
            "DDPMWuerstchenScheduler has no table of noise levels, and no other class runs",
        ),
        (
            lambda: FsScheduler.from_plan(PLAN, like=SCM()),
            "SCMScheduler tells its model times that no plan's words have",
        ),
    ],
)
def test_what_cannot_be_is_refused(ask, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        ask()


PLAN = fastsample.solvers.ddim(fastsample.schedules.VP(), [1.0, 0.5, 0.0], prediction="v")


# -- what isinstance says --------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [CASCADE, diffusers.LTXEulerAncestralRFScheduler])
def test_a_scheduler_is_one_of_its_source(kind):
    """Pipelines ask, and step otherwise for others. Its class is its own, and makes its own."""
    ours, other = FsScheduler.from_config(kind()), FsScheduler.from_config(COG())
    assert isinstance(ours, kind) and isinstance(ours, FsScheduler) and type(ours) is FsScheduler
    assert not isinstance(other, kind) and not isinstance(ours, COG)
    seen = ours.__class__
    assert issubclass(seen, FsScheduler) and issubclass(seen, kind) and seen is ours.__class__
    assert (seen.__name__, seen.__module__) == ("FsScheduler", "fastsample")
    for made in (seen(), seen.from_config(ours.config), copy.deepcopy(ours), copy.copy(ours)):
        assert type(made) is FsScheduler
    assert FsScheduler.from_plan(PLAN).__class__ is FsScheduler
    own = type("Own", (FsScheduler,), {})
    assert type(own.from_config(kind()).__class__()) is own


# -- what a Sampler runs in its place --------------------------------------------------------------
@pytest.mark.parametrize("shift", [12.0, 3.0])
def test_minimax_h3_is_euler_on_a_flow(shift):
    """Told 1 - sigma, and its output points at the data; of n levels the last is 0."""
    kind = diffusers.schedulers.scheduling_minimax_h3.MiniMaxH3Scheduler
    peer, x = kind(shift), start(2, 3, 4, 4)
    peer.set_timesteps(9)
    flow, y = fastsample.schedules.Flow(shift), x
    for t in peer.timesteps:
        y = peer.step(network(y, t), t, y).prev_sample
    away = lambda x, t: -network(x, t[0])
    words = {"prediction": "flow", "time": lambda t: 1.0 - flow.sigma(t)}
    model = fastsample.Model(away, flow, **words)
    plan = fastsample.solvers.euler(model, np.linspace(1.0, 0.0, 9))
    assert np.allclose(plan.t[:8, 0], peer.timesteps, atol=1e-7)
    end = fastsample.Sampler(plan, model)(noise=x)
    assert torch.allclose(end, y, rtol=0, atol=1e-5 * float(y.abs().max()))


# -- a config that names no class ------------------------------------------------------------------
@pytest.mark.parametrize("config", [{"shift": 3.0}, {"num_train_timesteps": 1000, "shift": 3.0}])
def test_a_part_of_a_config_is_in_the_words_of_the_source_or_refused(config):
    """Two classes have these options and no others, and neither was meant."""
    with pytest.raises(
        ValueError, match="names no class and fits FlowMapEuler.*, FlowMatch.*, \\.\\."
    ):
        FsScheduler.from_config(config)
    match = diffusers.FlowMatchEulerDiscreteScheduler
    made = FsScheduler.from_config(config, source=match)
    assert made.config.source == match.__name__ and made.config.shift == 3.0
    assert FsScheduler.from_config(CASCADE(scaler=2.0, s=0.01).config).config.scaler == 2.0
