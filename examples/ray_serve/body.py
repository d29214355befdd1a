"""What a request says, checked before anything is done for it."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

MOST_BYTES = 4096  # of a body
LABELS = 10
KEYS = ("plan", "seed", "label", "guidance", "shape", "format", "deadline", "every")
FORMATS = {"png": "image/png", "npz": "application/octet-stream"}


@dataclass(frozen=True)
class Body:
    """plan: its name. seed: of the noise. label: the class. guidance: None, or the scale. shape:
    the sample's. format: "png" or "npz". deadline: seconds, or None. every: rows between two events
    of a stream.
    """

    plan: str
    seed: int
    label: int
    guidance: float | None
    shape: tuple[int, ...]
    format: str
    deadline: float | None
    every: int


def read(text: bytes, shapes: tuple[tuple[int, ...], ...]) -> Body:
    """The Body of a JSON object, of one of these shapes; the seed is drawn where none is said, so
    that a request that is tried again has the same. ValueError, one sentence.
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"body: {error}; a JSON object is accepted") from None
    if not isinstance(said, dict):
        raise ValueError(f"body: a {type(said).__name__}; a JSON object is accepted")
    if unknown := sorted(said.keys() - {*KEYS}):
        raise ValueError(f"body: {unknown[0]!r:.40} is not known; {', '.join(KEYS)} are accepted")
    if "plan" not in said:
        raise ValueError("body: plan is missing; the name of one (GET /plans) is needed")
    shape = said.get("shape", list(shapes[0]))
    if not isinstance(shape, list) or tuple(shape) not in shapes:
        raise ValueError(
            f"body: shape = {shape!r:.60}; one of {', '.join(str(list(s)) for s in shapes)} is "
            "accepted"
        )
    form = said.get("format", "png")
    if not isinstance(form, str) or form not in FORMATS:
        raise ValueError(f"body: format = {form!r:.40}; 'png' or 'npz' is accepted")
    return Body(
        plan=said["plan"],
        seed=_whole(said, "seed", 0, 2**63 - 1, secrets.randbits(63)),
        label=_whole(said, "label", 0, LABELS - 1, 0),
        guidance=_number(said, "guidance", 0.0, 100.0),
        shape=tuple(shape),
        format=form,
        deadline=_number(said, "deadline", 0.0, 3600.0),
        every=_whole(said, "every", 1, 1000, 1),
    )


def _whole(said: dict, key: str, least: int, most: int, default: int) -> int:
    value = said.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(
            f"body: {key} = {value!r:.40}; a whole number from {least} to {most} is accepted"
        )
    return value


def _number(said: dict, key: str, least: float, most: float) -> float | None:
    value = said.get(key)
    if value is None:
        return None
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not plain or not least <= value <= most:
        raise ValueError(
            f"body: {key} = {value!r:.40}; a number from {least:g} to {most:g} is accepted"
        )
    return float(value)
