"""Standing: what a scheduler object has that its config does not say, for a config alone is read
where one is taken over. Imports no diffusers.
"""

from __future__ import annotations

import torch

from .options import instance, parameters


def shift_since(scheduler: object, given: dict) -> tuple[dict, float | None]:
    """What is given to from_config beside a scheduler whose set_shift was called since it was made,
    and the shift to set on what is made there: on its own class; another reads it as an option.
    """
    ours = "_runs" in scheduler.__dict__
    shift = scheduler._runs.shift if ours else getattr(scheduler, "shift", None)
    settable = hasattr(scheduler, "set_shift") and not given.keys() & {"shift", "flow_shift"}
    if not settable or shift is None or shift == scheduler.config.get("shift"):
        return given, None
    kind = given.get("source")
    kind = getattr(kind, "__name__", kind)
    made = [c.__name__ for c in type(scheduler).__mro__]
    if kind in (None, *([scheduler.config["source"]] if ours else made)):
        return given, float(shift)
    return {**given, "shift": float(shift)}, None


def check_table(scheduler: object) -> None:
    """ValueError where somebody wrote to the alphas_cumprod of a scheduler of diffusers: no config
    says so, and levels from the config would be others. (A class of one's own says its levels.)
    """
    table, kind = getattr(scheduler, "alphas_cumprod", None), type(scheduler)
    theirs = kind.__module__.startswith("diffusers.")
    if not (theirs and isinstance(table, torch.Tensor)):
        return
    known = parameters(kind)
    try:
        own = instance(kind, {k: v for k, v in scheduler.config.items() if k in known})
    except Exception:  # whoever reads its config says why
        return
    own, table = own.alphas_cumprod.double().cpu(), table.detach().cpu()
    slack, least = 0.0, 0.0  # of what a cast rounds, and of what is below its normal numbers
    if table.is_floating_point():
        kind_of = torch.finfo(table.dtype)
        slack, least = 4.0 * kind_of.eps, kind_of.eps * kind_of.smallest_normal
    table = table.double()
    if own.shape != table.shape:
        raise ValueError(
            f"FsScheduler.from_config: alphas_cumprod of this {kind.__name__} has {len(table)} "
            f"numbers and its config gives {len(own)}; trained_betas in its config are accepted"
        )
    off = (own - table).abs() > slack * own.abs() + least
    if off.any():
        at = int(off.nonzero()[0])
        raise ValueError(
            f"FsScheduler.from_config: alphas_cumprod of this {kind.__name__} was written to, it "
            f"is {table[at]:.6g} at timestep {at} and its config gives {own[at]:.6g}; levels of "
            "one's own are accepted as trained_betas in the config"
        )
