"""FsScheduler in place of the classes that take an image up to noise: their runs beside the
classes, what is told where, and the way there and back.
"""

import copy
import pickle

import numpy as np
import pytest
import torch

import fastsample
from tests.oracle.pipelines import loop, network, start

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
FsScheduler = fastsample.FsScheduler
DDIM, DPM = "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = SD | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def pair(name, compat="diffusers", **config):
    peer = getattr(diffusers, name)(**config)
    return peer, FsScheduler.from_config(peer, compat=compat)


def calm(x, t):
    return 0.3 * network(x, t)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        (DDIM, {}),  # clips
        (DDIM, SD15),
        (DDIM, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
        (DPM, SD | {"timestep_spacing": "leading", "steps_offset": 1}),
        (DPM, {"use_karras_sigmas": True, "thresholding": True}),
        (DPM, {"lambda_min_clipped": -2.0, "solver_type": "heun", "algorithm_type": "dpmsolver"}),
    ],
)
def test_runs_are_the_class_s_own(name, config, kind, tmp_path):
    peer, ours = pair(name, **config)
    x = start(2, 3, 4, 4).to(kind)
    ends = [loop(s, x, 7, calm) for s in (peer, ours)]
    eps = 2.0**-24 if kind == torch.float32 else 2.0**-8
    assert (ends[0] - ends[1]).abs().max() <= 128 * eps * ends[0].abs().max()
    assert torch.equal(ours.timesteps, peer.timesteps) and ends[1].dtype == kind
    ours.save_pretrained(tmp_path)
    ours.set_timesteps(7)
    y = x
    for k, t in enumerate(ours.timesteps):
        y = ours.step(calm(y, t), t, y, return_dict=False)[0]
        ours = pickle.loads(pickle.dumps(ours)) if k == 2 else copy.deepcopy(ours)
    loaded = FsScheduler.from_pretrained(tmp_path)
    assert torch.equal(y, ends[1]) and torch.equal(loop(loaded, x, 7, calm), ends[1])


def test_ddim_goes_by_the_timestep_alone():
    """In any order, from any timestep; x0 is handed back too."""
    peer, ours = pair(DDIM, **SD15)
    x = start(2, 3, 4, 4)
    for scheduler in (peer, ours):
        scheduler.set_timesteps(7)
    for t in (285, 143, 143, 999, 7, 0):
        theirs, own = (s.step(0.3 * x, t, x) for s in (peer, ours))
        assert torch.allclose(theirs.prev_sample, own.prev_sample, rtol=1e-5, atol=1e-6)
        assert torch.allclose(
            theirs.pred_original_sample, own.pred_original_sample, rtol=1e-5, atol=1e-6
        )


GRIDS = [
    # what the class tells; what an exact run tells, and where it ends
    (DDIM, {}, [0, 200, 400, 600, 800], [0, 200, 400, 600], 800),
    (DDIM, {"steps_offset": 1}, [1, 201, 401, 601, 801], [0, 1, 201, 401, 601], 801),
    (
        DDIM,
        {"timestep_spacing": "trailing"},
        [199, 399, 599, 799, 999],
        [0, 199, 399, 599, 799],
        999,
    ),
    (DPM, {}, [0, 200, 400, 599, 799], [0, 200, 400, 599, 799], 999),
    (
        DPM,
        {"timestep_spacing": "trailing"},
        [199, 399, 599, 799, 999],
        [0, 199, 399, 599, 799],
        999,
    ),
    (
        DPM,
        {"timestep_spacing": "leading", "steps_offset": 1},
        [1, 167, 333, 499, 665],
        [1, 167, 333, 499, 665],
        999,
    ),
]


@pytest.mark.parametrize(("name", "config", "told", "exact", "end"), GRIDS)
def test_an_exact_run_tells_every_level_its_own_timestep(name, config, told, exact, end):
    """DDIMInverse tells the timestep that a step leads to, and begins at no noise."""
    config = {"clip_sample": False, **config} if name == DDIM else config
    peer, ours = pair(name, **config)
    right = FsScheduler.from_config(peer, compat=None)
    for scheduler in (peer, ours, right):
        scheduler.set_timesteps(5)
    assert peer.timesteps.tolist() == ours.timesteps.tolist() == told
    assert right.timesteps.tolist() == exact and right.init_noise_sigma == 1.0
    abar = np.cumprod(1.0 - np.linspace(0.0001, 0.02, 1000))
    level = lambda t: np.sqrt(1.0 - abar[np.asarray(t)])
    assert np.allclose(right.plan.sigma[1:], level([*exact, end]))
    if name == DDIM:
        # the class's own table is one of float32
        assert np.allclose(ours.plan.sigma[2:], level(told), rtol=3e-4)
        assert ours.plan.sigma[1] == 0.0 < level(told[0])


