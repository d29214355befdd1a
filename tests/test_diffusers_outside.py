"""An FsScheduler outside its loop, against diffusers' own object: what it says before set_timesteps
and after, and what it does to a sample at a timestep.
"""

import copy
import math

import pytest
import torch

import fastsample as fs
from fastsample.interop.diffusers.consistency import NAME as CM
from fastsample.interop.diffusers.outside import FUNCTIONS
from fastsample.interop.diffusers.sources import COGVIDEOX, COSINE, SCALING, SOURCES, UNTIMED
from fastsample.interop.diffusers.training import EDMS

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
from tests.beside import COMMON, CONFIGS, MORE, READ, SD, N, X, alike, both, close, set_both  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.parametrize("compat", ["diffusers", None])
@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_what_it_says_before_set_timesteps_is_what_its_source_says(name, config, compat):
    peer, ours = both(name, config, compat=compat)
    for what in READ:
        theirs = getattr(peer, what, None)
        if theirs is not None or what not in MORE | {"timesteps"}:
            assert hasattr(ours, what) == hasattr(peer, what), what
            assert alike(getattr(ours, what, None), theirs), what
    assert all(hasattr(ours, what) == hasattr(peer, what) for what in FUNCTIONS)


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_what_it_says_after_set_timesteps_is_what_its_source_says(name, config):
    peer, ours = both(name, config, compat="diffusers")
    set_both(peer, ours)
    for what in READ:
        if hasattr(peer, what) or what not in MORE:
            assert alike(getattr(ours, what, None), getattr(peer, what, None)), what


def test_exact_runs_hand_back_their_own_levels():
    """The sigmas after the shift, to float32; the start's scale as a tensor of the plan's own."""
    ours = fs.FsScheduler.from_config(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), compat=None
    )
    ours.set_timesteps(sigmas=[1.0, 0.7, 0.3])
    right = [1.0, 2.1 / 2.4, 0.9 / 1.6, 0.0]  # 3s / (1 + 2s)
    assert torch.equal(ours.sigmas, torch.tensor(right, dtype=torch.float64).float())
    euler = fs.FsScheduler.from_config(diffusers.EulerDiscreteScheduler(**SD), compat=None)
    euler.set_timesteps(5)
    assert isinstance(euler.init_noise_sigma, torch.Tensor)
    assert float(euler.init_noise_sigma) == euler.plan.init_scale


def test_training_levels_of_a_shifted_flow():
    """3s / (1 + 2s) at s = t/1000: 1000, 999.67, ..; 750 in the middle."""
    ours = fs.FsScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert ours.timesteps[[0, 1, 500]].tolist() == pytest.approx(
        [1000.0, 999.6665, 750.0], rel=1e-6
    )
    noised = ours.scale_noise(3 * torch.ones(1), ours.timesteps[500:501], torch.ones(1))
    assert float(noised) == pytest.approx(3 * 0.25 + 0.75, rel=1e-6)


# -- by timestep -----------------------------------------------------------------------------------
def level(name, t):
    """(alpha, sigma) of the default linear table at training timestep t, on the source's scale."""
    betas = torch.linspace(0.0001, 0.02, 1000, dtype=torch.float64)
    abar = float(torch.cumprod(1 - betas, 0)[t])
    vp = math.sqrt(abar), math.sqrt(1 - abar)
    return vp if SOURCES[name].family.scale == "vp" else (1.0, vp[1] / vp[0])


ON_BETAS = [
    n for n in COMMON if SOURCES[n].family.scale in ("vp", "sigma") and n not in (*EDMS, CM, COSINE)
]


