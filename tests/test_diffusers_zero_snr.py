"""Zero terminal SNR on sigma scale, where diffusers has 4096 at the last training timestep though
with linear betas the one before has more: against its own objects.
"""

import pytest
import torch

import fastsample as fs

diffusers = pytest.importorskip("diffusers")
from tests.beside import N, X, both, close  # noqa: E402 (imports diffusers)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
# tables of 100, on which plans of every training timestep are compiled sooner
TABLES = {
    "linear": {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.3},  # > 4096 at 98
    "steep": {"beta_schedule": "linear", "beta_start": 0.001, "beta_end": 0.4},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.0085, "beta_end": 0.12},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
each_table = pytest.mark.parametrize("table", TABLES)
each_source = pytest.mark.parametrize("name", [EULER, ANCESTRAL])
each_mode = pytest.mark.parametrize("compat", ["diffusers", None])
EPS = torch.finfo(torch.float32).eps


def config(table, **more):
    return {**TABLES[table], "num_train_timesteps": 100, "rescale_betas_zero_snr": True, **more}


def rounded(labels, levels):
    """What float32 leaves in levels of a table of t + 1 products, relatively."""
    return EPS * (labels + 2.0) * (1.0 + levels**-2.0)


@pytest.mark.parametrize("size", [100, 1000])
@each_table
@each_source
@each_mode
def test_noise_at_every_training_timestep(table, size, name, compat):
    if size == 1000:
        whole = {"num_train_timesteps": 1000, "beta_start": 1e-4}
        whole["beta_end"] = TABLES[table].get("beta_end", 0.2) / 10
    peer, ours = both(name, config(table, **(whole if size == 1000 else {})), compat=compat)
    times = torch.tensor([size - 1, size - 2, size - 3, 40, 1, 0])
    zero, one = torch.zeros(6, 1), torch.ones(6, 1)
    found, right = (s.add_noise(zero, one, times).flatten() for s in (ours, peer))
    assert found[0] == pytest.approx(4096.0, rel=1e-6)
    assert ((found - right).abs() <= rounded(times, found) * right).all()


@each_table
@each_source
@each_mode
def test_steps_before_set_timesteps(table, name, compat):
    """Two of them from every place, found by the timestep or by the begin index."""
    for at, placed in ((0, False), (0, True), (1, True), (49, False)):
        ends = []
        for made in both(name, config(table), compat=compat):
            if placed:
                made.set_begin_index(at)
            draw, x = torch.Generator().manual_seed(1), X
            for t in (99.0 - at, 98.0 - at):
                fed = made.scale_model_input(x, t)
                x = made.step(0.1 * X, t, x, generator=draw).prev_sample
                ends.append((fed, x, made.step_index))
        rises = at == 0 and table in ("linear", "steep")
        for (fed, x, index), (own_fed, own_x, own_index) in zip(ends[:2], ends[2:], strict=True):
            assert index == own_index
            if not (rises and name == ANCESTRAL):
                assert close(own_x, x) and close(own_fed, fed)
            rises = rises and torch.isfinite(own_x).all()  # from then on NaN is one


def test_a_step_up_is_eulers_whoever_makes_it():
    """x + (sigma' - sigma) eps from 4096 to 15,406; the ancestral class has NaN there."""
    betas = {"beta_schedule": "linear", "rescale_betas_zero_snr": True}
    peer, ours = both(ANCESTRAL, betas, compat="diffusers")
    low, high = peer.sigmas[:2].double()
    assert high > low
    x = ours.step(N, 999.0, X).prev_sample
    assert torch.allclose(x, X + (high - low) * N, rtol=1e-5)
    assert peer.step(N, 999.0, X).prev_sample.isnan().all()


GRIDS = [
    {},
    {"timestep_spacing": "trailing"},
    {"timestep_spacing": "leading"},
    {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    {"use_exponential_sigmas": True},
    {"timestep_type": "continuous", "prediction_type": "v_prediction"},
]


@each_table
@pytest.mark.parametrize("more", GRIDS, ids=lambda v: "-".join(v) or "linspace")
def test_exact_grids_begin_where_the_class_does(table, more):
    """Not at the level that a table without the 4096 would have; one that rises is left out."""
    peer, ours = both(EULER, config(table, **more), compat=None)
    for n in (2, 3, 7):
        for scheduler in (peer, ours):
            scheduler.set_timesteps(n)
        if (peer.sigmas.diff() < 0).all():
            found, right = ours.sigmas[:-1], peer.sigmas[:-1]
            few = rounded(100.0 if len(more) == 2 else ours.timesteps.clamp(min=0), found).max()
            assert ((found - right).abs() <= few * right).all()


def test_exact_grids_that_would_rise_keep_falling():
    """A step at every training timestep: the class goes up from 4096, exact runs begin above."""
    ours = fs.FsScheduler(source=EULER, compat=None, **config("linear"))
    ours.set_timesteps(100)
    assert (ours.sigmas.diff() < 0).all() and ours.sigmas[0] > ours.sigmas[1] > 4096
