"""compat="diffusers" beyond the usual configs: every coefficient of what a class does in the rare
ones, against the class itself in float64 (see test_diffusers), and what is no table of coefficients
in whole loops beside it.
"""

import numpy as np
import pytest
import test_diffusers
import torch

import fastsample
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
# diffusers' own; it divides by 0 where a level repeats
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)
FsScheduler = fastsample.FsScheduler
both, made, SD = test_diffusers.both, test_diffusers.made, test_diffusers.SD
MULTI, SINGLE, UNIPC = "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"
TO_SIGMA_MIN = {"final_sigmas_type": "sigma_min"}
NOISE = TO_SIGMA_MIN | {"algorithm_type": "dpmsolver"}
SDE_NOISE = TO_SIGMA_MIN | {"algorithm_type": "sde-dpmsolver"}
SDE = {"algorithm_type": "sde-dpmsolver++"}
HEUN, FULL = {"solver_type": "heun"}, {"lower_order_final": False}
KARRAS, LU = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}
BETA = {"use_beta_sigmas": True}
ZERO_SNR = {"rescale_betas_zero_snr": True, "beta_schedule": "linear"}
V, DATA = {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}


def order(p, *parts):
    config = {"solver_order": p}
    for part in parts:
        config |= part
    return config


FORMS = [
    *((MULTI, order(p, form)) for p in (1, 2) for form in (NOISE, SDE_NOISE)),
    *((MULTI, order(2, form, HEUN)) for form in (NOISE, SDE_NOISE)),
    *((MULTI, order(3, form, FULL)) for form in (NOISE, SDE)),
    *((MULTI, order(2, form, kind)) for form, kind in ((NOISE, V), (SDE_NOISE, DATA))),
    (MULTI, order(3, SDE)),
    *((SINGLE, order(p, form)) for p in (1, 3) for form in (NOISE, SDE)),
    *((SINGLE, order(p, form, HEUN, FULL)) for p in (2, 3) for form in (NOISE, SDE)),
    (SINGLE, order(3, HEUN)),
    (SINGLE, order(3, TO_SIGMA_MIN, FULL, V)),
    *((UNIPC, order(p, TO_SIGMA_MIN, {"predict_x0": False})) for p in (1, 3)),
    (UNIPC, order(2, TO_SIGMA_MIN, {"predict_x0": False, "solver_type": "bh1"}, DATA)),
    (UNIPC, order(3, {"disable_corrector": [0, 2]})),
    (UNIPC, {"solver_type": "logrho"}),
]
STILL = [  # the grid ends in a step of length 0
    *((MULTI, order(p, part, TO_SIGMA_MIN)) for p, part in ((1, LU), (2, KARRAS), (3, LU))),
    (MULTI, order(2, KARRAS, NOISE)),
    (MULTI, order(2, BETA, SDE, TO_SIGMA_MIN)),  # whose last two levels have the same bits
    *((SINGLE, order(p, KARRAS, TO_SIGMA_MIN, FULL)) for p in (2, 3)),
    *((UNIPC, order(p, KARRAS, TO_SIGMA_MIN)) for p in (2, 3)),
    (UNIPC, order(2, TO_SIGMA_MIN, {"use_exponential_sigmas": True, "predict_x0": False})),
    ("EulerDiscrete", TO_SIGMA_MIN | BETA),
]
TABLES = [
    *((name, ZERO_SNR | V | {"timestep_spacing": "trailing"}) for name in (MULTI, UNIPC, "DDPM")),
    ("EulerDiscrete", ZERO_SNR | {"timestep_spacing": "trailing"}),
    ("HeunDiscrete", {"beta_schedule": "exp"}),
    ("DDPM", {"beta_schedule": "laplace"}),
    *((name, {"num_train_timesteps": 1}) for name in ("DDIM", "DDPM", "EulerDiscrete", MULTI)),
    *(
        ("DDPM", {"variance_type": kind, "timestep_spacing": spacing, "steps_offset": 1})
        for kind, spacing in (("fixed_small_log", "trailing"), ("fixed_large", "leading"))
    ),
    ("DDPM", {"variance_type": None}),
]


@pytest.mark.parametrize(
    ("name", "config"), FORMS + STILL + TABLES, ids=test_diffusers.ids(FORMS + STILL + TABLES)
)
def test_every_coefficient_is_the_class_s_own(name, config):
    steps = 1 if "num_train_timesteps" in config else 7
    ours, exact, rounded = both(name, made(name, config), steps)
    rounding = test_diffusers.FINER * np.abs(rounded - exact).max()
    bound = 32 * (rounding + np.finfo(float).eps * np.abs(exact).max())
    assert np.isfinite(exact).all() and np.abs(ours - exact).max() <= bound


