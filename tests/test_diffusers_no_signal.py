"""A model that predicts epsilon on a schedule of zero terminal SNR: nothing of the data can be read
off pure noise, and runs that begin below it are those of diffusers' own classes.
"""

import copy
import pickle

import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
from fastsample import solvers  # noqa: E402
from tests.beside import SD, N, X, both, close  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
ZERO = SD | {"rescale_betas_zero_snr": True, "prediction_type": "epsilon"}
TRAILING = ZERO | {"timestep_spacing": "trailing"}
# what stands at alpha = 0 exactly; the others of diffusers at 2^-24, and here without compat
BLIND = [
    ("DDIMScheduler", TRAILING | {"clip_sample": False}),
    ("DDIMScheduler", TRAILING),
    ("DDIMScheduler", TRAILING | {"clip_sample": False, "thresholding": True}),
    ("DDPMScheduler", TRAILING | {"clip_sample": False}),
    ("DDPMScheduler", TRAILING | {"variance_type": "fixed_large"}),
    ("LCMScheduler", ZERO),
]
EXACT = [("DPMSolverMultistepScheduler", TRAILING), ("UniPCMultistepScheduler", TRAILING)]
SAID = "^FsScheduler: epsilon at timestep 999, where alpha = 0 and a sample holds no trace of the"


def from_image(scheduler, begin):
    """Every sample of a run from an image at the timestep `begin`."""
    scheduler.set_timesteps(6)
    times, draw = scheduler.timesteps[begin:], torch.Generator().manual_seed(1)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    x, seen = scheduler.add_noise(X.float(), N.float(), times[:1]), []
    for t in times:
        fed = scheduler.scale_model_input(x, t)
        words = {} if type(scheduler).__name__.startswith("UniPC") else {"generator": draw}
        x = scheduler.step(0.3 * fed, t, x, **words).prev_sample
        seen.append(x)
    return seen


@pytest.mark.parametrize("begin", [1, 4])
@pytest.mark.parametrize(("name", "config"), BLIND)
def test_a_run_from_an_image_is_that_of_the_class(name, config, begin):
    peer, ours = both(name, config, compat="diffusers")
    right = from_image(peer, begin)
    assert all(close(a, b) for a, b in zip(from_image(ours, begin), right, strict=True))
    assert torch.equal(ours.timesteps, peer.timesteps) and ours.timesteps[0] == 999
    exact = fs.FsScheduler.from_config(peer, compat=None)
    assert all(torch.isfinite(x).all() for x in from_image(exact, begin))
    with pytest.raises(ValueError, match=SAID):
        from_image(exact, 0)


@pytest.mark.parametrize("compat", ["diffusers", None])
@pytest.mark.parametrize(("name", "config"), BLIND + EXACT)
def test_the_first_step_is_refused_before_the_model_is_asked(name, config, compat):
    """In scale_model_input and in step, whatever says where they are; and what the sentence advises
    works, also for a copy.
    """
    if (name, config) in EXACT and compat:
        return  # at 2^-24 they do as the class does
    _, ours = both(name, config, compat=compat)
    for told in (lambda t: t, int, lambda t: t.bfloat16()):
        ours.set_timesteps(6)
        first = told(ours.timesteps[0])
        for call in (
            lambda: ours.scale_model_input(X, first),  # noqa: B023
            lambda: ours.step(0.3 * X, first, X),  # noqa: B023
            lambda: ours.step(0.3 * X.float(), first, X.float()),  # noqa: B023
        ):
            with pytest.raises(ValueError, match=SAID):
                call()
    assert not hasattr(ours, "plan") and hasattr(ours, "init_noise_sigma")
    with pytest.raises(AttributeError, match=SAID[1:]):
        _ = ours.plan
    for scheduler in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        scheduler.set_timesteps(6)
        scheduler.set_begin_index(1)
        t = scheduler.timesteps[1]
        assert scheduler.scale_model_input(X, t) is X
        assert torch.isfinite(scheduler.step(0.3 * X, t, X).prev_sample).all()
    other = fs.FsScheduler.from_config(ours, prediction_type="v_prediction")
    other.set_timesteps(6)
    assert torch.isfinite(other.step(0.3 * X, other.timesteps[0], X).prev_sample).all()
    assert other.plan.alpha[1] <= 2.0**-12


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_a_grid_below_the_end_is_as_it_was(name):
    """leading, which stops short of 999: nothing is refused, nor with another prediction."""
    for config in (
        ZERO | {"timestep_spacing": "leading"},
        TRAILING | {"prediction_type": "sample"},
    ):
        peer, ours = both(name, config | {"clip_sample": False}, compat="diffusers")
        for a, b in zip(from_image(ours, 0), from_image(peer, 0), strict=True):
            assert close(a, b)
        assert ours.plan.nfe == 6


def test_a_step_before_set_timesteps():
    """DDPM's, through every training timestep: all but the first."""
    peer, ours = both("DDPMScheduler", ZERO | {"clip_sample": False}, compat="diffusers")
    for t in (998, 500, 0):
        draws = [torch.Generator().manual_seed(3) for _ in range(2)]
        ends = [
            s.step(0.1 * X, t, X, generator=g).prev_sample
            for s, g in zip((ours, peer), draws, strict=True)
        ]
        assert close(*ends)
    with pytest.raises(ValueError, match=SAID):
        ours.step(0.1 * X, 999, X)


def test_makers_ask_the_level_where_the_run_begins():
    schedule = fs.schedules.DiscreteVP.scaled_linear().zero_terminal_snr()
    grid = [999.0, 700.0, 300.0, -1.0]
    for make in (solvers.ddim, solvers.dpmpp_2m, solvers.unipc, solvers.lcm):
        with pytest.raises(ValueError, match="'eps' at alpha = 0"):
            make(schedule, grid, prediction="eps")
        for words in ({"start": 1}, {"strength": 2 / 3}):
            assert make(schedule, grid, prediction="eps", **words).nfe == 2
