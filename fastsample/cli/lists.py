"""Lists of noise levels and of timesteps in the forms that people and other programs write them.

    form            what it is
    sigmas          levels with commas; stable-diffusion.cpp's sd-cli takes it behind --sigmas
    timesteps       times of the schedule with commas, the end at sigma = 0 left out
    comfyui         text for ComfyUI's node ManualSigmas
    comfyui-json    that node in a workflow of the API format
    sdcpp-json      a request of stable-diffusion.cpp's sd-server

A level is sigma of a flow (alpha + sigma = 1), sigma/alpha of all others, which is the sigma of
k-diffusion, as in `grids.from_sigmas`. No number has an exponent: ComfyUI's node reads none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..grids.points import noted, on_flow, points
from ..plan import Plan
from ..plan.provenance import LEARNED, found
from ..plan.text import named, short
from ..schedules import Flow, Schedule

FORMS = ("sigmas", "timesteps", "comfyui", "comfyui-json", "sdcpp-json")
# where a JSON document has its list; in ComfyUI's it is text, and a list leads to another node
KEYS = (("sigmas",), ("timesteps",), ("custom_sigmas",), ("sample_params", "custom_sigmas"))
KEYS += (("inputs", "sigmas"),)
DIGITS = 15  # of a number of a list; what a schedule rounds in the last place is left out
MOST = 100_000  # numbers of a list
CHARACTERS = 64 << 20  # of a file with a list, or with a plan as JSON


def written(form: str, values: Sequence[float]) -> str:
    """The list in one of FORMS."""
    with np.errstate(over="ignore"):
        kept = np.asarray(values, np.float32 if "comfyui" in form else np.float64)
    if form not in ("sigmas", "timesteps") and not np.isfinite(kept).all():
        raise ValueError(
            f"--to {form} of a list that begins at an infinite level; a plan, or a list, "
            "that begins below it is accepted"
        )
    if form == "sdcpp-json":
        numbers = [float(_decimal(np.float64(v))) for v in values]
        return json.dumps({"sample_params": {"custom_sigmas": numbers}})
    if form in ("comfyui", "comfyui-json"):  # a tensor of float32
        text = ", ".join(_decimal(np.float32(v)) for v in values)
        node = {"class_type": "ManualSigmas", "inputs": {"sigmas": text}}
        return text if form == "comfyui" else json.dumps({"1": node})
    return ",".join(_decimal(np.float64(v)) for v in values)


def _decimal(value: Any) -> str:
    if not np.isfinite(value):
        return "inf"
    if isinstance(value, np.float32):
        return np.format_float_positional(value, trim="0")
    digits = {"unique": False, "precision": DIGITS, "fractional": False}
    return np.format_float_positional(value, **digits, trim="0")


def levels(alpha: np.ndarray, sigma: np.ndarray, schedule: Schedule | None = None) -> list[float]:
    """The levels of these points; of no known schedule, they are a flow's where they lie on one.
    Pure noise and data alone, of a single step, lie on every schedule that ends in both.
    """
    flow = on_flow(alpha, sigma) if schedule is None else isinstance(schedule, Flow)
    with np.errstate(divide="ignore"):
        found = sigma if flow else sigma / alpha
    return [float(v) for v in found]


def levels_of(plan: Plan) -> list[float]:
    """The levels at which a plan's steps begin, and of its end."""
    grid = noted(plan)
    return levels(*points(plan), grid[0] if grid else None)


def left_out(plan: Plan) -> str | None:
    """In words, what a plan gains by that a list of its levels does not hold; None for nothing."""
    parts = [f"the rows of {named(plan)}"] if LEARNED & plan.note.keys() else []
    amplitude = found(plan).get("amplitude", 1.0)
    if amplitude != 1.0:
        parts.append(f"the factor {short(amplitude, 60)} of its first noise")
    return f"the list does not hold {' and '.join(parts)}" if parts else None


def times(plan: Plan) -> list[float]:
    """The times of the schedule that a plan's steps begin at."""
    grid = noted(plan)
    if grid is None:
        raise ValueError(
            "--to timesteps of a plan whose note names no schedule and times; --to sigmas "
            "is accepted"
        )
    found = grid[1].tolist()
    return found[:-1] if plan.sigma[-1] == 0.0 else found


def falling(levels: Sequence[float]) -> list[float]:
    """The levels, or ValueError where one is negative or above the one before it."""
    for before, level in zip((math.inf, *levels), levels, strict=False):
        if not 0 <= level <= before:
            after = f"{level:g} after {before:g}" if before < math.inf else f"{level:g}"
            raise ValueError(
                f"the list has the level {after}; levels of at least 0 that fall, noise to data, "
                "are accepted"
            )
    return [*levels]


def read(text: str) -> tuple[str | None, list[float]]:
    """(form, numbers) of a list in any of FORMS; form None where it does not say whether it is of
    sigmas or of timesteps. ValueError for what holds no list.
    """
    text, form = text.strip(), None
    if text[:1] in ("{", "["):
        form, text = _in_json(text)
    if isinstance(text, list):
        found = [math.nan if isinstance(value, (str, bool)) else _number(value) for value in text]
    else:
        found = [*map(_number, re.split(r"[\s,;]+", text.strip(" ,;\n")))]
    if not 1 <= len(found) <= MOST or any(map(math.isnan, found)):
        raise ValueError(
            f"{str(text)[:60]!r} is no list of numbers; numbers with commas between them, "
            "or JSON that holds them, are accepted"
        )
    return form, found


def _number(word: Any) -> float:
    """The number that a word is; NaN for any other, as for 1_0, which Python alone takes for 10."""
    try:
        return math.nan if "_" in f"{word}" else float(word)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _in_json(text: str) -> tuple[str | None, Any]:
    """The list of a JSON document: itself, or where one of KEYS leads."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the JSON cannot be read ({error}); sound JSON is accepted") from None
    if isinstance(value, list):
        return None, value
    held = {}
    for node in (value, *(v for v in value.values() if isinstance(v, dict))):
        for keys in KEYS:
            found = node
            for key in keys:
                found = found.get(key) if isinstance(found, dict) else None
            if isinstance(found, str) or (isinstance(found, list) and keys[0] != "inputs"):
                held[id(found)] = ("timesteps" if keys == ("timesteps",) else "sigmas", found)
    if len(held) > 1:
        raise ValueError(f"the JSON holds {len(held)} lists; JSON that holds one is accepted")
    if held:
        return held.popitem()[1]
    named, keys = ", ".join(".".join(keys) for keys in KEYS), ", ".join(map(str, value))
    raise ValueError(f"the JSON has keys {keys[:60]!r}; a list, or one of {named} is accepted")