@pytest.mark.parametrize("steps", [2, 6, 8, 13, 30])
@pytest.mark.parametrize("spacing", ["linspace", "trailing", "leading"])
def test_ddim_steps_by_its_stride(spacing, steps):
    """Wherever the next timestep lies."""
    config = made("DDIM", {"timestep_spacing": spacing, "set_alpha_to_one": steps != 8})
    test_diffusers.assert_equal_to_rounding(*both("DDIM", config, steps))


# -- whole loops in float64 beside the class, where a step is no table of coefficients -------------
X = start(2, 3, 6, 6, dtype=torch.float64)
CLIPS = ("DDIM", "DDPM", "LCM")
DEEP = {"thresholding": True, "sample_max_value": 1.6, "dynamic_thresholding_ratio": 0.9}


def walk(scheduler, steps, model=network, edit=None, times=None, kind=X.dtype, **given):
    """The states of a loop: from X, at `times` (by default the scheduler's own), each handed on as
    edit(state) leaves it.
    """
    scheduler.set_timesteps(steps)
    x, states = X.to(kind, copy=True) * float(getattr(scheduler, "init_noise_sigma", 1.0)), []
    for t in scheduler.timesteps if times is None else times:
        asked = scheduler.scale_model_input(x, t)
        x = scheduler.step(model(asked, t), t, x, **given, return_dict=False)[0]
        states.append(x.clone())
        x = x if edit is None else edit(x)
    return torch.stack(states)


def assert_alike(name, config, steps=6, kind=X.dtype, tolerance=1e-9, **given):
    """Ours, of this dtype, and the class's own states of one loop; to rounding, as a stiff model
    enlarges it.
    """
    tolerance = tolerance if kind == X.dtype else 1e-5
    with test_diffusers.in_double(name):
        peer = getattr(diffusers, f"{name}Scheduler")(**SD | config)
        ours = FsScheduler.from_config(peer, compat="diffusers")
        drawn = {"generator": torch.Generator()} if name in ("DDPM", "LCM", "SASolver") else {}
        states = []
        for scheduler in (ours, peer):
            if drawn:
                drawn["generator"].manual_seed(0)
            kinds = {} if scheduler is peer else {"kind": kind}
            states.append(walk(scheduler, steps, **kinds, **drawn, **given))
    apart = (states[0] - states[1]).abs().max() / states[1].abs().max()
    assert torch.isfinite(states[1]).all() and apart <= tolerance
    return states[0]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIM", {"clip_sample": True}),
        ("DDIM", V),
        ("DDPM", {}),
        ("LCM", {"clip_sample": False}),
        (MULTI, order(3)),
        (MULTI, order(2, NOISE)),
        (SINGLE, order(2)),
        (UNIPC, order(3)),
        (UNIPC, order(2, TO_SIGMA_MIN, {"predict_x0": False})),
    ],
)
def test_thresholding_bounds_each_sample_by_its_own_quantile(name, config):
    """UniPC's noise form takes the option and bounds nothing."""
    bounded = assert_alike(name, config | DEEP, model=strong)
    free = config | ({"clip_sample": False} if name in CLIPS else {})
    plain = assert_alike(name, free, model=strong)
    assert torch.equal(bounded, plain) == ("predict_x0" in config)


def strong(x, t):
    """Predictions of which some lie beyond any bound, more in one sample than in the other."""
    return 2.0 * network(x, t) * torch.tensor([1.0, 3.0], dtype=x.dtype).view(2, 1, 1, 1)


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_ddpm_draws_with_the_variance_that_the_model_says(kind):
    """One for each element; and an output without it is refused."""

    def model(x, t):
        v = torch.tanh(network(x, t))
        return torch.cat([network(x, t), v.abs() if kind == "learned" else v], 1)

    config = {"variance_type": kind, "clip_sample": False}
    learned = assert_alike("DDPM", config, model=model)
    small = assert_alike("DDPM", config | {"variance_type": "fixed_small"})
    assert (learned - small).abs().max() > 1e-3
    ours = FsScheduler(source="DDPMScheduler", variance_type=kind)
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match="twice its channels are accepted"):
        ours.step(X, ours.timesteps[0], X)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("HeunDiscrete", {}),
        ("HeunDiscrete", V | KARRAS),
        (UNIPC, order(2)),
        (UNIPC, order(3, {"predict_x0": False}, TO_SIGMA_MIN)),
        (SINGLE, order(2)),
        (SINGLE, order(3, NOISE)),
        (MULTI, order(2)),
        ("KDPM2Discrete", KARRAS),
        ("HeunDiscrete", {"clip_sample": True}),
        ("SASolver", {}),
        ("SASolver", {"algorithm_type": "noise_prediction", "predictor_order": 3}),
    ],
)
def test_an_edit_by_a_callback_means_the_same(name, config):
    """What diffusers keeps stays where it was, also under an edit in place; the model is asked at
    what the callback left.
    """
    edited = assert_alike(name, config, edit=lambda x: 0.98 * x)
    draws = name == "SASolver"  # other numbers in another dtype
    for kind in (torch.float64, torch.float32)[: 1 if draws else 2]:
        for in_place in (lambda x: x.mul_(0.98), _painted):
            assert_alike(name, config, edit=in_place, kind=kind)
    assert (edited - assert_alike(name, config)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["HeunDiscrete", "KDPM2Discrete", "DPMSolverSDE"])
