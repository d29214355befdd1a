"""add_noise and get_velocity of an FsScheduler: shapes and dtypes that diffusers broadcasts, and
timesteps that no model was trained at.
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
