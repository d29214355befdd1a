"""What the repr of a runner says: one line of what it is and where it stands, and no number of a
tensor, which on a device would be waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..model import Model
from ..plan.text import named, printable

if TYPE_CHECKING:
    from ..plan import Plan
    from .engine import Engine
    from .run import Run
    from .sampler import Sampler
    from .ticket import Ticket


def run(self: Run) -> str:
    x = self._pool.x
    state = f"x {list(x.shape)} {_kind(x.dtype, x.device)}"
    return f"Run({named(self.plan)}, {_row(self.row, self.plan)}, {state})"


def sampler(self: Sampler) -> str:
    asked = ", ".join(map(_model, self.models))
    words = [f"mode={self.mode!r}", *(["differentiable=True"] if self.differentiable else [])]
    return (
        f"Sampler({named(self.plan)}, {self.plan.nfe} evaluations of {asked}, {', '.join(words)})"
    )


def engine(self: Engine) -> str:
    held = f"{len(self.running)} running of {self.capacity}, {len(self._queue.waiting)} waiting"
    sizes = self.shape if isinstance(self.shape, dict) else {"": self.shape}
    shapes = ", ".join(f"{name} {list(size)}".lstrip() for name, size in sizes.items())
    return f"Engine(samples of {shapes}, {_kind(self._dtypes[0], self._device)}, {held})"


def ticket(self: Ticket) -> str:
    """Of its state what is known without a look at the device."""
    return f"Ticket({named(self.plan)}, {_row(self.row, self.plan)}, {self._state})"


def _row(row: int, plan: Plan) -> str:
    return f"row {row} of {plan.rows - 1}"


def _kind(dtype: object, device: object) -> str:
    return f"{str(dtype).removeprefix('torch.')} on {device}"


def _model(model: object) -> str:
    """A model by its callable's name: a network's own repr is long."""
    fn = model.fn if isinstance(model, Model) else model
    return printable(getattr(fn, "__qualname__", type(fn).__name__))
