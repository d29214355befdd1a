"""What a pickle keeps of a loop that is under way, and how a loop goes on from it."""

from __future__ import annotations

import torch

from ... import caller
from ...runtime.run import Run
from .edits import counted
from .loop import Loop

# what a loop has only since its first step, but for what it finds again by itself
KEPT = "index", "_run", "_draws", "_eta", "_still", "_carried", "_anchored", "_noised"
COUNTED = {"_handed": "_written", "_read": "_read_written"}  # a tensor, and its version then


def under_way(loop: Loop) -> dict | None:
    """The loop's state after a step, or after its first sample was noised; None before and after
    the last.
    """
    if loop.index == len(loop) or (loop.index is None and not loop._noised):
        return None
    with loop._lock:
        if loop._run is not None and not isinstance(loop._run, Run):
            caller.warn(
                "FsScheduler: a run with gradients is under way and stays here; what was pickled "
                "begins again at its first timestep"
            )
            return None
        state = {name: getattr(loop, name) for name in KEPT if hasattr(loop, name)}
        held = {name: (getattr(loop, name), getattr(loop, at)) for name, at in COUNTED.items()}
    since = {k: (x, x is not None and x._version != at) for k, (x, at) in held.items()}
    return state | {"counted": since}


def go_on(loop: Loop, state: dict) -> None:
    """The loop, which stands at its start, where the other stood. The sample that comes next is
    known by its numbers to be the one that the last step gave.
    """
    state = dict(state)
    for name, (x, written) in state.pop("counted").items():
        if x is not None:  # its version counts what this process writes
            with torch.inference_mode(False):
                x, version = counted(x)
            state[COUNTED[name]] = version - written
        state[name] = x
    loop.__dict__.update(state, _key=None, _chosen=state["_run"] is not None)