@pytest.mark.parametrize("name", ON_BETAS)
@pytest.mark.parametrize("compat", ["diffusers", None])
def test_add_noise_goes_by_the_timestep(name, compat):
    """Before set_timesteps, half way and after a finished run; two samples at two timesteps; of the
    schedule and beside it (where diffusers' own takes another timestep for its last, so does
    compat).
    """
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    config |= {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
    config |= {"snr_shift_scale": 1.0} if name == COGVIDEOX else {}
    _, ours = both(name, config, compat=compat)

    strays = compat is None or not SOURCES[name].family.extra

    def check():
        times = torch.tensor([999, 361])
        if ours.num_inference_steps not in (None, 1000) and not strays:
            times = torch.tensor([int(ours.timesteps.max()), int(ours.timesteps[1])])
        noisy = ours.add_noise(3 * torch.ones(2, 1), torch.ones(2, 1), times)
        right = [3 * a + s for a, s in (level(name, int(t)) for t in times)]
        # the peer's own table is one of float32: 1,000 products
        assert noisy.flatten().tolist() == pytest.approx(right, rel=3e-5)

    check()
    ours.set_timesteps(4)
    check()
    x = torch.ones(1, 1) * float(ours.init_noise_sigma)
    for t in ours.timesteps:
        x = ours.step(0.1 * x, t, x).prev_sample
        check()


def test_the_value_of_the_report():
    _, ours = both("DDIMScheduler", {})
    ours.set_timesteps(10)
    x = torch.ones(1, 1)
    for t in ours.timesteps:
        x = ours.step(0.1 * x, t, x).prev_sample
    one = torch.ones(1, 1)
    vp = ours.add_noise(3 * one, one, torch.tensor([999]))
    euler = fs.FsScheduler.from_config(diffusers.EulerDiscreteScheduler(**SD))
    assert float(vp) == pytest.approx(1.0190, abs=1e-4)
    assert float(euler.add_noise(3 * one, one, torch.tensor([999]))) == pytest.approx(
        17.6146, rel=1e-4
    )


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_a_begin_index_counts_where_the_source_has_one(name, config):
    """Before set_timesteps and after: at it for the first level, at the running step later."""
    peer, ours = both(name, config)
    if not hasattr(peer, "set_begin_index"):
        ours.set_begin_index(3)  # these go by timesteps alone
        set_both(peer, ours)
        ours.set_begin_index(3)
        t = ours.timesteps[5:6]
        assert not hasattr(peer, "add_noise") or torch.allclose(
            ours.add_noise(X, N, t), peer.add_noise(X, N, t), rtol=1e-5
        )
        return
    noising = "add_noise" if hasattr(peer, "add_noise") else "scale_noise"
    if not hasattr(peer, noising):
        return
    order = (lambda t: (X, N, t)) if noising == "add_noise" else (lambda t: (X, t, N))
    if getattr(peer, "sigmas", None) is not None and len(peer.sigmas) == len(peer.timesteps) + 1:
        begin = 4 if "SDE" in name else 3  # a second call stands at no level of its list
        for scheduler in (peer, ours):
            scheduler.set_begin_index(begin)
            assert scheduler.begin_index == begin
        t = ours.timesteps[5:6]
        noisy = (getattr(s, noising)(*order(t)) for s in (ours, peer))
        # the tangent of a float32 angle enlarges its three roundings by 500·pi/2
        assert torch.allclose(*noisy, rtol=1.5e-4 if name == COSINE else 1e-5)
    set_both(peer, ours)
    assert ours.begin_index is peer.begin_index is None
    for scheduler in (peer, ours):
        scheduler.set_begin_index(2)
    t = ours.timesteps[4:5]
    if name != "LCMScheduler":  # LCM's own goes by the timestep
        assert torch.allclose(*(getattr(s, noising)(*order(t)) for s in (ours, peer)), rtol=1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "LCMScheduler"])
def test_get_velocity(name):
    peer, ours = both(name, {})
    t = torch.tensor([981, 7])
    theirs = peer.get_velocity(X.float(), N.float(), t)
    assert torch.allclose(ours.get_velocity(X.float(), N.float(), t), theirs, rtol=0, atol=3e-6)
    abar = peer.alphas_cumprod.double()[t].view(2, 1, 1, 1)
    right = abar.sqrt() * N - (1 - abar).sqrt() * X
    assert torch.allclose(ours.get_velocity(X, N, t), right, rtol=0, atol=1e-5)


