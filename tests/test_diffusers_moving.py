"""A scheduler moved to another class asks its model for the same as before, or is refused with what
differs.
"""

import inspect

import numpy as np
import pytest
import torch

import fastsample
from fastsample.interop.diffusers.sources import CLOSEST, SAME, SOURCES
from fastsample.interop.diffusers.training import UNCLIPPED
from tests.oracle.pipelines import loop, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
# diffusers' own; and that a run is exact where the class itself has no word for what was moved
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:FsScheduler"
)
FsScheduler = fastsample.FsScheduler
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COG = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def of(name, **config):
    return getattr(diffusers, f"{name}Scheduler")(**config)


def moved(peer, target, **given):
    return FsScheduler.from_config(peer, source=f"{target}Scheduler", **given)


def levels(scheduler, steps):
    """sigma/alpha, or on flow scale sigma, at the points of so many steps."""
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.numpy()[:-1]


# -- levels ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("compat", ["diffusers", None])
@pytest.mark.parametrize("target", ["DDIM", "DDPM", "UniPCMultistep", "EulerDiscrete"])
@pytest.mark.parametrize("name", ["CogVideoXDDIM", "CogVideoXDPM"])
def test_an_snr_shift_and_zero_terminal_snr_move_along(name, target, compat):
    """abar/(k + (1-k) abar), then rescaled so that its end is 0; diffusers' other classes have no
    k. Their float32 tables multiply 1000 factors.
    """
    peer = of(name, **COG)
    scheduler = moved(peer, target, compat=compat)
    assert (scheduler.config.source, scheduler.config.compat) == (f"{target}Scheduler", compat)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    abar = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    root = np.sqrt(abar / (3.0 - 2.0 * abar))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    with np.errstate(divide="ignore"):
        right = np.sqrt(1.0 / root**2 - 1.0)[[999, 749, 499, 249]]
    found = scheduler.sigmas.numpy()[:-1]
    assert found[0] >= 4096.0 * (1.0 - 1e-6)
    assert np.allclose(found[1:], right[1:], rtol=1e-5)
    assert np.allclose(found[1:], [9.4969, 3.0692, 1.2483], atol=5e-5)


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_the_shift_of_a_flow_moves_along(compat):
    """3s/(1 + 2s) of the class's own s, which is what s = 1, .75025, .5005, .25075 is of UniPC."""
    for name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM"):
        scheduler = moved(of(name, shift=3.0), "UniPCMultistep", compat=compat)
        assert scheduler.config.prediction_type == "flow_prediction"
        found = levels(scheduler, 4)
        s = np.linspace(1.0, 1.0 / 1000, 5)[:-1]
        assert np.allclose(found, 3.0 * s / (1.0 + 2.0 * s), atol=2e-6)
        assert np.allclose(found, [1.0, 0.9001, 0.7504, 0.5010], atol=5e-5)
        back = moved(scheduler, "FlowMatchEulerDiscrete", compat=compat)
        assert back.config.shift == 3.0
        own = moved(of(name, shift=3.0), "FlowMatchEulerDiscrete", compat=compat)
        assert np.array_equal(levels(back, 4), levels(own, 4))
        given = {"sigmas": [1.0, 0.75, 0.5, 0.25]}
        for one in (scheduler, own):
            one.set_timesteps(**given)
            assert np.allclose(one.sigmas[:-1], [1.0, 0.9, 0.75, 0.5], atol=2e-6)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("FlowMatchEulerDiscrete", "EulerDiscrete"),
        ("FlowMatchEulerDiscrete", "DDIM"),
        ("FlowMatchHeunDiscrete", "HeunDiscrete"),
        ("FlowMatchLCM", "LCM"),
    ],
)
def test_a_solver_of_a_class_without_flows_runs_on_one(name, target):
    """As diffusers' own class of that solver on flows, on its levels and with its draws."""

    def velocity(x, t):
        return 0.7 * torch.tanh(x) + 3e-4 * float(t)

    peer, x = of(name, shift=3.0), start(1, 2, 4, 4)
    scheduler = moved(peer, target)
    assert scheduler.config.moved == {"use_flow_sigmas": True, "shift": 3.0}
    ends = []
    for one in (peer, scheduler, FsScheduler.from_config(scheduler.config)):
        given = {"generator": torch.Generator().manual_seed(3)} if target == "LCM" else {}
        one.set_timesteps(6)
        y = x
        for t in one.timesteps:
            y = one.step(velocity(y, t), t, y, **given).prev_sample
        ends.append(y)
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]) is x
    assert torch.allclose(scheduler.sigmas, peer.sigmas, atol=1e-6)
    assert torch.allclose(scheduler.timesteps, peer.timesteps, atol=1e-3)
    assert torch.allclose(ends[0], ends[1], atol=1e-5) and torch.equal(ends[1], ends[2])
    back = moved(scheduler, "FlowMatchEulerDiscrete")
    assert (back.config.source, back.config.shift) == ("FlowMatchEulerDiscreteScheduler", 3.0)