def test_an_edit_half_way_through_a_step_is_seen_as_the_class_sees_it(name):
    """In the states, and in the data that the output shows."""
    peer = getattr(diffusers, f"{name}Scheduler")(**SD)
    seen = []
    for scheduler in (peer, FsScheduler.from_config(peer, compat="diffusers")):
        torch.manual_seed(0)
        scheduler.set_timesteps(4)
        x, data = X.float() * scheduler.init_noise_sigma, []
        for t in scheduler.timesteps:
            ends = scheduler.step(0.3 * scheduler.scale_model_input(x, t), t, x)
            x = 0.98 * ends.prev_sample
            data += [x, ends.pred_original_sample]
        seen.append(torch.stack(data))
    assert torch.allclose(*seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["HeunDiscrete", UNIPC, SINGLE])
def test_an_edit_in_inference_mode_means_the_same(name):
    """Where tensors count no writes, but for ours."""
    assert_alike(name, {}, edit=_painted)
    with torch.inference_mode():
        assert_alike(name, {}, edit=_painted)


def _painted(x):
    x[:, 0, :2] = 0.3
    return x


@pytest.mark.parametrize("kind", ["midpoint", "heun"])
def test_an_edit_of_a_singlestep_sde_means_the_same(kind, monkeypatch):
    """Where the noise of the step before belongs to what is kept."""
    config = SD | order(3, {"algorithm_type": "sde-dpmsolver++", "solver_type": kind})
    ends = []
    with test_diffusers.in_double(SINGLE):
        peer = diffusers.DPMSolverSinglestepScheduler(**config)
        for scheduler in (peer, FsScheduler.from_config(peer, compat="diffusers")):
            scheduler.set_timesteps(7)
            x, generator = X.clone(), torch.Generator().manual_seed(3)
            draw = lambda *_, g=generator, **__: torch.randn(X.shape, generator=g, dtype=X.dtype)
            monkeypatch.setattr(f"{type(peer).__module__}.randn_tensor", draw)
            for t in scheduler.timesteps:
                given = {} if scheduler is peer else {"variance_noise": draw()}
                x = _painted(scheduler.step(network(x, t), t, x, **given).prev_sample)
            ends.append(x)
    assert (ends[0] - ends[1]).abs().max() <= 1e-12 * ends[0].abs().max()


@pytest.mark.parametrize("name", ["HeunDiscrete", UNIPC, SINGLE])
def test_where_the_state_before_is_gone_too_it_is_said(name):
    """One buffer for every sample, and an edit in place before it is copied there."""
    scheduler = FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")(**SD))
    scheduler.set_timesteps(4)
    x = X.clone()
    with pytest.warns(UserWarning, match=r"in place, and so was .*; a new tensor .* is taken"):
        for t in scheduler.timesteps:
            x.copy_(scheduler.step(0.3 * x, t, x).prev_sample.mul_(0.98))


def test_ddim_steps_from_any_timestep_in_any_order():
    """Also from one that is not in the schedule, again from the same, with another eta, and with
    fewer samples.
    """
    times = [999, 833, 833, 500, 999, 3, 167, 0, 166]
    assert_alike("DDIM", {"clip_sample": False}, times=times, steps=6)
    assert_alike("DDIM", {"timestep_spacing": "trailing"}, times=torch.tensor(times), steps=6)
    assert_alike("DDPM", {"timestep_spacing": "trailing"}, times=[999, 832, 332, 832, 499], steps=6)
    peer = diffusers.DDIMScheduler(**SD)
    ours = FsScheduler.from_config(peer)
    for t, eta, x in ((999, 0.0, X), (832, 0.5, X), (832, 0.5, X[:1]), (7, 1.0, X)):
        states = []
        for scheduler in (peer, ours):
            scheduler.set_timesteps(6)
            given = {"eta": eta, "generator": torch.Generator().manual_seed(3)}
            states.append(scheduler.step(0.3 * x.float(), t, x.float(), **given).prev_sample)
        assert torch.allclose(*states, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="timestep 1000 is not in the schedule"):
        ours.step(X, 1000, X)