@pytest.mark.parametrize(
    ("up", "down", "config"),
    [
        (DDIM, "DDIMScheduler", {"clip_sample": False}),
        (DPM, "DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ],
)
def test_there_and_back_returns_to_the_image(up, down, config):
    """Exact, on one grid: four times the steps leave a third of the distance or less (first order:
    a quarter); DDIM's compat runs are farther off.
    """
    image, far = start(1, 2, 4, 4, dtype=torch.float64), {}

    def smooth(x, t):
        return torch.tanh(0.5 * x)

    for compat in (None, "diffusers"):
        forth = FsScheduler.from_config(getattr(diffusers, down)(**SD, **config), compat=compat)
        back = FsScheduler.from_config(forth, source=up, compat=compat)
        for n in (10, 40):
            z = loop(back, image, n, smooth)
            far[compat, n] = float((loop(forth, z, n, smooth) - image).abs().max())
    assert far[None, 40] <= far[None, 10] / 3.0
    if up == DDIM:
        assert far["diffusers", 40] > far[None, 40]


def test_exact_rows_are_the_solver_s():
    for name, solver in ((DDIM, "ddim"), (DPM, "dpmpp_2m")):
        config = {"clip_sample": False} if name == DDIM else {"lower_order_final": False}
        _, ours = pair(name, None, **config)
        ours.set_timesteps(8)
        table = fastsample.schedules.DiscreteVP.linear()
        grid = np.append(ours.timesteps, 875 if name == DDIM else 999)
        plan = fastsample.solvers.inverted(solver, table, grid, prediction="eps")
        x, ends = start(1, 4, dtype=torch.float64), []
        planned = FsScheduler.from_plan(plan, like=ours)
        assert planned.init_noise_sigma == 1.0
        for scheduler in (ours, planned):
            ends.append(loop(scheduler, x, 8 if scheduler is ours else plan.nfe, calm))
        assert torch.allclose(*ends, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compat", ["diffusers", None])
def test_bounds_hold_on_the_way_up(compat):
    """A clip of the class's own, and one of another that a multistep class has no word for."""
    free = pair(DDIM, compat, clip_sample=False)[1]
    bound = pair(DDIM, compat, clip_sample_range=0.4)[1]
    moved = FsScheduler.from_config(diffusers.DDIMScheduler(), source=DPM, compat=compat)
    assert moved.config.moved == {"clip_sample": True, "clip_sample_range": 1.0}
    x = 2.0 * start(1, 2, 4, 4)
    ends = [loop(s, x, 6, calm) for s in (free, bound)]
    assert not torch.allclose(*ends, rtol=1e-2)
    bound.set_timesteps(6)
    assert bound.step(x, bound.timesteps[0], x).pred_original_sample.abs().max() <= 0.4
    unbound = FsScheduler.from_config(moved, clip_sample=False)
    assert not torch.allclose(*(loop(s, x, 6, calm) for s in (moved, unbound)), rtol=1e-2)


def test_configs_go_both_ways():
    """As diffusers' own classes hand them on."""
    for one, other in ((DDIM, "DDIMScheduler"), (DPM, "DPMSolverMultistepScheduler")):
        config = SD15 if one == DDIM else SD | {"use_karras_sigmas": True}
        forth = getattr(diffusers, other)(**config)
        ours = FsScheduler.from_config(forth, source=one)
        theirs = getattr(diffusers, one).from_config(forth.config)
        x = start(1, 2, 4, 4)
        assert torch.allclose(loop(ours, x, 6, calm), loop(theirs, x, 6, calm), atol=1e-4)
        back = FsScheduler.from_config(theirs, source=other)
        again = FsScheduler.from_config(ours, source=other)
        ends = [loop(s, x, 6, calm) for s in (forth, back, again)]
        assert torch.allclose(*ends[:2], atol=1e-4) and torch.equal(*ends[1:])


@pytest.mark.parametrize(
    ("name", "config", "sentence"),
    [
        (DDIM, {"timestep_spacing": "linspace"}, "'linspace' of DDIMInverse.*; 'leading' or 'tra"),
        (DDIM, {"steps_offset": 300}, "timestep 1050 of DDIMInverse.* is beyond 999; fewer steps"),
        (DDIM, {"prediction_type": "sample"}, "from no noise, .*; set_alpha_to_one=False is acc"),
        (DPM, {"algorithm_type": "sde-dpmsolver++"}, "'sde-dpmsolver[+]{2}' of DPMSolver.*; 'dpm"),
        (DPM, {"use_flow_sigmas": True}, "use_flow_sigmas = True of .*Inverse.*; False is acc"),
    ],
)
def test_what_goes_no_way_up_is_refused(name, config, sentence):
    with pytest.raises(ValueError, match=sentence):
        pair(name, **config)[1].set_timesteps(4)


def test_one_step_that_leads_nowhere_is_refused():
    _, ours = pair(DDIM, None)
    with pytest.raises(ValueError, match="1 step of DDIMInverse.* from timestep 0 to 0; 2 or more"):
        ours.set_timesteps(1)
    ours.set_timesteps(2)
    assert ours.timesteps.tolist() == [0]