def test_get_velocity_of_euler_is_that_of_its_timestep():
    """(diffusers' own looks the level up from the table's other end.)"""
    peer, ours = both("EulerDiscreteScheduler", {})
    abar = peer.alphas_cumprod.double()[[600, 3]].view(2, 1, 1, 1)
    right = abar.sqrt() * N - (1 - abar).sqrt() * X
    assert torch.allclose(ours.get_velocity(X, N, torch.tensor([600.0, 3.0])), right, atol=1e-5)
    assert not hasattr(fs.FsScheduler(), "get_velocity")


@pytest.mark.parametrize(("name", "config"), CONFIGS)
def test_functions_of_the_source_are_its_own(name, config):
    peer, ours = both(name, config)
    for _ in range(2):
        times = peer.timesteps if peer.timesteps is not None else torch.arange(5)
        for t in (times[0], times[3], times[-1]):
            if hasattr(peer, "index_for_timestep") and peer.timesteps is not None:
                assert ours.index_for_timestep(t) == peer.index_for_timestep(t)
            if hasattr(peer, "previous_timestep"):
                assert int(ours.previous_timestep(t)) == int(peer.previous_timestep(t))
            if name == "DDPMScheduler":
                assert torch.equal(ours._get_variance(t), peer._get_variance(t))
            elif name == "DDIMScheduler":
                given = int(t), int(t) - 40
                assert torch.equal(ours._get_variance(*given), peer._get_variance(*given))
        if hasattr(peer, "time_shift"):
            s = torch.linspace(0.1, 1.0, 5)
            assert torch.equal(ours.time_shift(0.9, 1.0, s), peer.time_shift(0.9, 1.0, s))
        set_both(peer, ours)


def test_a_timestep_that_is_nowhere_is_a_sentence():
    ours = fs.FsScheduler.from_config(diffusers.EulerDiscreteScheduler())
    with pytest.raises(IndexError, match=r"index_for_timestep: no step at 12\.5; one of scheduler"):
        ours.index_for_timestep(12.5)


@pytest.mark.parametrize("compat", ["diffusers", None])
@pytest.mark.parametrize("config", [{"shift": 3.0}, {"shift": 0.5, "use_karras_sigmas": True}])
def test_set_shift(config, compat):
    """It counts from the next set_timesteps on, not for the level that the sigmas end at; copies
    keep it.
    """
    peer, ours = both("FlowMatchEulerDiscreteScheduler", config, compat=compat)
    before = ours.timesteps
    for scheduler in (peer, ours):
        scheduler.set_shift(7.0)
    assert ours.shift == peer.shift == 7.0
    assert torch.equal(ours.timesteps, before)
    for twin in (ours, copy.deepcopy(ours)):
        peer.set_timesteps(6)
        twin.set_timesteps(6)
        assert torch.allclose(twin.sigmas, peer.sigmas, rtol=2e-6)
    assert not hasattr(fs.FsScheduler(), "set_shift")


# -- steps before set_timesteps --------------------------------------------------------------------
@pytest.mark.parametrize(("name", "config"), [c for c in CONFIGS if c[0] in UNTIMED])
def test_steps_before_set_timesteps(name, config):
    peer, ours = both(name, config, compat="diffusers")
    x = y = X.float() * float(getattr(peer, "init_noise_sigma", 1.0))
    for t in peer.timesteps[:4]:
        draw = [torch.Generator().manual_seed(int(t)) for _ in range(2)]
        draws = any(word in name for word in ("Ancestral", "DDPM", "LCM", CM))
        given = [{"generator": g} if draws else {} for g in draw]
        if hasattr(peer, "scale_model_input"):
            fed = peer.scale_model_input(x, t), ours.scale_model_input(y, t)
            assert close(*fed)
        f = N.float()
        x = peer.step(f, t, x, **given[0]).prev_sample
        y = ours.step(f, t, y, **given[1]).prev_sample
        assert close(x, y)
    assert ours.num_inference_steps == getattr(peer, "num_inference_steps", None)
    assert alike(ours.timesteps, peer.timesteps.to(ours.timesteps.dtype))


