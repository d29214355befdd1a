"""FsScheduler in place of LTXEulerAncestralRFScheduler, whose grid FlowMatchEuler's options lay out
though it names none of them, beside the class itself.
"""

import copy

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle.pipelines import network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
LTX, FLOW = diffusers.LTXEulerAncestralRFScheduler, diffusers.FlowMatchEulerDiscreteScheduler
LEVELS = [1.0, 0.99, 0.8, 0.5, 0.5, 0.2, 0.0]
EPS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}


def peer_of(config, grid):
    """With options of a flow in its config, as a model's own scheduler leaves them there."""
    return LTX.from_config({**FLOW(**grid).config, **config}) if grid else LTX(**config)


def walk(scheduler, x, begin=0, twin=None, **given):
    """(end, what is drawn next) of a loop; twin: a copy that takes over after the second step."""
    scheduler.set_timesteps(**given)
    if begin:
        scheduler.set_begin_index(begin)
    generator = torch.Generator().manual_seed(3)
    for k, t in enumerate(scheduler.timesteps[begin:]):
        x = scheduler.step(0.3 * network(x, t), t, x, generator, return_dict=False)[0]
        scheduler = twin(scheduler) if twin and k == 1 else scheduler
    return x, torch.randn(3, generator=generator)


CASES = [
    ({}, {}, {"num_inference_steps": 6}),
    ({"eta": 0.5, "s_noise": 1.2}, {"shift": 3.0}, {"num_inference_steps": 6}),
    ({"eta": 0.0}, {"shift_terminal": 0.1}, {"num_inference_steps": 6}),
    ({}, {"use_dynamic_shifting": True}, {"num_inference_steps": 6, "mu": 0.7}),
    ({}, {"shift": 2.0, "use_karras_sigmas": True}, {"num_inference_steps": 6, "begin": 2}),
    ({"eta": 0.7}, {}, {"sigmas": LEVELS}),
    ({"eta": 0.7, "s_noise": 0.0}, {"shift": 3.0}, {"sigmas": torch.tensor(LEVELS)}),
    ({}, {}, {"timesteps": LEVELS[1:-1]}),
]


@pytest.mark.parametrize("kind", EPS)
@pytest.mark.parametrize(("config", "grid", "given"), CASES)
def test_steps_and_draws_are_the_class_s_own(config, grid, given, kind):
    """Of its own rounding in bfloat16; a list of levels is asked at its end once more."""
    peer = peer_of(config, grid)
    ours, x = FsScheduler.from_config(peer), start(2, 3, 4, 4).to(kind)
    assert (ours.config.source, ours.config.compat) == (LTX.__name__, "diffusers")
    (a, drawn), (b, again) = (walk(s, x, **given) for s in (peer, ours))
    assert torch.equal(peer.timesteps, ours.timesteps) and torch.equal(peer.sigmas, ours.sigmas)
    assert len(ours.timesteps) == len(given.get("sigmas", given.get("timesteps", [0] * 6)))
    assert a.dtype == b.dtype == kind and torch.equal(drawn, again)
    assert (a - b).abs().max() <= 32 * EPS[kind] * (x.abs().max() + a.abs().max())
    assert torch.equal(walk(ours, x, twin=copy.deepcopy, **given)[0], b)


@pytest.mark.parametrize("grid", [{}, {"shift": 3.0, "use_dynamic_shifting": True}])
def test_options_of_the_grid_stay_with_the_config(grid, tmp_path):
    """Saved, loaded, and moved to FlowMatchEuler and back: what the model was trained for."""
    peer, given = peer_of({"eta": 0.5}, grid), {"num_inference_steps": 5}
    given |= {"mu": 0.7} if "use_dynamic_shifting" in grid else {}
    ours, x = FsScheduler.from_config(peer), start(1, 2, 4, 4)
    assert {k: ours.config.get(k) for k in grid} == grid and ours.config.eta == 0.5
    assert ("max_shift" in ours.config) is ("base_image_seq_len" in ours.config) is False
    end = walk(ours, x, **given)[0]
    ours.save_pretrained(tmp_path)
    flow = FsScheduler.from_config(ours, source=FLOW)
    assert flow.config.source == FLOW.__name__ and flow.config.shift == grid.get("shift", 1.0)
    there = FsScheduler.from_config(FLOW(**grid), source=LTX, eta=0.5)
    loaded, back = FsScheduler.from_pretrained(tmp_path), FsScheduler.from_config(flow, source=LTX)
    for made in (loaded, back, there, FsScheduler.from_config(ours.config)):
        assert made.config.source == LTX.__name__ and made.config.eta == 0.5
        assert torch.equal(walk(made, x, **given)[0], end)
    theirs, own = LTX.from_config(ours.config), FLOW.from_config(flow.config)
    assert torch.allclose(walk(theirs, x, **given)[0], end, atol=1e-5)
    own.set_timesteps(**given)
    flow.set_timesteps(**given)
    assert torch.equal(own.timesteps, flow.timesteps)


def test_an_exact_run_is_the_solver_s_own():
    """Without the call at the end, which is for nothing."""
    ours = FsScheduler.from_config(LTX(eta=0.5, s_noise=0.9), compat=None)
    ours.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.0])
    assert ours.timesteps.tolist() == [1000.0, 800.0, 500.0]
    plan, flow = ours.plan, fastsample.schedules.Flow()
    words = {"prediction": "flow", "eta": 0.5, "s_noise": 0.9}
    again = fastsample.solvers.euler_ancestral(flow, [1.0, 0.8, 0.5, 0.0], **words)
    assert plan.note["solver"] == "euler_ancestral" and np.array_equal(plan.M, again.M)
    ours.set_timesteps(timesteps=[0.9, 0.4, 0.1, 0.0])
    assert ours.timesteps.tolist() == pytest.approx([900.0, 400.0, 100.0])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"eta": 1.5}, "eta on Flow = 1.5; a number from 0 to 1 is accepted"),
        ({"s_noise": -1.0}, "s_noise = -1.0; a number from 0 up is accepted"),
        ({"eta": "a"}, "eta = 'a'; a number is accepted"),
        ({"invert_sigmas": True}, "invert_sigmas = True of LTX.* is not reproduced; False is acc"),
    ],
)
@pytest.mark.parametrize("compat", ["diffusers", None])
def test_what_no_such_step_has_is_refused(config, sentence, compat):
    with pytest.raises(ValueError, match=sentence):
        FsScheduler(source=LTX.__name__, compat=compat, **config).set_timesteps(4)


def test_noise_of_its_own_that_a_flow_draws_is_not_read():
    """As in the class: FlowMatchEuler's stochastic_sampling."""
    config = {"stochastic_sampling": True, "shift": 2.0}
    ends = []
    for grid in (config, {"shift": 2.0}):
        ours, x = FsScheduler.from_config(FLOW(**grid), source=LTX), start(1, 2, 4, 4)
        ends.append(walk(ours, x, num_inference_steps=4)[0])
    assert torch.equal(*ends)