ALONE = ("Cosine", "SCM", "DDPMWuerstchen", "UnCLIP")
BETAS = [
    *((name, {}) for name in ("HeunDiscrete", "LCM", "DPMSolverSDE", "TCD")),
    ("LMSDiscrete", {"beta_end": 0.012}),
    ("UnCLIP", {"clip_sample": False}),
    *(("DDPM", {"beta_schedule": k, "clip_sample": False}) for k in ("laplace", "sigmoid")),
    ("HeunDiscrete", {"beta_schedule": "exp"}),
]


def journeys():
    """Each to a third of the classes, all of which are met by three; in a soak to all."""
    for i, (name, config) in enumerate(BETAS):
        for j, target in enumerate(source.removesuffix("Scheduler") for source in SOURCES):
            mark = [pytest.mark.soak] if (i + j) % 3 else []
            yield pytest.param(name, config, target, marks=mark, id=f"{name}-{i}-{target}")


@pytest.mark.parametrize(("name", "config", "target"), journeys())
def test_betas_move_along_whoever_set_them(name, config, target):
    peer = of(name, **config)
    if target == name:  # not moved
        return
    if target.startswith(("FlowMatch", "EDM", "LTX", "IPNDM", "CM", *ALONE)):
        own = {"EDM": "has sigma/alpha", "CMS": "samples consistency models, and"}
        own |= dict.fromkeys(("Cos", "SCM", "DDP"), f"{target}.* samples .*models.*, and {name}")
        own |= {"IPN": "would have its own, sigma =", "UnC": "has sigma/alpha = |beta_schedule = "}
        said = own.get(target[:3], f"stands on betas.*and {target}.* is a flow")
        with pytest.raises(ValueError, match=said):
            moved(peer, target)
        return
    more = {"skip_prk_steps": True} if target == "PNDM" else {}
    table = moved(peer, target, compat=None, **more).alphas_cumprod.double()
    slack = (torch.arange(1000) + 2.0) * np.finfo(np.float32).eps
    assert ((table - peer.alphas_cumprod).abs() <= slack * table).all()


# -- bounds, labels, predictions -------------------------------------------------------------------
@pytest.mark.parametrize("name", ["EulerDiscrete", "DPMSolverMultistep", "CogVideoXDDIM", "TCD"])
def test_a_clip_is_not_switched_on(name):
    """The exact flow of N(0, 4) data, by 50 steps of DDIM without a clip. The class's own default
    clips; two of these have the word and do not read it.
    """
    words = {"snr_shift_scale": 1.0} if "Cog" in name else {}
    peer = of(name, **SD, **words, **({} if name == "TCD" else {"timestep_spacing": "trailing"}))
    scheduler = moved(peer, "DDIM", timestep_spacing="trailing")
    assert scheduler.config.clip_sample is False
    scheduler.set_timesteps(50)
    abar = of("DDIM", **SD).alphas_cumprod.double()
    x = torch.tensor([3.0, 1.4, -2.0]) * (3.0 * abar[-1] + 1.0).sqrt() / 2.0
    for t in scheduler.timesteps:
        a = abar[t]
        x = scheduler.step((1.0 - a).sqrt() * x / (3.0 * a + 1.0), t, x.float()).prev_sample
    assert np.allclose(x, [2.9345, 1.3694, -1.9563], atol=5e-5)


