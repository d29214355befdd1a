"""A plan with other numbers: which ones may change, and what its note then no longer says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import consistency
from .row import FIELDS, PlanError

if TYPE_CHECKING:
    from .plan import Plan

# coefficients, the words that say which of them are read, and what one of their columns is
READ_BY = {
    "M": ("reads", "operand"),
    "U": ("branches", "branch"),
    "V": ("branches", "branch"),
    "known": ("known_reads", "term"),
}


def with_numbers(plan: Plan, /, **arrays: Any) -> Plan:
    """The same plan with some of its arrays replaced, each of the shape it had.

    What a row reads stays declared, whatever its coefficients: one that is not 0 where its operand
    is not read is refused, and reads=, branches= or known_reads= in the same call widens what is
    read; so is one of a u or v that the row does not keep (dst). The note goes on saying what the
    numbers began as, beside note["changed"], the names of all that were replaced; order and orders
    go, and consistent is measured again. Such a plan has no remake. Another M[0,0,0] of a plan for
    noise is another init_scale and no more: the note and remake stay.
    """
    known, old = {field.name: field for field in FIELDS}, plan.numbers()
    if not arrays.keys() <= known.keys():
        raise PlanError(
            f"with_numbers: {', '.join(sorted(arrays.keys() - known.keys()))} given; "
            f"{', '.join(known)} are accepted"
        )
    new = {name: known[name].array(value, "with_numbers") for name, value in arrays.items()}
    for name, array in new.items():
        if array.shape != old[name].shape:
            raise PlanError(
                f"with_numbers: {name} has shape {list(array.shape)}; {list(old[name].shape)}, as "
                "the plan has it, is accepted (padded makes room)"
            )
    changed = [name for name in known if name in new and new[name].tobytes() != old[name].tobytes()]
    if not changed:
        return plan
    _check_read(old, old | new)
    _check_kept(old, old | new)
    made = replace(plan, **new)
    if changed == ["M"] and plan.sigma[0] and np.argwhere(made.M != plan.M).tolist() == [[0, 0, 0]]:
        return made
    names = sorted({*changed, *plan.note.get("changed", ())})
    gone = ("order", "orders", "smooth_order")
    note = {key: value for key, value in plan.note.items() if key not in gone}
    sound = consistency.is_sound(made)
    return replace(made, note={**note, "changed": names, "consistent": sound})


def _check_read(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> None:
    """Refuse a coefficient whose operand is not read, unless the plan had lost it already."""
    for name, (words, what) in READ_BY.items():
        lost = _unread(new, name, words) & ~_unread(old, name, words)
        if lost.any():
            where = tuple(np.argwhere(lost)[0].tolist())
            row, column = where[0], where[1 if words == "branches" else -1]
            raise PlanError(
                f"with_numbers: {name}{list(where)} is {new[name][where]:g} and row {row} does not "
                f"read {what} {column}; {words}= with {int(new[words][row]) | 1 << column} in row "
                f"{row} is accepted"
            )


def _check_kept(old: Mapping[str, np.ndarray], new: Mapping[str, np.ndarray]) -> None:
    """Refuse a coefficient of what a row keeps (u, v) where it keeps nothing."""
    lost = lambda numbers: (numbers["M"][:, 1:] != 0) & (numbers["dst"] < 0)[:, :, None]
    for row, kept, column in np.argwhere(lost(new) & ~lost(old))[:1].tolist():
        raise PlanError(
            f"with_numbers: M[{row}, {kept + 1}, {column}] is {new['M'][row, kept + 1, column]:g} "
            f"and row {row} keeps no {'uv'[kept]}; dst= with its slot in row {row} is accepted"
        )


def _unread(numbers: Mapping[str, np.ndarray], name: str, words: str) -> np.ndarray:
    """Where a coefficient is not 0 and its operand not read."""
    array, axis = numbers[name], 1 if words == "branches" else -1
    shape = [len(array)] + [1] * (array.ndim - 1)
    shape[axis] = array.shape[axis]
    read = numbers[words][:, None] >> np.arange(shape[axis]) & 1
    return (array != 0) & (read.reshape(shape) == 0)
