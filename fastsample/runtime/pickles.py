"""Pickles: a run as it leaves its process (pickle, torch.save, a spawned worker) and goes on in
another.
"""

from __future__ import annotations

import io
from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from ..kernels import transforms
from ..kernels.backend import select
from ..model import refuse_unnamed
from . import pool

if TYPE_CHECKING:
    from .run import Run

# what a run finds again where it is bound
# fmt: off
BOUND = {
    "_armed", "_choice", "_device", "_dtype", "_energy", "_here", "_high", "_input", "_late",
    "_launch", "_lies", "_low", "_offsets", "_permuted", "_plain", "_pool", "_quick", "_seed_words",
    "_shapes", "_stops", "_strides", "_take", "_words", "_zeros", "bytes", "end", "last",
    "prepared", "results", "times",
}
# fmt: on


def reduced(run: Run) -> tuple:
    """How a pickle makes the run again: its numbers by value (a spawned worker would be handed this
    run's own memory, and have it moved), on the backend that its wish finds there. PicklingError,
    one sentence, for a noise_source that has no name.
    """
    transforms.refuse("Run: a pickle")
    refuse_unnamed("Run: noise_source", run._source[0])
    run._settle()
    state = {name: value for name, value in run.__dict__.items() if name not in BOUND}
    own = {field.name: getattr(run._pool, field.name) for field in fields(pool.Pool)}
    for name in ("x", "slots"):  # not all that lies in their memory
        own[name] = own[name].clone()
    del own["table"]
    held = io.BytesIO()
    torch.save((state, run._armed, own), held)
    return revived, (type(run), held.getvalue())


def revived(kind: type[Run], held: bytes) -> Run:
    """The run that `reduced` took apart."""
    run = object.__new__(kind)
    with torch.inference_mode(False):
        state, armed, own = torch.load(io.BytesIO(held), weights_only=False)
        x, slots = pool.memory(own["x"], own["x"].dtype, len(own["slots"]))
        x.copy_(own["x"])
        slots.copy_(own["slots"])
    run.__dict__.update(state, _armed=armed)
    run._choice = select("step", x.device, x.dtype, run._wish)
    table = pool.table(run.plan, x.dtype, x.device)
    run._stand(pool.Pool(**own | {"x": x, "slots": slots, "table": table}))
    return run
