"""The judge of the embedded model: a small classifier of 28x28 garments, class accuracy, and a
Fréchet distance on its features.

    class_accuracy    = share of images the classifier puts in the class they were made for
    frechet_distance  = |m - m'|² + tr(C + C' - 2 (C^½ C' C^½)^½)
                        over its 64 features; m', C' of the 60,000 training images

The second is the Fréchet distance on fashion-classifier features. It is not FID (Heusel et al.
2017), which is taken on Inception features: the two have different scales and must not be compared.
Like FID it is biased upward for few images; compare equal counts. Weights and reference statistics:
weights/fashion_classifier.safetensors, made by tools/train_classifier.py.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from fastsample.models.fashion import WEIGHTS, read_weights

FEATURES = 64
_CHUNK = 512  # images per forward pass: bounds the memory


class Classifier(nn.Module):
    """Five 3x3 convolutions, two poolings, the mean over places, one linear map.

    images [B,1,28,28] in [-1,1] -> logits [B,10].
    """

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 32, FEATURES, FEATURES, FEATURES)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths[1:])
        self.head = nn.Linear(FEATURES, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[B,1,28,28] -> [B,64], >= 0"""
        h = images
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = F.relu(norm(conv(h)))
            if i in (1, 3):
                h = F.max_pool2d(h, 2)
        return h.mean(dim=(2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


@lru_cache(maxsize=1)
def _load() -> tuple[Classifier, np.ndarray, np.ndarray]:
    path = WEIGHTS / "fashion_classifier.safetensors"
    tensors, _ = read_weights(path, "fastsample-fashion-classifier-1")
    mean, cov = (tensors.pop(f"reference.{name}").double().numpy() for name in ("mean", "cov"))
    net = Classifier()
    net.load_state_dict(tensors)
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False), mean, cov


def load_classifier() -> Classifier:
    """The shipped classifier, one for all: on the CPU, in eval mode, without gradients."""
    return _load()[0]


def class_accuracy(images: torch.Tensor, labels: torch.Tensor) -> tuple[float, int]:
    """Share of images whose likeliest class is their label, and their count.

    images [B,1,28,28] in [-1,1]; labels integers [B].
    """
    net, labels = load_classifier(), torch.as_tensor(labels).cpu()
    if labels.shape != images.shape[:1] or labels.dtype.is_floating_point:
        given = f"labels {labels.dtype} {list(labels.shape)} for {len(images)} images"
        raise ValueError(f"class_accuracy: {given}; integers [{len(images)}] are accepted")
    hits = (_batched(net, images, "class_accuracy").argmax(dim=1) == labels).sum().item()
    return hits / len(images), len(images)


def frechet_distance(images: torch.Tensor) -> float:
    """Fréchet distance on fashion-classifier features to the training split, >= 0.

    images [B,1,28,28] in [-1,1], B >= 2.
    """
    net, mean, cov = _load()
    if len(images) < 2:
        raise ValueError(
            f"frechet_distance: {len(images)} images; 2 or more are accepted (2,048 give a steady "
            "number)"
        )
    return frechet(*statistics(_batched(net.features, images, "frechet_distance")), mean, cov)


def statistics(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and covariance [D,D] (divided by B - 1), float64, of features [B,D], B >= 2."""
    values = features.double().numpy()
    D = values.shape[1]
    return values.mean(axis=0), np.cov(values, rowvar=False).reshape(D, D)


def frechet(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a^½ C_b C_a^½)^½), float64 (Dowson & Landau 1982).

    means [D], symmetric covariances [D,D].
    """
    root = _root(cov_a)
    cross = np.linalg.eigvalsh(root @ cov_b @ root)
    distance = ((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b)
    distance -= 2 * np.sqrt(cross.clip(min=0.0)).sum()
    return float(max(distance, 0.0))  # equal inputs may round below 0


def _root(cov: np.ndarray) -> np.ndarray:
    c, axes = np.linalg.eigh(cov)
    return (axes * np.sqrt(c.clip(min=0.0))) @ axes.T


@torch.inference_mode()
def _batched(function, images: torch.Tensor, where: str) -> torch.Tensor:
    """function over images in chunks, on the CPU in float32."""
    if images.ndim != 4 or images.shape[1:] != (1, 28, 28) or len(images) == 0:
        raise ValueError(
            f"{where}: images are {list(images.shape)}; [B, 1, 28, 28] with B >= 1 is accepted"
        )
    images = images.detach().to("cpu", torch.float32)
    form = torch.channels_last
    chunks = [chunk.contiguous(memory_format=form) for chunk in images.split(_CHUNK)]
    return torch.cat([function(chunk) for chunk in chunks])
