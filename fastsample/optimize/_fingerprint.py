"""What a search was told, in a few numbers: by these a checkpoint knows its own conditions again.

A text encoder's answers differ by rounding from one machine to another, as a model's do; words,
labels, masks and sizes do not. So tensors of fractions are kept as sketches, which are compared
within rounding, and all else as one hash.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_leaves_with_path

from ..kernels import normal
from ..runtime.conditions import PLAIN, Shared
from ._probe import ALIKE, SAME

SUMS = 16  # of a sketch: they tell the size of a difference to a third of it


class Sketch(NamedTuple):
    """size: how many numbers a row is of; rows: for each sample, or one where it is shared."""

    size: int
    rows: list[list[float]]


def fingerprint(tree: Any) -> str | None:
    """A hash over all that a tree holds, as conditions are: where it stands; of tensors class and
    shape and every number, but of fractions only where they are not finite, for `sketches` has
    them; what is no number and no text by its class alone. None where it holds nothing.
    """
    found, leaves = hashlib.sha256(), [*_leaves(tree)]
    for path, leaf, _ in leaves:
        said = repr(leaf) if isinstance(leaf, PLAIN) else type(leaf).__qualname__
        said = f"{leaf.dtype} {list(leaf.shape)}" if isinstance(leaf, Tensor) else said
        found.update(f"{path} {said}\n".encode())
        if isinstance(leaf, Tensor):
            flat = leaf.detach().cpu().contiguous().reshape(-1)
            if _fractions(flat):
                found.update(b"fractions")
                flat = torch.where(flat.isfinite(), 0.0, flat.double()).nan_to_num(2.0, 1.0, -1.0)
            found.update(flat.view(torch.uint8).numpy())
    return found.hexdigest()[:16] if leaves else None


def sketches(tree: Any) -> dict[str, Sketch]:
    """{where it stands: sketch} of each tensor of fractions.

    A row v is told by |v| and SUMS sums, each over every SUMS-th of its numbers under fixed random
    signs, whose differences are as large as those of v in the mean square. Up to SUMS numbers are
    these themselves, but for signs.
    """
    found, key = {}, torch.zeros(1, dtype=torch.int64)
    for path, leaf, shared in _leaves(tree):
        x = leaf.detach().cpu() if isinstance(leaf, Tensor) else None
        if x is not None and _fractions(x):
            x = x.reshape(1, -1) if shared or not x.dim() else x.reshape(len(x), -1)
            signs = torch.where(normal(key, key, x.shape[1])[0] < 0, -1.0, 1.0).double()
            found[path] = Sketch(x.shape[1], [_row(v, signs) for v in x])
    return found


def apart(theirs: Any, ours: Sketch) -> tuple[Any, Any] | None:
    """The first rows in which two sketches, theirs as JSON, differ by more than rounding; None
    where there are none.
    """
    rows = theirs[1] if isinstance(theirs, list) and len(theirs) == 2 else None
    for k, own in enumerate(ours.rows):
        row = rows[k] if isinstance(rows, list) and k < len(rows) else None
        whole = isinstance(row, list) and len(row) == len(own)
        whole = whole and all(isinstance(v, float) for v in row)
        moved = math.dist(row[1:], own[1:]) if whole else math.inf
        if not moved <= (SAME if ours.size <= SUMS else ALIKE) * own[0]:
            return row, own
    return None


def _row(v: Tensor, signs: Tensor) -> list[float]:
    """Its size and its sums; what is not finite counts as 0."""
    v = torch.where(v.isfinite(), v.double(), 0.0)
    full = torch.nn.functional.pad(signs * v, (0, -len(v) % SUMS))
    sums = full.view(-1, SUMS).sum(0).tolist()
    return [float(f"{number:.9g}") for number in (float(v.norm()), *sums)]


def _fractions(x: Tensor) -> bool:
    """Does it hold a number that is not whole? Labels, masks and sizes do not, as floats either."""
    if not x.is_floating_point():
        return False
    x = x.double()
    return bool(((x != x.floor()) & x.isfinite()).any())


def _leaves(tree: Any) -> Iterator[tuple[str, Any, bool]]:
    """(where it stands, leaf, whether it belongs to no sample) of all leaves."""
    for path, leaf in tree_leaves_with_path(tree):
        if isinstance(leaf, Shared):
            for inner, one in tree_leaves_with_path(leaf.value):
                yield keystr(path) + keystr(inner), one, True
        else:
            yield keystr(path), leaf, False
