"""add_noise and get_velocity of an FsScheduler: shapes and dtypes that diffusers broadcasts,
timesteps that no model was trained at, losses under torch.func.
"""

import numpy as np
import pytest
import torch

import fastsample

diffusers = pytest.importorskip("diffusers")
FsScheduler = fastsample.FsScheduler
X = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
N = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
T = torch.tensor([999, 500, 3, 0])
SCALES = [
    ("DDIM", {"clip_sample": False}),
    ("EulerDiscrete", {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
]


def pair(name, **config):
    peer = getattr(diffusers, f"{name}Scheduler")(**config)
    return peer, FsScheduler.from_config(peer)


def levels(name, times):
    """(alpha, sigma) [n,1,1,1] of the training timesteps in float64."""
    times = np.asarray(times, np.float64)
    if name.startswith("Flow"):
        alpha, sigma = 1.0 - times / 1000, times / 1000
    else:
        abar = np.cumprod(1.0 - np.linspace(0.0001, 0.02, 1000))[times.astype(int)]
        alpha, sigma = np.sqrt(abar), np.sqrt(1.0 - abar)
        if name.startswith("Euler"):
            alpha, sigma = np.ones_like(alpha), sigma / alpha
    return (torch.tensor(v).view(-1, 1, 1, 1) for v in (alpha, sigma))


@pytest.mark.parametrize(
    "x, n, t",
    [
        (X, N[:1], T),
        (X[:1], N, T),
        (X[:1], N[:1], T),
        (X[:1], N, T[1:2]),
        (X, N[:, :1], T[1]),
        (X, N.half(), T),
        (X.half(), N, T),
        (X.bfloat16(), N.double(), T),
    ],
)
@pytest.mark.parametrize("name, config", SCALES)
def test_what_broadcasts_is_noised(name, config, x, n, t):
    """One image at several timesteps, one noise for all; in the dtype that both fit in."""
    ours = pair(name, **config)[1]
    alpha, sigma = levels(name, t.view(-1))
    right = alpha * x.double() + sigma * n.double()
    found = ours.add_noise(x, n, t)
    assert found.dtype == torch.result_type(x, n) and found.shape == right.shape
    assert torch.allclose(found.double(), right, rtol=1e-5, atol=1e-5)


def test_velocities_broadcast():
    ours, (alpha, sigma) = pair("DDIM")[1], levels("DDIM", T)
    for x, n in ((X, N[:1]), (X[:1], N), (X[:1], N[:1])):
        right = alpha * n.double() - sigma * x.double()
        assert torch.allclose(ours.get_velocity(x, n, T).double(), right, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("SASolver", {}),
        ("SASolver", {"use_exponential_sigmas": True}),
        ("SASolver", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
        ("KDPM2Discrete", {}),
        ("DPMSolverSDE", {"use_karras_sigmas": True}),
    ],
)
@pytest.mark.parametrize("begin", [None, 0])
def test_a_class_s_own_levels_are_those_it_noises_to(name, config, begin):
    """SA's are its betas', whatever the levels of the run; where a model is called twice a step,
    the second call's is that of the step's end.
    """
    peer, ours = pair(name, **config)
    noised = []
    for scheduler in (peer, ours):
        scheduler.set_timesteps(5)
        times, x = scheduler.timesteps, X
        if begin is not None:
            scheduler.set_begin_index(begin)
        for t in times[:1]:
            x = scheduler.step(x, t, x).prev_sample
        some = [*times[1:5].unsqueeze(1), *([torch.tensor([17])] if name == "SASolver" else [])]
        noised.append(torch.stack([scheduler.add_noise(X, N, t) for t in some]))
    assert torch.allclose(*noised, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_path_s_seed_is_drawn_in_a_single_step_too(steps):
    """Or the next picture would have another one than the class's."""
    ends = []
    for scheduler in pair("DPMSolverSDE"):
        torch.manual_seed(3)
        for n in (steps, 3):
            scheduler.set_timesteps(n)
            x = X * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                x = scheduler.step(0.1 * x, t, x).prev_sample
        ends.append((x, torch.get_rng_state()))
    assert torch.equal(ends[0][1], ends[1][1])
    assert torch.allclose(ends[0][0], ends[1][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("door", ["add_noise", "get_velocity"])
@pytest.mark.parametrize("x, n, t", [(X, N, T[:2]), (X, N[:3], T), (X[0], N, T), (X, N[:, :2], T)])
def test_what_does_not_broadcast_is_refused(door, x, n, t):
    with pytest.raises(ValueError) as refused:
        getattr(pair("DDIM")[1], door)(x, n, t)
    assert str(refused.value) == (
        f"FsScheduler.{door}: noise {list(n.shape)}, samples {list(x.shape)} and {len(t)} "
        "timesteps; shapes that broadcast, and a timestep for each sample or one for all, are "
        "accepted"
    )


@pytest.mark.parametrize("steps", [None, 8])
@pytest.mark.parametrize(
    "name, config, outside, last",
    [
        ("DDIM", {}, 1000, 999),
        ("DDPM", {}, -2, 999),
        ("EulerDiscrete", {}, 1000, 999),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, -1, 1000),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, 1001, 1000),
        ("UniPCMultistep", {"use_flow_sigmas": True, "flow_shift": 5.0}, 1500, 1000),
    ],
)
def test_a_timestep_that_no_model_was_trained_at_is_refused(name, config, outside, last, steps):
    flow = {"prediction_type": "flow_prediction"} if "use_flow_sigmas" in config else {}
    ours = pair(name, **config, **flow)[1]
    if steps is not None and not flow:  # which takes its last level there, as the class
        ours.set_timesteps(steps)
    with pytest.raises(ValueError) as refused:
        ours.add_noise(X, N, torch.tensor([5, 5, outside, 5]))
    assert str(refused.value) == f"FsScheduler: timestep {outside}; 0 to {last} is accepted"
    assert torch.isfinite(ours.add_noise(X, N, torch.tensor([0, 5, 500, last]))).all()


@pytest.mark.parametrize("name, config", SCALES)
def test_a_loss_under_torch_func_draws_its_timesteps_there(name, config):
    """d/dx, and by forward mode; diffusers' DDIM does it."""
    peer, ours = pair(name, **config)
    x, n = X.double(), N.double()

    def drawn():
        return torch.randint(0, 1000, (4,), generator=torch.Generator().manual_seed(2))

    def loss(scheduler, x):
        return (torch.tanh(scheduler.add_noise(x, n, drawn())) ** 2).sum()

    alpha, sigma = levels(name, drawn())
    state = torch.tanh(alpha * x + sigma * n)
    right = 2 * alpha * state * (1 - state**2)
    for steps in (None, 8):
        if steps is not None:
            ours.set_timesteps(steps)
        found = torch.func.grad(lambda x: loss(ours, x))(x)
        assert torch.allclose(found, right, atol=1e-6)
        along = torch.func.jvp(lambda x: loss(ours, x), (x,), (n,))[1]
        assert torch.allclose(along, (right * n).sum(), rtol=1e-6)
    if name == "DDIM":
        assert torch.allclose(torch.func.grad(lambda x: loss(peer, x))(x), right, atol=1e-4)
    each = torch.func.vmap(lambda x: ours.add_noise(x, n, T))(torch.stack([x, 2 * x]))
    assert torch.equal(each[1], ours.add_noise(2 * x, n, T))


@pytest.mark.parametrize("name, config", SCALES)
@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_a_loop_under_torch_func_is_refused_in_a_sentence(name, config, where, transform):
    ours, x = pair(name, **config)[1], X.double()

    def end(x):
        if where == "inside":
            ours.set_timesteps(4)
        for t in ours.timesteps:
            x = ours.step(torch.tanh(x), t, x, return_dict=False)[0]
        return x.sum()

    ours.set_timesteps(4)
    func = torch.func
    with pytest.raises(RuntimeError) as refused:
        func.jvp(end, (x,), (x,)) if transform == "jvp" else getattr(func, transform)(end)(x)
    assert str(refused.value) == (
        f"FsScheduler.step: called under torch.func ({transform}), which cannot see the steps; "
        "Sampler(..., differentiable=True) is accepted there"
    )


def test_timesteps_under_vmap_are_refused_in_a_sentence():
    ours = pair("DDIM")[1]
    for door in ("add_noise", "get_velocity"):
        with pytest.raises(RuntimeError, match=f"FsScheduler.{door}: timesteps under torch.func"):
            torch.func.vmap(lambda x, t, door=door: getattr(ours, door)(x[None], x[None], t))(X, T)
