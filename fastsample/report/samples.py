"""Samples of several plans, one row each, the same noises in the same columns."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..plan.axis import Axis
from ..plan.markup import Markup, join, tag
from .images import float32, image_grid, is_image, png

SHOWN = 8  # samples of a row
SIDE = 128  # pixels of a shown image at most


def samples(rows: Sequence[tuple[str, Any]]) -> Markup:
    """The first samples of each (label, [n,*]): [n,C,H,W] with C = 1 or 3, or [n,H,W], in [-1,1] as
    images; vectors [n,D], D >= 3, as lines; others not at all, said in words.
    """
    arrays = [(label, float32(x)) for label, x in rows]
    shape, *others = {x.shape[1:] for _, x in arrays}
    n = min(SHOWN, *(len(x) for _, x in arrays))
    if others or n == 0:
        return tag("p", "The samples have different shapes, or there are none; none is shown.")
    cut = [(label, x[:n]) for label, x in arrays]
    if is_image(shape):
        return join(*(_images(label, x) for label, x in cut))
    if len(shape) == 1 and shape[0] >= 3:
        up = Axis.over(np.concatenate([x for _, x in cut]).ravel().tolist())
        return join(*(_lines(label, x, up) for label, x in cut))
    return tag("p", f"Samples of shape {list(shape)} are no images, no lines; none is shown.")


def _images(label: str, x: np.ndarray) -> Markup:
    """Large images are shown smaller: each pixel the mean of a square."""
    step = -(-max(x.shape[-2:]) // SIDE)
    if step > 1:
        high, wide = (size // step * step for size in x.shape[-2:])
        x = x[..., :high, :wide]
        x = x.reshape(*x.shape[:-2], high // step, step, wide // step, step).mean((-3, -1))
        label = f"{label}; each pixel the mean of {step} x {step}"
    row = []
    for image in x:
        data = base64.b64encode(png(image_grid(image[None], pad=0))).decode()
        row.append(tag("img", src=f"data:image/png;base64,{data}", alt=""))
    said = f"{len(x)} samples: {label}"
    drawn = tag("div", *row, class_="row", role="img", aria_label=said)
    return tag("figure", tag("figcaption", label), drawn)


def _lines(label: str, x: np.ndarray, up: Axis) -> Markup:
    """Each sample a line, its elements from left to right."""
    across = np.linspace(0, 100, x.shape[1])
    paths = []
    for sample in np.nan_to_num(x, nan=up.low):
        points = (f"{a:.2f} {100 - up.at(v):.2f}" for a, v in zip(across, sample, strict=True))
        paths.append(tag("path", class_="line", d=f"M{' '.join(points)}"))
    box = {"viewBox": "0 0 100 100", "preserveAspectRatio": "none", "class_": "lines"}
    said = f"{len(x)} samples: {label}"
    drawn = tag("svg", *paths, role="img", aria_label=said, **box)
    return tag("figure", tag("figcaption", label), drawn)