def test_the_classes_that_do_not_read_their_clip_are_all_known():
    names = [n for n in dir(diffusers) if n.endswith("Scheduler")]
    kinds = {name: getattr(diffusers, name) for name in names}
    unread = {
        name
        for name, kind in kinds.items()
        if "clip_sample" in inspect.signature(kind.__init__).parameters
        and "config.clip_sample:" not in inspect.getsource(kind)
    }
    assert unread == set(UNCLIPPED)


@pytest.mark.parametrize(
    "target", ["EulerDiscrete", "DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep"]
)
def test_a_clip_moves_along_to_a_class_without_the_word(target):
    """To the class's own solver with predictions inside the range: as a model that clips itself."""
    peer = of("DDIM", clip_sample_range=0.7, prediction_type="sample")
    clipped = moved(peer, target, compat=None)
    free = moved(peer, target, compat=None, clip_sample=False)
    assert clipped.config.moved == {"clip_sample": True, "clip_sample_range": 0.7}
    assert "moved" not in free.config
    x = start(1, 2, 4, 4) * 3.0
    large, inside = (lambda y, t: 3.0 * y), (lambda y, t: (3.0 * y).clamp(-0.7, 0.7))
    ends = [loop(clipped, x, 5, large), loop(free, x, 5, inside), loop(free, x, 5, large)]
    assert torch.allclose(ends[0], ends[1], atol=1e-5)
    assert not torch.allclose(ends[0], ends[2], atol=0.1)
    again = FsScheduler.from_config(clipped.config)
    assert torch.equal(loop(again, x, 5, large), ends[0])


