"""A flow is moved to a class that has none of its own: on the grid of the class that it comes from,
level by level, as diffusers' own object has it.
"""

import numpy as np
import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TARGETS = ["DDIM", "LCM", "EulerDiscrete", "HeunDiscrete"]
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
MATCH = "FlowMatchEulerDiscrete"
OLD = [
    *(
        (name, FLOW | {"flow_shift": shift})
        for shift in (1.0, 3.0)
        for name in ("UniPCMultistep", "DPMSolverMultistep", "DPMSolverSinglestep")
    ),
    ("UniPCMultistep", FLOW | {"use_dynamic_shifting": True}),
    ("UniPCMultistep", FLOW | {"use_dynamic_shifting": True, "time_shift_type": "linear"}),
    ("DPMSolverMultistep", FLOW | {"use_dynamic_shifting": True}),
    ("UniPCMultistep", FLOW | {"flow_shift": 3.0, "shift_terminal": 0.1}),
    (MATCH, {"shift": 3.0}),
    (MATCH, {"use_dynamic_shifting": True}),
    (MATCH, {"shift": 3.0, "shift_terminal": 0.1}),
]


def of(name, config):
    return getattr(diffusers, f"{name}Scheduler")(**config)


def moved(peer, target, **given):
    return fs.FsScheduler.from_config(peer, source=f"{target}Scheduler", compat=None, **given)


def points(scheduler):
    """(levels, labels) at the first call of every step, and the level of the end."""
    steps = (len(scheduler.timesteps) + scheduler.order - 1) // scheduler.order
    first = [0, *range(1, len(scheduler.timesteps), scheduler.order)][:steps]
    return scheduler.sigmas[[*first, -1]], scheduler.timesteps[first].float()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("name", "config"), OLD)
def test_the_grid_is_that_of_the_old_class(name, config, target):
    peer = of(name, config)
    ours = moved(peer, target)
    again = fs.FsScheduler.from_config(ours.config)  # as a saved config is read
    given = {"mu": 0.9} if config.get("use_dynamic_shifting") else {}
    for n in (2, 7):
        peer.set_timesteps(n, **given)
        for scheduler in (ours, again):
            scheduler.set_timesteps(n, **given)
            levels, labels = points(scheduler)
            assert torch.allclose(levels, peer.sigmas, rtol=0, atol=2e-6)
            if name == MATCH:
                assert torch.allclose(labels, peer.timesteps, rtol=0, atol=2e-3)
            else:  # which cuts its labels off to whole numbers
                assert ((labels - peer.timesteps).abs() < 1.0 + 2e-3).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["UniPCMultistep", MATCH])