@pytest.mark.parametrize("name", sorted({*COMMON} - {*UNTIMED}))
def test_the_others_say_what_is_missing(name):
    _, ours = both(name, {"skip_prk_steps": True} if name == "PNDMScheduler" else {})
    with pytest.raises(ValueError, match="there are no timesteps yet; call set_timesteps first"):
        ours.step(X, 999, X)
    if SOURCES[name].family.scale != "sigma":
        assert ours.scale_model_input(X, 123.4) is X


@pytest.mark.parametrize("name", SCALING)
def test_those_that_scale_all_the_same(name):
    """A timestep that is not in the schedule is its last."""
    peer, ours = both(name, {}, compat="diffusers")
    assert close(peer.scale_model_input(X.float(), 0.0), ours.scale_model_input(X.float(), 0.0))
    with pytest.raises(ValueError, match="there are no timesteps yet; call set_timesteps first"):
        both(name, {}, compat=None)[1].scale_model_input(X, 0.0)


def test_scale_model_input_looks_nothing_up_where_it_scales_nothing():
    for name in ("DDIMScheduler", "FlowMatchEulerDiscreteScheduler", "LCMScheduler"):
        _, ours = both(name, {})
        for _ in range(2):
            assert ours.scale_model_input(X, 123.456) is X
            ours.set_timesteps(5)


# -- keywords and options --------------------------------------------------------------------------
@pytest.mark.parametrize(
    "config",
    [
        *({"prediction_type": kind} for kind in ("epsilon", "sample", "v_prediction")),
        {"clip_sample": False, "thresholding": True, "sample_max_value": 1.5},
        {"clip_sample_range": 0.5},
        {"clip_sample": False},
    ],
)
def test_use_clipped_model_output(config):
    """DDIM's direction from the bounded x0: a loop beside the class, and unlike it without."""
    ends = {True: [], False: []}
    for clipped, kept in ends.items():
        for scheduler in both("DDIMScheduler", SD | config, compat="diffusers"):
            scheduler.set_timesteps(6)
            x = 2 * X.float()
            for t in scheduler.timesteps[:4]:  # the last step goes to x0 alone
                given = {"use_clipped_model_output": clipped}
                x = scheduler.step(2 * torch.tanh(x), t, x, **given).prev_sample
            kept.append(x)
        assert close(kept[1], kept[0])
    unlike = not torch.allclose(ends[True][1], ends[False][1], rtol=1e-3)
    assert unlike == (config != {"clip_sample": False})


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        (
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True, "use_lu_lambdas": True},
            "use_karras_sigmas and use_lu_lambdas = True at once; one of them is accepted",
        ),
        ("DPMSolverMultistepScheduler", {"variance_type": "foo"}, "variance_type = 'foo'; .*acc"),
        ("LCMScheduler", {"timestep_spacing": "foo"}, "timestep_spacing = 'foo'; .*is accepted"),
        ("EulerDiscreteScheduler", {"interpolation_type": "foo"}, "interpolation_type = 'foo'"),
        ("UniPCMultistepScheduler", {"solver_type": "foo"}, "solver_type = 'foo'"),
    ],
)
@pytest.mark.parametrize("compat", ["diffusers", None])
def test_contradictory_and_unknown_options_are_refused(name, config, said, compat):
    with pytest.raises(ValueError, match=f"^FsScheduler: {said}"):
        fs.FsScheduler(source=name, compat=compat, **config)
