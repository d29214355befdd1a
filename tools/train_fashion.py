"""Train the embedded model: the class-conditional U-Net of fastsample/models on Fashion-MNIST.

    python tools/train_fashion.py --minutes 60    # CPU or GPU, whichever is there
    python tools/train_fashion.py --resume        # go on from the last checkpoint

Loss: mean |F(c_in·x, c_noise, label) - F*|², x = x0 + sigma·eps, ln sigma ~ N(P_mean, P_std²)
(Karras et al. 2022, eq. 8, unit weight). The run ends after --images or --minutes, whichever comes
first; the learning rate follows the larger of the two fractions, so it always anneals to zero. The
shipped weights are the running average (EMA) with a power-function profile (Karras et al. 2024,
eq. 121). Data: the four idx files of Fashion-MNIST (Xiao et al. 2017; MIT licence), e.g. the Debian
package dataset-fashion-mnist.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from fastsample.files import place, write_whole
from fastsample.models.fashion import FashionUNet
from fastsample.models.unet import NO_LABEL

P_MEAN, P_STD = -0.8, 1.4  # ln sigma; the median 0.45 is where garments of this size take shape
LABEL_DROPOUT = 0.1
EMA_POWER = 16.97  # sigma_rel = 0.05: the average spans about the last tenth of the run
DATA = "/usr/share/datasets/fashion-mnist"
WEIGHTS = Path(__file__).parent.parent / "fastsample" / "models" / "weights"


def load_split(folder: str, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images float32 [N,1,28,28] in [-1,1] and labels int64 [N] of split "train" (60,000) or
    "t10k" (10,000).
    """
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    paths = [Path(folder) / f"{split}-{kind}.gz" for kind in kinds]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(
                f"load_split: no file {path}; --data names a folder with Fashion-MNIST's four .gz "
                "files"
            )
    pixels, labels = (gzip.decompress(path.read_bytes()) for path in paths)
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28)
    images = torch.from_numpy(images.astype(np.float32) / 127.5 - 1.0)
    labels = np.frombuffer(labels, np.uint8, offset=8)
    return images, torch.from_numpy(labels.astype(np.int64))


def draw_normal(count: int, generator: torch.Generator) -> torch.Tensor:
    """Standard normal [count], one per stratum: less noise in the loss than independent draws."""
    stratum = torch.randperm(count, generator=generator)
    u = (stratum + torch.rand(count, generator=generator)) / count
    return torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))


def draw_sigma(count: int, generator: torch.Generator) -> torch.Tensor:
    """sigma [count] of the log-normal law."""
    return torch.exp(P_MEAN + P_STD * draw_normal(count, generator))


