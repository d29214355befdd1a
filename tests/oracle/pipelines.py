"""What a pipeline does with a scheduler, and a network to do it with."""

import torch


def network(x, t):
    """A smooth nonlinear function of everything, in x's dtype; timesteps are float32 numbers,
    whatever they come as.
    """
    y = x.double().flatten(1)
    weight = torch.sin(torch.arange(y.shape[1] ** 2, dtype=torch.float64)).view(y.shape[1], -1)
    swing = 1 + 0.1 * torch.sin(0.017 * torch.as_tensor(t).float().double())
    return (torch.tanh(y @ weight / 4) * swing + 0.2 * y).view(x.shape).to(x.dtype)


def loop(scheduler, x, steps=8, model=network, **given):
    """What a pipeline does with a scheduler."""
    scheduler.set_timesteps(steps)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in scheduler.timesteps:
        x = scheduler.step(model(scaled(x, t), t), t, x, **given, return_dict=False)[0]
    return x


def start(*shape, dtype=torch.float32, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)
