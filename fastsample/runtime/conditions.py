"""Conditions: what the model is told in each branch of guidance, a tree of keywords that follows
its samples on every road.

A condition is a dict of keywords; under each, dicts, lists, tuples and named tuples may be nested
(as torch's pytree has them). Its leaves:

    tensor [B,*] of one axis or more               goes with its samples: cut, indexed, joined
    list or tuple of strings, numbers and None     is one leaf, B long, and goes with its samples
    0-d tensor, number, string, None, any object   is shared: every sample is told it as it is; a
                                                   dataclass with tensors is not cut, but refused
    shared(value)                                  never travels, whatever it holds; the model sees
                                                   the value

A NumPy array becomes a tensor of its dtype on the noise's device, another kind of mapping a dict.
Another length is refused by its path, `cond["added"]["text"]`. Whether an axis that happens to be B
long is the batch cannot be told: `shared` says that it is not.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from numbers import Number
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..kernels import transforms

PLAIN = (str, bytes, Number, np.generic, type(None))  # what a list is made of that is one leaf


@dataclass(frozen=True, eq=False)
class Shared:
    """A value that belongs to no sample."""

    value: Any


def shared(value: Any) -> Shared:
    """A part of a condition that never travels with samples; the model is given the value alone."""
    return Shared(value)


def branches_of(
    where: str,
    cond: Mapping | None,
    uncond: Mapping | None,
    branches: Sequence[Mapping] | None,
    batch: int,
    device: torch.device,
) -> dict[str, dict]:
    """The condition of each branch by its name, for `batch` samples: {"cond"}, {"cond", "uncond"}
    or {"branches[0]", ...}, as `take`, `told` and `merged` want them. Raises TypeError or
    ValueError, one sentence.
    """
    if cond is None and uncond is None and branches is None:
        return {"cond": {}}
    named = {"cond": {} if cond is None else cond} | ({} if uncond is None else {"uncond": uncond})
    if branches is not None:
        several = isinstance(branches, (list, tuple)) and len(branches) > 0
        alone = several and cond is None and uncond is None
        if not alone or not all(isinstance(b, Mapping) for b in branches):
            raise ValueError(
                f"{where}: branches must be one dict or more, and stand alone; leave out cond and "
                "uncond"
            )
        named = {f"branches[{g}]": branch for g, branch in enumerate(branches)}
    for name, value in named.items():
        if not isinstance(value, Mapping):
            raise TypeError(
                f"{where}: {name} is a {type(value).__name__}; a dict of keywords for the model is "
                "accepted"
            )
    return {
        name: dict(value) if _flat(value, batch) else _checked(where, name, value, batch, device)
        for name, value in named.items()
    }


def take(tree: dict, index: slice | Tensor) -> dict:
    """The condition of some samples: those of a slice, or the sample numbers [n] int64."""

    def part(value):
        if not _travels(value):
            _check_whole(value)
            return value
        if isinstance(value, Tensor):
            return value[_there(index, value.device) if isinstance(index, Tensor) else index]
        if isinstance(index, Tensor):
            return _list_like(value, [value[i] for i in index.tolist()])
        return _list_like(value, value[index])

    return pytree.tree_map(part, tree, is_leaf=_is_leaf)


def _check_whole(value: object) -> None:
    """TypeError for a record of tensors, which cannot be cut with its samples."""
    record = is_dataclass(value) or isinstance(value, SimpleNamespace)
    if not record or isinstance(value, (Shared, type)):
        return
    if any(isinstance(v, Tensor) and v.dim() > 0 for v in vars(value).values()):
        raise TypeError(
            f"condition: a {type(value).__name__} holds tensors and would be told whole to a part "
            "of the samples; a dict or a named tuple in its place, or fs.shared(value), is accepted"
        )


def _there(index: Tensor, device: torch.device) -> Tensor:
    """Sample numbers on a device, which the host does not wait for."""
    return index.to(device, non_blocking=index.device.type == "cpu")


def told(tree: dict) -> dict:
    """The condition as the model sees it, without the wrappers of `shared`."""
    if all(value.__class__ is Tensor for value in tree.values()):
        return tree
    leaves, spec = pytree.tree_flatten(tree, is_leaf=_is_leaf)
    if not any(isinstance(value, Shared) for value in leaves):
        return tree
    leaves = [value.value if isinstance(value, Shared) else value for value in leaves]
    return pytree.tree_unflatten(leaves, spec)


def merged(where: str, branches: Mapping[str, dict]) -> dict | None:
    """What the model is told in one call for the samples of all branches, branch after branch; None
    where one call cannot say it: a shared leaf differs, or leaves that travel are not of one shape,
    dtype and device. ValueError, one sentence, for trees of different form.
    """
    flat = [pytree.tree_flatten(tree, is_leaf=_is_leaf) for tree in branches.values()]
    spec, columns = flat[0][1], list(zip(*(leaves for leaves, _ in flat), strict=False))
    if any(other != spec for _, other in flat):  # of another order, at best
        columns = _columns(where, branches)
    if not all(_one_call(values) for values in columns):
        return None
    return pytree.tree_unflatten([_joined(values) for values in columns], spec)


def _columns(where: str, branches: Mapping[str, dict]) -> list[list]:
    """For each leaf of the first branch what every branch says there, by its path."""
    trees = branches.values()
    leaves = [dict(pytree.tree_leaves_with_path(tree, is_leaf=_is_leaf)) for tree in trees]
    for name, own in zip(branches, leaves, strict=True):
        for other, theirs in zip(branches, leaves, strict=True):
            for path in own:
                if path and path not in theirs:  # (): a branch without keywords
                    lone = f"{name}{_written(path)} has no counterpart in {other}"
                    raise ValueError(
                        f"{where}: the branches have keywords of their own, {lone}; make them "
                        "alike, or pass batched_guidance=False"
                    )
    return [[own[path] for own in leaves] for path in leaves[0]]


def answer(
    models: Sequence[Callable],
    x: Tensor,
    t: Tensor,
    batch: int,
    needed: Sequence[bool],
    conditions: Sequence[dict],
    joint: dict | None,
) -> Tensor | list[Tensor | None]:
    """What a model says of x and t in each branch that is needed, models[g] being asked for branch
    g: [G*B,*] from one call where `joint` tells them together, else a list with None for the
    others. With `joint`, x and t hold the batch G times over.
    """
    if joint is not None:
        if all(needed):
            return models[0](x, t, **joint)
        x, t = x[:batch], t[:batch]
    told = enumerate(conditions)
    return [models[g](x, t, **cond) if needed[g] else None for g, cond in told]


def leaves_like(where: str, elsewhere: str, other: dict, name: str, tree: dict) -> list:
    """The leaves of a tree in the order of another's, so that `together` can say both in one call.
    ValueError, one sentence, names the path of a leaf that one call cannot say beside the other's.
    """
    (own, form), (theirs, wanted) = (
        pytree.tree_flatten(v, is_leaf=_is_leaf) for v in (tree, other)
    )
    if form == wanted and all(map(_one_call, zip(own, theirs, strict=True))):
        return own
    own, theirs = (dict(pytree.tree_leaves_with_path(v, is_leaf=_is_leaf)) for v in (tree, other))
    for path in [*theirs, *own]:
        both = path in own and path in theirs
        if not (_one_call([own[path], theirs[path]]) if both else path == ()):
            here, there = (_kind_of(leaves, path) for leaves in (own, theirs))
            raise ValueError(
                f"{where}: {name}{_written(path)} is {here}, and {there} in {elsewhere}; what one "
                "call of the model can be told is accepted: the same keywords, each of one shape "
                "and dtype, or one value"
            )
    return [own[path] for path in theirs if path in own]


def likeness(tree: dict) -> dict:
    """A tree that `leaves_like` and `together` take for this one, and that keeps none of its memory
    but that of values which are the same for every sample.
    """

    def like(value):
        if not _travels(value):
            return value
        if isinstance(value, Tensor):
            return value.new_empty(()).expand(value.shape)
        return _list_like(value, [None])

    return pytree.tree_map(like, tree, is_leaf=_is_leaf)


def together(samples: Sequence[list], like: dict) -> dict:
    """What the model is told in one call for samples of these leaves (`leaves_like`), one after the
    other.
    """
    spec = pytree.tree_flatten(like, is_leaf=_is_leaf)[1]
    return pytree.tree_unflatten([_joined(leaf) for leaf in zip(*samples, strict=True)], spec)


def collated(where: str, tree: object, batch: int, device: torch.device) -> dict:
    """What the model is told of `batch` samples by a tree that the caller put together. TypeError
    or ValueError, one sentence.
    """
    if not isinstance(tree, Mapping):
        raise TypeError(
            f"{where}: collate returned a {type(tree).__name__} for {batch} trees; a dict of "
            "keywords for the model is accepted"
        )
    return told(_checked(where, "collate(trees)", dict(tree), batch, device))


def _kind_of(leaves: Mapping, path: Sequence) -> str:
    if path not in leaves:
        return "missing"
    value = leaves[path]
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)} on {value.device}"
    return f"a {type(value).__name__}" if _travels(value) else f"{value!r:.60}"


def _is_leaf(value: object) -> bool:
    """Where a tree ends before torch's does: at lists of plain values, at what is empty, and at
    kinds that torch does not look into or gives no names (`_checked` makes them ordinary).
    """
    if isinstance(value, Mapping):
        return not value or type(value) not in (dict, OrderedDict, defaultdict)
    if not isinstance(value, (list, tuple)) or pytree.is_namedtuple(value):
        return False
    return not value or type(value) not in (list, tuple) or _is_list(value)


def _is_list(value: Sequence) -> bool:
    return len(value) > 0 and all(isinstance(v, PLAIN) for v in value)


def _travels(leaf: object) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.dim() > 0
    return isinstance(leaf, (list, tuple)) and _is_list(leaf)


def _length(leaf: Sequence | Tensor) -> int:
    """Samples of a leaf that travels; of a tensor by its shape, which torch.export may leave open,
    as it may not len().
    """
    return leaf.shape[0] if isinstance(leaf, Tensor) else len(leaf)


def _written(path: Sequence) -> str:
    return pytree.keystr(path).replace("'", '"')


def _flat(value: Mapping, batch: int) -> bool:
    """Nothing but tensors of `batch` samples, as most conditions are: known to be right by a look,
    a tenth of a short eager call sooner.
    """
    leaves = value.values()
    return all(isinstance(v, Tensor) and v.dim() > 0 and v.shape[0] == batch for v in leaves)


def _checked(where: str, name: str, value: object, batch: int, device: torch.device) -> Any:
    """The tree of one keyword or more with every array a tensor, and every leaf that travels
    `batch` long.
    """
    leaves, spec = pytree.tree_flatten(value, is_leaf=_is_leaf)

    def path(k: int) -> str:
        return name + _written(pytree.tree_leaves_with_path(value, is_leaf=_is_leaf)[k][0])

    for k, leaf in enumerate(leaves):
        if isinstance(leaf, Shared):
            leaves[k] = Shared(_bare(where, path(k), leaf.value, device))
        elif isinstance(leaf, np.ndarray):
            leaf = leaves[k] = _tensor(where, path(k), leaf, device)
        elif isinstance(leaf, Mapping) and leaf:
            leaves[k] = _checked(where, path(k), dict(leaf), batch, device)
        elif isinstance(leaf, (list, tuple)) and leaf and not _is_list(leaf):
            leaves[k] = _checked(where, path(k), _list_like(leaf, leaf), batch, device)
        if _travels(leaf) and (size := _length(leaf)) != batch:
            count = f"{size} samples for a batch of {batch}"
            raise ValueError(
                f"{where}: {path(k)} has {count}; {batch}, or fs.shared(value), is accepted"
            )
    return pytree.tree_unflatten(leaves, spec)


def _bare(where: str, name: str, value: object, device: torch.device) -> Any:
    """A shared value: itself, or rebuilt where it holds arrays or wrappers of its own."""

    def leaf(value):
        if isinstance(value, Shared):
            return _bare(where, name, value.value, device)
        return _tensor(where, name, value, device) if isinstance(value, np.ndarray) else value

    rebuilt = any(isinstance(v, (Shared, np.ndarray)) for v in pytree.tree_leaves(value))
    return pytree.tree_map(leaf, value) if rebuilt else value


def _tensor(where: str, name: str, array: np.ndarray, device: torch.device) -> Tensor:
    """A tensor of its own memory: a model that writes into it leaves the caller's array alone, and
    torch takes no negative strides.
    """
    try:
        return torch.as_tensor(array.astype(array.dtype.newbyteorder("=")), device=device)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{where}: {name} is an array of {array.dtype}; numbers that torch has a dtype for are "
            "accepted"
        ) from error


def _one_call(values: Sequence) -> bool:
    """Can one call say the leaf of every branch?"""
    first = values[0]
    if not all(_travels(v) for v in values):
        return all(_same(first, v) for v in values[1:])
    if not isinstance(first, Tensor):
        return all(type(v) is type(first) for v in values)
    kind = (first.shape, first.dtype, first.device)
    return all(isinstance(v, Tensor) and (v.shape, v.dtype, v.device) == kind for v in values)


def _joined(values: Sequence) -> Any:
    first = values[0]
    if isinstance(first, Shared):
        return first.value
    if not _travels(first):
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    return _list_like(first, [item for value in values for item in value])


def _list_like(value: Sequence, items: Sequence) -> Sequence:
    return list(items) if isinstance(value, list) else tuple(items)


def _same(a: object, b: object) -> bool:
    """Is it one value? Tensors by their numbers (read once a call), unless a gradient is to reach
    each of the two or a transform hides them; text and numbers by value and type; anything else by
    identity. A value taken for two costs a second call and no more.
    """
    if isinstance(a, Shared) and isinstance(b, Shared):
        a, b = a.value, b.value
    (left, form), (right, other) = (pytree.tree_flatten(value) for value in (a, b))
    return form == other and all(_equal(x, y) for x, y in zip(left, right, strict=True))


def _equal(a: object, b: object) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        kinds = [(v.shape, v.dtype, v.device, v.requires_grad) for v in (a, b)]
        if kinds[0] != kinds[1] or a.requires_grad:
            return False
        return transforms.active(a, b) is None and torch.equal(a, b)
    return type(a) is type(b) and isinstance(a, PLAIN) and bool(a == b)