@pytest.mark.parametrize("compat", ["diffusers", None])
@pytest.mark.parametrize("target", ["EulerDiscrete", "HeunDiscrete"])
def test_thresholding_moves_along_to_a_class_without_the_word(target, compat):
    """As by a model that bounds its own prediction so (Saharia et al. 2022, sec. 2.3)."""

    def large(x, t):
        return 3.0 * torch.tanh(x) + 0.1 * x

    def inside(x, t):
        x0 = large(x, t)
        s = torch.quantile(x0.flatten(1).abs(), 0.9, dim=1).clamp(1.0, 1.7).view(-1, 1, 1, 1)
        return x0.clamp(-s, s) / s

    words = {"dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.7}
    peer = of("DPMSolverMultistep", thresholding=True, prediction_type="sample", **words)
    bound = moved(peer, target, compat=compat)
    free = moved(peer, target, compat=compat, thresholding=False)
    assert (bound.config.compat, bound.config.moved) == (compat, {"thresholding": True} | words)
    x = 3.0 * start(2, 2, 4, 4)
    assert torch.allclose(loop(bound, x, 5, large), loop(free, x, 5, inside), atol=1e-6)
    assert not torch.allclose(loop(free, x, 5, large), loop(free, x, 5, inside), atol=0.1)


def refused():
    """(name, config, target, keywords, sentence, what it says is accepted)"""
    for name in ("DDIMInverse", "DPMSolverMultistepInverse"):
        said = f"{name}Scheduler stands on betas, with sigma/alpha up to 157.407 and FlowMatchEuler"
        own = {"source": f"{name}Scheduler"}
        yield name, {}, "FlowMatchEulerDiscrete", {}, said, own
    said = "has rescale_betas_zero_snr = True and DPMSolverMultistepInverseScheduler would have"
    snr = {"rescale_betas_zero_snr": True}
    yield "DDIM", snr, "DPMSolverMultistepInverse", {}, said, {"source": "DDIMScheduler"}
    for target in ("DDPM", "EulerAncestralDiscrete"):
        said = f"sigma up to 1 and {target}Scheduler stands on betas, with sigma/alpha up to"
        own = {"source": "FlowMatchEulerDiscreteScheduler"}
        yield "FlowMatchEulerDiscrete", {"shift": 3.0}, target, {}, said, own
    karras = {"use_karras_sigmas": True}
    said = "has use_karras_sigmas = True and LCMScheduler would have False"
    yield "EulerDiscrete", karras, "LCM", {}, said, {"use_karras_sigmas": False}
    whole, bound = {"skip_prk_steps": True}, {"thresholding": True}
    said = "has thresholding = True and PNDMScheduler would have False"
    yield "DPMSolverMultistep", bound, "PNDM", whole, said, {"thresholding": False}
    said = "has clip_sample = True and PNDMScheduler would have False"
    yield "DDPM", {}, "PNDM", whole, said, {"clip_sample": False}
    said = "has shift_terminal = 0.1 and DPMSolverMultistepScheduler would have None"
    last = {"shift_terminal": 0.1}
    yield "FlowMatchEulerDiscrete", last, "DPMSolverMultistep", {}, said, {"shift_terminal": None}
    said = "has timestep_type = 'continuous' and DDIMScheduler would have 'discrete'"
    video = {"timestep_type": "continuous", "prediction_type": "v_prediction"}
    yield "EulerDiscrete", video, "DDIM", {}, said, {"source": "EulerDiscreteScheduler"}
    said = "has invert_sigmas = True and UniPCMultistepScheduler would have False"
    own = {"source": "FlowMatchEulerDiscreteScheduler"}
    yield "FlowMatchEulerDiscrete", {"invert_sigmas": True}, "UniPCMultistep", {}, said, own
    said = "use_karras_sigmas = True between the ends of its flow and UniPCMultistep"
    yield "FlowMatchEulerDiscrete", karras, "UniPCMultistep", {}, said, {"use_karras_sigmas": False}
    said = "shift = 3.0 beside flow_shift = 5.0; one number"
    both = {"shift": 3.0, "flow_shift": 5.0}
    yield "FlowMatchEulerDiscrete", {}, "UniPCMultistep", both, said, None
    said = "is a flow of sigma up to 1 and UniPCMultistepScheduler stands on betas"
    off = {"use_flow_sigmas": False}
    yield "FlowMatchEulerDiscrete", {}, "UniPCMultistep", off, said, None
    said = "has sigma_data = 0.5 and LCMScheduler would have None"
    yield "EDMEuler", {}, "LCM", {}, said, {"source": "EDMEulerScheduler"}
    said = "has rho = 5.0 and EulerDiscreteScheduler would have None"
    yield "EDMEuler", {"rho": 5.0}, "EulerDiscrete", {}, said, None
    last = {"final_sigmas_type": "sigma_min"}
    yield "EDMEuler", last, "EulerDiscrete", {}, "final_sigmas_type = 'sigma_min' with EDM's", None
    for name in ("CosineDPMSolverMultistep", "ScoreSdeVe", "IPNDM", "SCM", "CMStochasticIterative"):
        own = {"source": f"{name}Scheduler"} if f"{name}Scheduler" in SOURCES else None
        yield name, {}, "EulerDiscrete", {}, f"{name}Scheduler has no table of noise levels", own
    said = "use_lu_lambdas, nonsense: not known to DDIMScheduler"
    yield "EulerDiscrete", {}, "DDIM", {"use_lu_lambdas": True, "nonsense": 1}, said, None


@pytest.mark.parametrize(
    ("name", "config", "target", "given", "sentence", "accepted"), [*refused()]
)
def test_what_differs_is_refused_with_what_can_be_written(
    name, config, target, given, sentence, accepted
):
    with pytest.raises((ValueError, TypeError)) as error:
        moved(of(name, **config), target, **given)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    if accepted is None:
        return
    (key, value), *_ = accepted.items()
    assert f"; {key}={value!r}" in str(error.value)
    given = {"source": f"{target}Scheduler", **given, **accepted}
    FsScheduler.from_config(of(name, **config), **given).set_timesteps(4)


def advice():
    """Every scheduler class there is, with arguments where it has no defaults."""
    more = {
        "AmusedScheduler": {"mask_token_id": 0},
        "VQDiffusionScheduler": {"num_vec_classes": 8},
        "RFD4ProteinaScheduler": {
            "schedule_mode": "log",
            "noise_mode": "tan",
            "tsr_k": 1.0,
            "tsr_sigma": 1.0,
        },
    }
    for name in (n for n in dir(diffusers) if n.endswith("Scheduler")):
        kind = getattr(diffusers, name)
        if isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin):
            yield name, more.get(name, {})