def test_levels_that_pipelines_give(name, target):
    own = {"shift": 3.0} if name == MATCH else FLOW | {"flow_shift": 3.0}
    peer, ours = of(name, own), moved(of(name, own), target)
    for scheduler in (peer, ours):
        scheduler.set_timesteps(sigmas=torch.linspace(1.0, 0.2, 5).numpy())
    assert torch.allclose(points(ours)[0], peer.sigmas, rtol=0, atol=2e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_twice_moved_and_back(target):
    """UniPC's grid through a class without one; back to a class that has its own, that one."""
    peer = of("UniPCMultistep", FLOW | {"flow_shift": 3.0})
    there = moved(moved(peer, target), "EulerDiscrete" if target != "EulerDiscrete" else "DDIM")
    back = fs.FsScheduler.from_config(there, source="UniPCMultistepScheduler")
    match = fs.FsScheduler.from_config(there, source="FlowMatchEulerDiscreteScheduler")
    own = of(MATCH, {"shift": 3.0})
    for scheduler in (peer, there, back, match, own):
        scheduler.set_timesteps(6)
    assert torch.allclose(points(there)[0], peer.sigmas, rtol=0, atol=2e-6)
    assert torch.allclose(back.sigmas, peer.sigmas, rtol=0, atol=2e-6)
    assert torch.allclose(match.sigmas, own.sigmas, rtol=0, atol=2e-6)


@pytest.mark.parametrize("target", ["DDIM", "EulerDiscrete", "HeunDiscrete", MATCH])
def test_a_last_level_above_0_moves_along(target):
    """Not 0, which it became without a word; exact runs have it as the last of n + 1 levels."""
    peer = of("UniPCMultistep", FLOW | {"flow_shift": 3.0, "final_sigmas_type": "sigma_min"})
    ours = moved(peer, target)
    same = fs.FsScheduler.from_config(peer, compat=None)
    for scheduler in (ours, same):
        scheduler.set_timesteps(5)
    assert ours.sigmas[-1] > 0
    if target != MATCH:
        assert torch.equal(points(ours)[0], same.sigmas)
    with pytest.raises(ValueError, match="final_sigmas_type = 'sigma_min' and LCMScheduler would"):
        moved(peer, "LCM")


@pytest.mark.parametrize("key", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
def test_spacings_that_a_flow_cannot_have_are_refused_as_it_is_made(key):
    said = f"{key}=True with use_flow_sigmas=True; one of the two is accepted"
    for name in ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"):
        for compat in ("diffusers", None):
            with pytest.raises(ValueError, match=said):
                fs.FsScheduler(source=name, compat=compat, **FLOW, **{key: True})
    if key != "use_karras_sigmas":
        with pytest.raises(ValueError, match=said):
            fs.FsScheduler(source="UniPCMultistepScheduler", **FLOW, **{key: True})


def test_a_grid_of_no_class_is_refused():
    ours = moved(of("UniPCMultistep", FLOW), "DDIM")
    config = dict(ours.config) | {"moved": dict(ours.config.moved) | {"flow_sigmas": "mine"}}
    with pytest.raises(ValueError, match="flow_sigmas = 'mine'; 'match' or 'unipc' or 'dpm' is"):
        fs.FsScheduler.from_config(config)


@pytest.mark.parametrize("ours", [False, True])
def test_a_shift_that_was_set_since_is_the_one_that_moves(ours):
    """set_shift leaves the config as it is. s -> 5s/(1 + 4s) of UniPC's own sigmas."""
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)
    scheduler = fs.FsScheduler.from_config(peer) if ours else peer
    for each in [peer, scheduler][: 1 + ours]:
        each.set_shift(5.0)
        each.set_timesteps(4)
    same = fs.FsScheduler.from_config(scheduler)
    same.set_timesteps(4)
    assert torch.allclose(same.sigmas, peer.sigmas, atol=1e-6)
    other = fs.FsScheduler.from_config(scheduler, source="UniPCMultistepScheduler")
    other.set_timesteps(4)
    s = np.linspace(1.0, 0.001, 5)[:-1]
    right = 5.0 * s / (1.0 + 4.0 * s)
    assert np.allclose(other.sigmas[1:-1], right[1:], atol=1e-5)
    given = fs.FsScheduler.from_config(scheduler, source="UniPCMultistepScheduler", flow_shift=3.0)
    given.set_timesteps(4)
    assert np.allclose(given.sigmas[1:-1], (3.0 * s / (1.0 + 2.0 * s))[1:], atol=1e-5)


@pytest.mark.parametrize("given", [{}, {"source": "EulerDiscreteScheduler"}])
def test_a_table_that_was_written_to_is_no_config_s(given):
    for betas in ("squaredcos_cap_v2", "linear"):  # moved, and rounded, it is the same
        peer = diffusers.DDIMScheduler(beta_schedule=betas)
        peer.alphas_cumprod = peer.alphas_cumprod.half()
        fs.FsScheduler.from_config(peer, **given)
    peer.alphas_cumprod = 0.9 * peer.alphas_cumprod
    with pytest.raises(
        ValueError, match=r"alphas_cumprod .* written to, it is 0.8\d* at timestep 0"
    ):
        fs.FsScheduler.from_config(peer, **given)
    peer.alphas_cumprod = peer.alphas_cumprod[:10]
    with pytest.raises(ValueError, match="has 10 numbers and its config gives 1000; .* accepted"):
        fs.FsScheduler.from_config(peer, **given)
