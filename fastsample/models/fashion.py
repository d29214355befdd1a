"""The embedded model: a class-conditional denoiser of 28x28 garments, trained on Fashion-MNIST, for
any schedule and prediction.

With x = alpha·x0 + sigma·eps, n² = sigma² + alpha²·sd² and F = net(x/n, ¼ ln(sigma/alpha), label)
(Karras et al. 2022, eq. 7, for x/alpha):

    x0  = alpha·sd²/n²·x + sigma·sd/n·F          the posterior mean
    eps = sigma/n²·x - alpha·sd/n·F              so that x = alpha·x0 + sigma·eps

Nothing is divided by alpha or sigma: both halves, and every prediction made of them, are finite at
alpha = 0 and at sigma = 0. The network was trained on sigma/alpha from about 0.002 to 80; outside,
c_noise stays at the end of that range.

Images are float [B,1,28,28] in [-1,1]; labels 0 T-shirt, 1 trouser, 2 pullover, 3 dress, 4 coat,
5 sandal, 6 shirt, 7 sneaker, 8 bag, 9 ankle boot. Weights: weights/fashion.safetensors, made by
tools/train_fashion.py.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsample.kernels.narrow import wide
from fastsample.model import PREDICTIONS, Model
from fastsample.models.unet import NO_LABEL, UNet
from fastsample.models.words import levels, spoken
from fastsample.schedules import EDM

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SIGMA_RANGE = (0.002, 80.0)  # sigma/alpha seen in training
WEIGHTS = Path(__file__).parent / "weights"


class FashionUNet(UNet):
    """The U-Net and its preconditioning. `forward(x_in, c_noise, label)` is the raw network F.

    sigma_data   standard deviation of the training images about their mean, kept with the weights
    """

    def __init__(self, sigma_data: float, **architecture: Any) -> None:
        super().__init__(**architecture)
        self.sigma_data = float(sigma_data)

    def denoise(
        self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        """E[x0|x] [B,1,28,28], of x's dtype.

        x [B,1,28,28]; alpha and sigma [B] >= 0, not both 0; label int64 [B] in 0..10.
        """
        return self.posterior(x, alpha, sigma, label)[0]

    def posterior(
        self, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """E[x0|x] and E[eps|x]; arguments as in denoise.

        Coefficients are float64, rounded once to x's dtype.
        """
        alpha, sigma, sd = wide(alpha), wide(sigma), self.sigma_data
        n = torch.sqrt(sigma**2 + (alpha * sd) ** 2)
        c_in, x_x0, f_x0, x_eps, f_eps = (
            c.to(x)[:, None, None, None]
            for c in (1 / n, alpha * (sd / n) ** 2, sigma * sd / n, sigma / n**2, -alpha * sd / n)
        )
        f = self(*self._inputs(x * c_in, torch.log(sigma / alpha) / 4), label).to(x.dtype)
        return x_x0 * x + f_x0 * f, x_eps * x + f_eps * f

    def _inputs(
        self, x_in: torch.Tensor, c_noise: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both in the network's dtype; c_noise, ±inf at a schedule's end, in the trained range."""
        dtype = self.stem.weight.dtype
        low, high = (math.log(sigma) / 4 for sigma in SIGMA_RANGE)
        return x_in.to(dtype), c_noise.clamp(low, high).to(x_in.device, dtype)


