"""What a maker is given, checked: the model, the grid, where an image begins."""

from __future__ import annotations

import numpy as np

from ..grids import edges
from ..model import Model
from ..plan.given import integer, reals

# what else says where an image begins, in sentences about start=
MEANT = "strength= the share of the steps, level= a noise level sigma/alpha"


def falling(schedule: object, grid: object) -> np.ndarray:
    """The grid as float64 [n+1], or a ValueError."""
    full = reals(grid)
    listed = full is not None and full.ndim == 1 and bool(np.isfinite(full).all())
    if not listed or (full[1:] > full[:-1]).any():
        raise ValueError(
            f"grid: {grid!s:.60} is not one list of finite times that never rise; such a list, "
            "noise to data, is accepted"
        )
    return edges(schedule, full)


def resolve(model: object, prediction: str | None) -> Model:
    """A Model from a Model, or from a bare noise schedule and the kind of its prediction."""
    if isinstance(model, Model):
        if prediction is not None and prediction != model.prediction:
            raise ValueError(
                f"prediction: {prediction!r} given beside a Model that predicts "
                f"{model.prediction!r}; leave prediction out"
            )
        return model
    if prediction is None:
        raise ValueError(
            "prediction: none given with a schedule; pass prediction= (x0, eps, v, flow, edm or "
            "trigflow), or an fs.Model"
        )
    return Model(None, schedule=model, prediction=prediction)


def start_index(steps: int, start: int | None) -> int | None:
    """The index of an image-to-image start in a grid of so many steps, checked."""
    index = integer(start)
    if start is None or (index is not None and 0 <= index < steps):
        return index
    raise ValueError(
        f"start: {start!r:.60} for a grid of {steps} steps; an index 0..{steps - 1} is accepted "
        f"({MEANT})"
    )
