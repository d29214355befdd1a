"""Train the judge of the embedded model: a classifier on Fashion-MNIST, and the statistics its
Fréchet distance is measured against.

    python tools/train_classifier.py                # about 4 minutes on 2 idle CPU cores

Cross-entropy with label smoothing 0.05, shifts by up to 1 pixel and mirror images, AdamW, one
cosine. The file holds the weights, and mean and covariance of the 64 features over the 60,000
training images as they are.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from train_fashion import DATA, WEIGHTS, learning_rate, load_split

from fastsample.files import place, write_whole
from fastsample.models.classifier import Classifier, statistics


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images [B,1,28,28], each moved by -1..1 pixels both ways (the frame is background) and
    mirrored with probability 1/2.
    """
    B, padded = len(images), F.pad(images, (1, 1, 1, 1), value=-1.0)
    row, column = torch.randint(0, 3, (2, B, 1), generator=generator) + torch.arange(28)[None, None]
    column = torch.where(torch.rand(B, 1, generator=generator) < 0.5, column, column.flip(1))
    return padded[torch.arange(B)[:, None, None], 0, row[:, :, None], column[:, None, :]][:, None]


@torch.inference_mode()
def in_chunks(function, images: torch.Tensor) -> torch.Tensor:
    form = torch.channels_last
    chunks = [chunk.contiguous(memory_format=form) for chunk in images.split(500)]
    return torch.cat([function(chunk) for chunk in chunks])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--out", type=Path, default=WEIGHTS / "fashion_classifier.safetensors")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    about = "0: as many as torch takes by itself"
    parser.add_argument("--threads", type=int, default=0, help=about)
    args = parser.parse_args()
    place(args.out)  # refuses now what could not be written in the end
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    images, labels = load_split(args.data, "train")
    test_images, test_labels = load_split(args.data, "t10k")
    net = Classifier().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    generator, start, batch = torch.Generator().manual_seed(args.seed), time.monotonic(), 128
    per_epoch = len(images) // batch
    steps = args.epochs * per_epoch
    for step in range(steps):
        if step % per_epoch == 0:
            order = torch.randperm(len(images), generator=generator)
            minutes = (time.monotonic() - start) / 60
            print(f"epoch {step // per_epoch}  {minutes:.1f} min", flush=True)
        chosen = order[step % per_epoch * batch :][:batch]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(3e-3, step, step / steps)
        x = augment(images[chosen], generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x).float(), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    net.eval()
    accuracy = (in_chunks(net, test_images).argmax(1) == test_labels).double().mean().item()
    mean, cov = statistics(in_chunks(net.features, images))
    tensors = {name: value.detach().contiguous() for name, value in net.state_dict().items()}
    tensors |= {"reference.mean": torch.from_numpy(mean), "reference.cov": torch.from_numpy(cov)}
    note = {
        "format": "fastsample-fashion-classifier-1",
        "data": "Fashion-MNIST, MIT, Zalando SE",
        "trained_by": "tools/train_classifier.py",
        "test_accuracy": f"{accuracy:.4f}",
        "reference": "train split, 60,000 images",
        "seed": str(args.seed),
        "epochs": str(args.epochs),
        "minutes": f"{(time.monotonic() - start) / 60:.1f}",
        "torch": torch.__version__,
        "machine": f"{platform.machine()} cpu, {torch.get_num_threads()} threads",
    }
    write_whole(args.out, save(tensors, note))
    print(f"wrote {args.out}: test accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
