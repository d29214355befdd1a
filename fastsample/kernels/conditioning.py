"""What the model is told in each branch of guidance: keywords checked, put side by side for one call, kept apart for a compiler."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def unshared(conditions: Sequence[dict]) -> list[dict]:
    """The same keywords with no two tensors in one storage: a nested region of a compiled loop takes no aliases."""
    seen: set[int] = set()

    def own(value):
        if not isinstance(value, Tensor):
            return value
        place = value.untyped_storage().data_ptr()
        value = value.clone() if place in seen else value
        seen.add(place)
        return value

    return [{key: own(value) for key, value in c.items()} for c in conditions]


def form(value: object) -> Hashable:
    """What a graph for these arguments is made for: keywords, kinds of tensors (sizes apart, but 0 and 1 are never "any size") and the
    values of floats and text. Each form has a graph of its own: of the few recompiles torch allows a graph, only changing sizes take any.
    """
    if isinstance(value, dict):
        return tuple((key, form(v)) for key, v in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(form(v) for v in value)
    if isinstance(value, Tensor):
        return value.dtype, str(value.device), tuple(min(n, 2) for n in value.shape)
    return repr(value) if isinstance(value, (float, str, bool)) else type(value)


def branches_of(cond: dict | None, uncond: dict | None, branches: Sequence[dict] | None) -> list[dict]:
    """Keywords of each branch."""
    if branches is not None:
        if cond is not None or uncond is not None or not branches or not all(isinstance(b, dict) for b in branches):
            raise ValueError("Sampler: branches must be one dict or more, and stand alone; leave out cond and uncond")
        return list(branches)
    for name, value in (("cond", cond), ("uncond", uncond)):
        if value is not None and not isinstance(value, dict):
            raise TypeError(f"Sampler: {name} is a {type(value).__name__}; a dict of keywords for the model is accepted")
    return [cond or {}] if uncond is None else [cond or {}, uncond]


def merged(conditions: Sequence[dict], batch: int) -> dict:
    """One dict for a batch of all branches: tensors [B,*] are concatenated, everything else must be equal in every branch."""
    merged, advice = {}, "make them alike, or pass batched_guidance=False"
    if any(c.keys() != conditions[0].keys() for c in conditions):
        raise ValueError(f"Sampler: the branches have keywords {[sorted(c) for c in conditions]}; {advice}")
    for key, value in conditions[0].items():
        values = [c[key] for c in conditions]
        if isinstance(value, Tensor) and value.dim() > 0:
            if any(
                not isinstance(v, Tensor) or v.shape[1:] != value.shape[1:] or v.shape[:1] != (batch,) or v.dtype != value.dtype
                for v in values
            ):
                shapes = [list(v.shape) if isinstance(v, Tensor) else type(v).__name__ for v in values]
                raise ValueError(
                    f"Sampler: {key!r} is {shapes} in the branches; tensors of one shape with a batch of {batch} are needed; {advice}"
                )
            merged[key] = torch.cat(values)
        elif any(v is not value and not bool(v == value) for v in values):
            raise ValueError(f"Sampler: {key!r} differs between the branches and is not a tensor with a batch; {advice}")
        else:
            merged[key] = value
    return merged
