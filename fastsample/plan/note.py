"""The note of a plan: a read-only tree of JSON values, and its strict text."""

from __future__ import annotations

import json
import math
import re
from itertools import accumulate
from typing import Any, NoReturn

from .row import PlanError

DEPTH_CAP = 32
PLAIN = {float, int, str, bool, type(None)}


def _refuse(self: object, *args: object, **words: object) -> NoReturn:
    raise TypeError(
        "note: the note of a plan is read-only; plan.with_note(key=value) makes a plan with another"
    )


class Note(dict):
    """A dict that stays as it was made. Its copies and pickles are plain dicts, free to change."""

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce_ex__(self, protocol: int) -> tuple:
        return dict, (dict(self),)


class _Items(list):
    """The same of a list."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = insert = _refuse
    pop = remove = reverse = sort = _refuse

    def __reduce_ex__(self, protocol: int) -> tuple:
        return list, (list(self),)


def frozen(value: Any) -> Any:
    """value with every dict, list and tuple in it read-only, at any depth."""
    try:
        return _frozen(value)
    except RecursionError:
        raise PlanError(
            f"note: it is nested without end; at most {DEPTH_CAP} levels are accepted"
        ) from None


def _frozen(value: Any) -> Any:
    if isinstance(value, (Note, _Items)):
        return value
    if isinstance(value, dict):
        return Note({k: v if v.__class__ in PLAIN else _frozen(v) for k, v in value.items()})
    if not isinstance(value, (list, tuple)):
        return value
    plain = {*map(type, value)} <= PLAIN  # grids and tables, of thousands of numbers
    return _Items(value if plain else map(_frozen, value))


def dump_note(note: dict) -> str:
    """The note as canonical JSON: sorted keys, no NaN or Infinity."""
    try:
        return json.dumps(note, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise PlanError(
            f"note: {error}; strings, finite numbers, booleans, None, lists and dicts are accepted"
        ) from None


def load_note(data: bytes, where: str) -> dict:
    """Strict JSON object: UTF-8, finite numbers, no repeated keys, at most 32 levels deep."""

    def refuse(text: str) -> None:
        raise PlanError(f"{where}: the JSON holds {text}; numbers must be finite")

    def finite(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        keys = [k for k, _ in pairs]
        if len(set(keys)) != len(keys):
            raise PlanError(f"{where}: the JSON repeats a key; each key may stand once")
        return dict(pairs)

    if _depth(data) > DEPTH_CAP:
        raise PlanError(
            f"{where}: the JSON is nested more than {DEPTH_CAP} deep; a plan needs far less"
        )
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text, parse_constant=refuse, parse_float=finite, object_pairs_hook=unique
        )
        # a lone surrogate would fail only later
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except PlanError:
        raise
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{where}: not sound UTF-8 JSON ({str(error)[:80]})") from None
    if not isinstance(value, dict):
        raise PlanError(f"{where}: the JSON is a {type(value).__name__}; an object is needed")
    return value


def _depth(data: bytes) -> int:
    """Deepest nesting of brackets outside strings, found without recursion."""
    escapes_gone = re.sub(rb"\\.", b"", data, flags=re.DOTALL)
    brackets = re.sub(rb'"[^"]*"?|[^][{}"]+', b"", escapes_gone)
    return max(accumulate(1 if byte in b"[{" else -1 for byte in brackets), default=0)