@pytest.mark.parametrize(("name", "config"), [*advice()])
def test_whatever_class_is_advised_takes_the_noise_schedule_over(name, config):
    """And where none is, none does."""
    peer = getattr(diffusers, name)(**config)
    if name in (*SOURCES, *SAME):
        return
    with pytest.raises(ValueError, match=f"{name} is not reproduced") as error:
        FsScheduler.from_config(peer)
    if name in CLOSEST:
        assert f"source={CLOSEST[name]!r}" in str(error.value)
        FsScheduler.from_config(peer, source=CLOSEST[name]).set_timesteps(4)
        return
    assert "nor is a class that runs on its noise schedule" in str(error.value)
    for source in SOURCES:
        with pytest.raises(ValueError, match="; one of"):
            FsScheduler.from_config(peer, source=source)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("EDMEuler", "EulerDiscrete"),
        ("EDMEuler", "DDIM"),
        ("EDMDPMSolverMultistep", "DPMSolverMultistep"),
    ],
)
@pytest.mark.parametrize(
    "config",
    [
        {},
        {
            "prediction_type": "v_prediction",
            "sigma_schedule": "exponential",
            "sigma_data": 1.0,
            "sigma_max": 120.0,
        },
    ],
)
def test_edm_levels_and_words_move_along(name, target, config):
    """As diffusers' own class of that solver: levels, what the model is told and shown, and what
    its output stands for.
    """

    def network(x, t):
        return 0.7 * torch.tanh(x) + 0.3 * float(t)

    peer, x = of(name, **config), 80.0 * start(1, 2, 4, 4)
    scheduler = moved(peer, target)
    ends = [loop(one, x, 6, network) for one in (peer, scheduler)]
    assert torch.allclose(scheduler.sigmas, peer.sigmas, rtol=1e-6)
    assert torch.allclose(scheduler.timesteps, peer.timesteps, atol=1e-6)
    assert torch.allclose(*ends, atol=1e-5)
    again = FsScheduler.from_config(scheduler.config)
    assert torch.equal(loop(again, x, 6, network), ends[1])
    image, noise = start(2, 2, 4, 4), start(2, 2, 4, 4, seed=1)
    levels = (4.0 * scheduler.timesteps[[1, 3]].double()).exp().view(2, 1, 1, 1)
    noised = again.add_noise(image, noise, scheduler.timesteps[[1, 3]])
    assert torch.allclose(noised, (image + levels * noise).float(), rtol=1e-5)


def test_what_pipelines_find_mu_by_stays():
    words = {"use_dynamic_shifting": True, "max_shift": 0.9, "max_image_seq_len": 8192}
    scheduler = moved(of("FlowMatchEulerDiscrete", **words), "UniPCMultistep")
    for one in (scheduler, FsScheduler.from_config(scheduler.config)):
        assert words.items() <= one.config.items() and "base_shift" not in one.config
        one.set_timesteps(4, mu=0.7)
        s = np.linspace(1.0, 0.001, 5)[:-1]
        assert np.allclose(one.sigmas[:-1], np.exp(0.7) * s / (1.0 + np.expm1(0.7) * s), atol=2e-6)


def test_a_plan_is_held_against_any_class_that_can_be_read():
    """CogVideoX's levels, of which no class that is reproduced has the words."""
    abar = of("CogVideoXDDIM").alphas_cumprod.numpy()
    schedules = [fastsample.schedules.DiscreteVP(a) for a in (abar, abar / (0.5 + 0.5 * abar))]
    grid = np.array([999.0, 700.0, 400.0, 100.0, -1.0])
    plans = [fastsample.solvers.ddim(fastsample.Model(None, s, "eps"), grid) for s in schedules]
    for like in (of("CogVideoXDDIM"), of("CogVideoXDPM")):
        FsScheduler.from_plan(plans[0], like=like).set_timesteps(4)
        with pytest.raises(ValueError, match="schedule"):
            FsScheduler.from_plan(plans[1], like=like)
    with pytest.raises(ValueError, match="FlowMapEulerDiscreteScheduler is not reproduced"):
        FsScheduler.from_plan(plans[0], like=of("FlowMapEulerDiscrete"))