@pytest.mark.parametrize("name", [MULTI, SINGLE, UNIPC])
def test_a_timestep_that_is_not_there_is_the_last(name):
    """Of a first step, as the class looks it up; without a look where the model is asked with x
    itself.
    """
    assert_alike(name, {}, times=[7], steps=10)
    scheduler = FsScheduler.from_config(getattr(diffusers, f"{name}Scheduler")())
    scheduler.set_timesteps(4)
    assert scheduler.scale_model_input(X, 12345) is X


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [
        (MULTI, order(3, LU, TO_SIGMA_MIN), 17),  # infinity over infinity
        (MULTI, {"num_train_timesteps": 10}, 10),  # 4 twice, and a difference over no distance
        (UNIPC, order(2, {"solver_type": "bh1"}), 6),  # infinity times 0
        ("DDPM", {"variance_type": "fixed_large_log"}, 6),  # the root of a logarithm
    ],
)
def test_where_the_class_gives_nan_the_exact_value_stands(name, config, steps):
    peer = getattr(diffusers, f"{name}Scheduler")(**SD | config)
    ours = FsScheduler.from_config(peer, compat="diffusers")
    flat = lambda x, t: 0.1 * x
    theirs, own = (walk(s, steps, flat) for s in (peer, ours))
    assert not torch.isfinite(theirs).all() and torch.isfinite(own).all()
    if name == "DDPM":
        large = FsScheduler.from_config(peer, variance_type="fixed_large", compat="diffusers")
        torch.manual_seed(0)
        wanted = walk(large, steps, flat)
        torch.manual_seed(0)
        assert torch.equal(walk(ours, steps, flat), wanted)


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_levels_that_float32_has_no_numbers_for_are_the_exact_ones(name):
    """alphas_cumprod ends in equal denormals and zeros there; steps elsewhere are the class's."""
    config = {"beta_start": 0.01, "beta_end": 0.2, "beta_schedule": "linear"}
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    ours = FsScheduler.from_config(peer, compat="diffusers")
    exact = np.cumprod(1.0 - np.linspace(0.01, 0.2, 1000))
    ours.set_timesteps(50)
    assert (peer.alphas_cumprod == 0.0).any() and exact[ours.timesteps].min() < 1e-46
    assert ours.plan.alpha[1:-1] ** 2 == pytest.approx(exact[ours.timesteps], rel=1e-3)
    peer.set_timesteps(50)
    given = 0.1 * X.float(), 20, X.float()
    ends = [s.step(*given, generator=torch.manual_seed(0)).prev_sample for s in (peer, ours)]
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [MULTI, SINGLE, UNIPC])
def test_outputs_put_there_before_a_run_are_not_read(name):
    """Nor by the class, whose first step is of first order; later they are refused."""
    peer = getattr(diffusers, f"{name}Scheduler")(**SD)
    ours, ends = FsScheduler.from_config(peer), []
    for scheduler in (peer, ours):
        scheduler.set_timesteps(6)
        scheduler.model_outputs = [torch.full_like(X, 9.0).float()] * 2
        x = X.float()
        for t in scheduler.timesteps:
            x = scheduler.step(0.3 * x, t, x).prev_sample
        ends.append(x)
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-5)
    ours.set_timesteps(6)
    ours.step(X, ours.timesteps[0], X)
    with pytest.raises(AttributeError, match="model_outputs cannot be set"):
        ours.model_outputs = [X]


@pytest.mark.parametrize("name", ["HeunDiscrete", UNIPC, SINGLE])
def test_an_edit_of_a_half_precision_sample_means_the_same(name):
    """To half's own rounding of the class's float32 run."""
    peer = getattr(diffusers, f"{name}Scheduler")(**SD)
    ours, ends = FsScheduler.from_config(peer), []
    for scheduler, kind in ((peer, torch.float32), (ours, torch.float16)):
        scheduler.set_timesteps(6)
        x = (0.1 * X * float(scheduler.init_noise_sigma)).to(kind)
        for t in scheduler.timesteps:
            f = (0.3 * torch.tanh(scheduler.scale_model_input(x, t).float())).to(kind)
            x = 0.9 * scheduler.step(f, t, x).prev_sample
        ends.append(x.float())
    assert (ends[0] - ends[1]).abs().max() <= 5e-3 * ends[0].abs().max()