def loss_of(
    net: FashionUNet, x0: torch.Tensor, label: torch.Tensor, sigma: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """mean |F - F*|² with F* the F that would make the denoiser return x0 (Karras et al. 2022,
    eq. 8).
    """
    s = sigma[:, None, None, None]
    x, s2, sd = x0 + s * eps, s * s + net.sigma_data**2, net.sigma_data
    target = (x0 - sd**2 / s2 * x) * s2.sqrt() / (s * sd)
    return ((net(x / s2.sqrt(), sigma.log() / 4, label) - target) ** 2).mean()


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Linear warm-up over 500 steps, then half a cosine to zero at progress = 1."""
    return peak * min(1.0, (step + 1) / 500) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Training:
    """One run: the network, its average, its optimizers, and how far it has come.

    All of it goes into a checkpoint.
    """

    form, tool = "fastsample-fashion-1", "tools/train_fashion.py"
    draw, loss_of = staticmethod(draw_sigma), staticmethod(loss_of)

    def __init__(
        self, args: argparse.Namespace, images: torch.Tensor, labels: torch.Tensor
    ) -> None:
        self.args, self.images, self.labels = args, images, labels
        self.device = torch.device(args.device)
        torch.manual_seed(args.seed)
        self.net = self.network().to(self.device, memory_format=torch.channels_last)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.optimizers = self.optimizers_of(list(self.net.parameters()))
        self.generator = torch.Generator().manual_seed(args.seed)
        self.step, self.seconds, self.epoch = 0, 0.0, None

    def network(self) -> torch.nn.Module:
        return FashionUNet(sigma_data=self.images.std().item())

    def optimizers_of(self, parameters: list[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
        words = {"lr": self.args.lr, "betas": (0.9, 0.99), "weight_decay": 0.0, "fused": True}
        return [torch.optim.AdamW(parameters, **words)]

    def note(self) -> dict[str, str]:
        """What this kind of network adds to its weights' metadata."""
        sigma_data = f"{self.net.sigma_data:.6f}"
        return {"sigma_data": sigma_data, "P_mean": str(P_MEAN), "P_std": str(P_STD)}

    def save(self, path: Path) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("net", "ema")}
        state |= {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        state |= {"generator": self.generator.get_state()}
        state |= {"step": self.step, "seconds": self.seconds}
        file = io.BytesIO()
        torch.save(state, file)
        write_whole(path, file.getvalue())

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in ("net", "ema"):
            getattr(self, name).load_state_dict(state[name])
        for optimizer, own in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self.generator.set_state(state["generator"])
        self.step, self.seconds = state["step"], state["seconds"]

    @property
    def progress(self) -> float:
        images, most = self.step * self.args.batch, 60 * self.args.minutes
        return max(images / self.args.images, self.seconds / most)

    def batch(self) -> tuple[torch.Tensor, ...]:
        """x0, label, noise level, eps of this step.

        The order of an epoch depends on seed and epoch alone, so a resumed run goes on with it.
        """
        count, per_epoch = self.args.batch, len(self.images) // self.args.batch
        if self.epoch != self.step // per_epoch:
            self.epoch = self.step // per_epoch
            generator = torch.Generator().manual_seed(self.args.seed + self.epoch)
            self.order = torch.randperm(len(self.images), generator=generator)
        chosen = self.order[(self.step % per_epoch) * count :][:count]
        x0, label = self.images[chosen], self.labels[chosen].clone()
        label[torch.rand(count, generator=self.generator) < LABEL_DROPOUT] = NO_LABEL
        level = self.draw(count, self.generator)
        return x0, label, level, torch.randn(x0.shape, generator=self.generator)

    def advance(self) -> float:
        """One optimizer step and one step of the average; the loss."""
        start = time.monotonic()
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(self.args.lr, self.step, self.progress)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss = self.loss_of(self.net, *(value.to(self.device) for value in self.batch()))
        self.net.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        share = 1 - (1 - 1 / self.step) ** (EMA_POWER + 1)
        with torch.no_grad():
            averaged, own = list(self.ema.parameters()), list(self.net.parameters())
            torch._foreach_lerp_(averaged, own, share)
        value = loss.item()
        self.seconds += time.monotonic() - start
        return value

    @torch.no_grad()
    def validate(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """The average's loss on the first 2,000 test images with fixed noise: comparable between
        runs.
        """
        generator = torch.Generator().manual_seed(1)
        total, chunks = (
            0.0,
            list(zip(images[:2000].split(250), labels[:2000].split(250), strict=True)),
        )
        for x0, label in chunks:
            level = self.draw(len(x0), generator)
            values = x0, label, level, torch.randn(x0.shape, generator=generator)
            total += self.loss_of(self.ema, *(value.to(self.device) for value in values)).item()
        return total / len(chunks)

    def export(self, path: Path, loss: float) -> None:
        args = self.args
        note = {
            "format": self.form,
            "data": "Fashion-MNIST train split, MIT, Zalando SE",
            "trained_by": self.tool,
            "seed": str(args.seed),
            "images": str(self.step * args.batch),
            "minutes": f"{self.seconds / 60:.1f}",
            "test_loss": f"{loss:.5f}",
            "torch": torch.__version__,
            "batch": str(args.batch),
            "machine": f"{platform.machine()} {args.device}, {torch.get_num_threads()} threads",
            "lr": str(args.lr),
        } | self.note()
        state = self.ema.state_dict()
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        write_whole(path, save(tensors, note))


def train(args: argparse.Namespace, kind: type[Training] = Training) -> None:
    for path in (args.out, args.checkpoint):
        place(path)  # refuses now what could not be written in the end
    run, test = kind(args, *load_split(args.data, "train")), load_split(args.data, "t10k")
    if args.resume:
        run.resume(args.checkpoint)
    say = lambda text: print(text, flush=True)
    size = sum(p.numel() for p in run.net.parameters())
    say(f"{size:,} parameters, {run.device}")
    running, saved = None, run.seconds
    while run.progress < 1.0:
        loss = run.advance()
        running = loss if running is None else running + (loss - running) * 0.01
        if run.step % 100 == 0:
            images, minutes = run.step * args.batch, run.seconds / 60
            far = f"{minutes:.1f} min  {100 * run.progress:.1f} %"
            say(f"step {run.step}  images {images:,}  loss {running:.4f}  {far}")
        if run.seconds - saved > 60 * args.save_minutes:
            saved = run.seconds
            run.save(args.checkpoint)
            loss = run.validate(*test)
            say(f"step {run.step}  test loss of the average {loss:.5f}")
    loss = run.validate(*test)
    run.export(args.out, loss)
    spent = f"{run.step * args.batch:,} images, {run.seconds / 60:.1f} min"
    say(f"wrote {args.out}: test loss {loss:.5f}, {spent}")


def arguments(
    argv: list[str] | None, about: str, name: str, minutes: float, batch: int, lr: float
) -> argparse.Namespace:
    """The words of the command line; torch's threads are set by them."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--out", type=Path, default=WEIGHTS / f"{name}.safetensors")
    parser.add_argument("--checkpoint", type=Path, default=Path(f"{name}.checkpoint.pt"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=3_000_000)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    about = "0: as many as torch takes by itself"
    parser.add_argument("--threads", type=int, default=0, help=about)
    about = "train in float32 throughout"
    parser.add_argument("--no-bf16", dest="bf16", action="store_false", help=about)
    args = parser.parse_args(argv)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def main(argv: list[str] | None = None) -> None:
    train(arguments(argv, __doc__, "fashion", minutes=60.0, batch=128, lr=2e-3))


if __name__ == "__main__":
    main()