class Fashion(nn.Module):
    """fn(x, t, label=None) of the embedded model: any prediction on any schedule.

    A module, so that a Model can name its weights.
    """

    def __init__(self, net: FashionUNet, schedule: Any, prediction: str) -> None:
        super().__init__()
        self.net, self.prediction = net, prediction
        self.levels = levels(schedule, net.stem.weight.device)

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The prediction [B,1,28,28].

        x [B,1,28,28]; t [B] as a Model tells it; label int64 [B] in 0..10, None or 10: no class.
        """
        t, label = checked("models.fashion", x, t, label)
        if self.prediction == "edm":  # the caller scales x and tells c_noise
            return self.net(*self.net._inputs(x, t), label).to(x.dtype)
        if self.prediction == "trigflow":  # t = atan2(sigma/sd, alpha)
            t = wide(t)
            c_noise = torch.log(t.tan().clamp(min=0.0) * self.net.sigma_data) / 4
            # float32 rounds pi/2 to a number past it, where the tangent is negative
            c_noise = torch.where(t < math.pi / 2, c_noise, math.inf)
            return -self.net(*self.net._inputs(x, c_noise), label).to(x.dtype)
        alpha, sigma = self.levels(t)
        x0, eps = self.net.posterior(x, alpha, sigma, label)
        column = (a.to(x)[:, None, None, None] for a in (alpha, sigma))
        return spoken(self.prediction, x0, eps, *column, self.net.sigma_data)


def checked(where: str, x: torch.Tensor, t: Any, label: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """t [B] and label int64 [B] of x [B,1,28,28], on its device; one number of either is for all,
    label None is NO_LABEL.
    """
    if x.ndim != 4 or x.shape[1:] != (1, 28, 28):
        raise ValueError(f"{where}: x is {list(x.shape)}; [B, 1, 28, 28] is accepted")
    if label is None:
        label = torch.full((), NO_LABEL, device=x.device)
    label = torch.as_tensor(label, device=x.device)
    if label.dtype.is_floating_point or label.shape not in ((), x.shape[:1]):
        given = f"{label.dtype} {list(label.shape)}"
        raise ValueError(
            f"{where}: label is {given}; integers 0..10, [{x.shape[0]}] or one number, are accepted"
        )
    t = torch.as_tensor(t, device=x.device).reshape(-1).expand(x.shape[0])
    return t, label.long().expand(x.shape[0])


def load_net(weights: str | Path | None = None, device: Any = "cpu") -> FashionUNet:
    """The network with its weights, in eval mode, parameters without gradients; one module per
    (file, device), shared by its users.
    """
    return _net(*located(weights, "fashion.safetensors"), str(device))


def located(weights: str | Path | None, shipped: str) -> tuple[Path, int]:
    """The file's path, None: the shipped one, and when it changed (ns; 0: there is none)."""
    path = Path(weights or WEIGHTS / shipped).resolve()
    return path, path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=4)
def _net(path: Path, changed: int, device: str) -> FashionUNet:
    tensors, note = read_weights(path, "fastsample-fashion-1")
    net = FashionUNet(float(note["sigma_data"]))
    net.load_state_dict(tensors)
    # channels_last: 30 % faster on a CPU (batch 64, 2 threads, AVX-512) and what cuDNN prefers.
    return net.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)


def read_weights(path: Path, form: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file whose metadata says format = `form`."""
    try:
        from safetensors import safe_open
    except ImportError as error:
        why = "models: reading weights needs safetensors; pip install 'fastsample[demo]'"
        raise ImportError(why) from error
    if not path.exists():
        raise FileNotFoundError(
            f"models: no weights at {path}; a file of tools/train_fashion.py, train_flow.py or "
            "train_classifier.py is accepted"
        )
    with safe_open(path, framework="pt") as file:
        note = file.metadata() or {}
        if note.get("format") != form:
            raise ValueError(
                f"models: {path.name} says format = {json.dumps(note.get('format'))}; {form!r} is "
                "accepted"
            )
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, note


def fashion(
    schedule: Any = None,
    prediction: str = "x0",
    weights: str | Path | None = None,
    device: str = "cpu",
) -> Model:
    """The embedded model as a fastsample.Model with fn(x, t, label=None), see Fashion.forward.

    schedule     any of fastsample.schedules; None: EDM(0.002, 80)
    prediction   x0, eps, v, flow, edm or trigflow
    weights      a safetensors file of tools/train_fashion.py; None: the shipped ones
    """
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"models.fashion: prediction = {prediction!r}; one of {', '.join(PREDICTIONS)} is "
            "accepted"
        )
    net = load_net(weights, device)
    schedule = EDM(*SIGMA_RANGE, sigma_data=net.sigma_data) if schedule is None else schedule
    return Model(
        Fashion(net, schedule, prediction).eval(),
        schedule=schedule,
        prediction=prediction,
        sigma_data=net.sigma_data,
    )
