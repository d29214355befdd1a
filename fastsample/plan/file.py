"""The forms of a Plan outside memory: kernel records, the .fsplan file, JSON and the readable
table.

The file (little-endian; the C++ parser of csrc/core/plan.cpp reads the same)::

     0  8 bytes   magic  89 46 53 50 4C 41 4E 0A
     8  u32 x 2   version = 1, header size = 88
    16  u32 x 6   R rows, S slots, G branches, L noises, K scales, E model scalars
    40  u32 x 2   numbers per row, 0
    48  u64       bytes of the note
    56  32 bytes  SHA-256 of the whole file without these 32 bytes
    88  R rows of float64: M | p | q | clip | U | V | ky, Cy | c | t | dx, dm | alpha, sigma
                           | reads | branches | known_reads | du | dv | call | ids
     .  the note: strict UTF-8 JSON (no NaN, no repeated keys)
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files

if TYPE_CHECKING:
    from .plan import Plan

MAGIC = b"\x89FSPLAN\n"
VERSION = 1
HEADER = struct.Struct("<8s10IQ32s")
CAPS = {"R": 65536, "S": 24, "G": 8, "L": 8, "K": 8, "E": 4}
NOTE_CAP = 1 << 20
JSON_CAP = 64 << 20
DEPTH_CAP = 32
_WORDS = ("reads", "branches", "known_reads", "dst", "call", "ids")


class PlanError(ValueError):
    """A plan, or a plan file, that cannot be used; the message says where and what would be
    accepted.
    """


def _layout(dims: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """The float part of a row, in order: (array, its shape per row)."""
    S, G, L, K, E = (dims[k] for k in "SGLKE")
    wide = {"M": (3, 3 + S + G + L), "U": (G,), "V": (G, K), "known": (1 + L,)}
    wide |= {"t": (E,), "preview": (2,)}
    names = ["M", "p", "q", "clip", "U", "V", "known", "c", "t", "preview", "alpha", "sigma"]
    return [(name, wide.get(name, ())) for name in names]


def _float_width(dims: dict[str, int]) -> int:
    return sum(math.prod(shape) for _, shape in _layout(dims))


def records(plan: Plan, dtype: type | str) -> tuple[np.ndarray, np.ndarray]:
    """(numbers [R, WF] of `dtype`, words [R, 7+L] int32): the rows as kernels read them. Words:
    reads low and high 24 bits, branches, known_reads, du, dv, call, noise ids as uint32 bits.
    """
    rows = plan.rows
    if dtype not in (np.float32, np.float64, "float32", "float64"):
        raise PlanError(f"table: dtype {dtype!r} is not a state dtype; float32 and float64 are")
    numbers = np.concatenate(
        [getattr(plan, name).reshape(rows, -1) for name, _ in _layout(plan.dims)], axis=1
    )
    single = plan.reads & 0xFFFFFF, plan.reads >> 24, plan.branches, plan.known_reads
    words = np.column_stack([*single, plan.dst, plan.call, plan.ids & 0xFFFFFFFF])
    with np.errstate(over="ignore"):
        numbers = numbers.astype(dtype)
    if not np.isfinite(numbers).all():
        raise PlanError(
            f"table: a coefficient is beyond the range of {np.dtype(dtype)}; use a float64 state"
        )
    words = words.astype(np.uint32).view(np.int32)
    return np.ascontiguousarray(numbers), np.ascontiguousarray(words)


# -- .fsplan ---------------------------------------------------------------------------------------
def encode(plan: Plan) -> bytes:
    """The plan as the bytes of a .fsplan file."""
    rows, dims = plan.rows, plan.dims
    body = [getattr(plan, name).reshape(rows, -1) for name, _ in _layout(dims)]
    body += [getattr(plan, name).reshape(rows, -1).astype(np.float64) for name in _WORDS]
    table = np.concatenate(body, axis=1).astype("<f8")
    note = dump_note(plan.note).encode()
    if len(note) > NOTE_CAP:
        raise PlanError(f"save: the note takes {len(note)} bytes; {NOTE_CAP} are accepted")
    sizes = (VERSION, HEADER.size, *(dims[k] for k in "RSGLKE"), table.shape[1], 0)
    head = HEADER.pack(MAGIC, *sizes, len(note), b"")[:-32]
    rest = table.tobytes() + note
    return head + hashlib.sha256(head + rest).digest() + rest


def decode(data: bytes, cls: type[Plan]) -> Plan:
    """A plan from the bytes of a .fsplan file; every size is bounded before anything is
    allocated.
    """
    if len(data) < HEADER.size:
        raise PlanError(
            f"load: {len(data)} bytes are fewer than the header's {HEADER.size}; the file is cut "
            "short or not a plan"
        )
    magic, version, header, R, S, G, L, K, E, width, zero, note_bytes, digest = HEADER.unpack_from(
        data
    )
    if magic != MAGIC:
        raise PlanError(
            f"load: the file starts with {data[:8].hex()}; a plan file starts with {MAGIC.hex()}"
        )
    if version != VERSION or header != HEADER.size or zero != 0:
        raise PlanError(
            f"load: version {version} with a header of {header} bytes; version {VERSION} with "
            f"{HEADER.size} is read here"
        )
    dims = dict(R=R, S=S, G=G, L=L, K=K, E=E)
    for name, size in dims.items():
        if size > CAPS[name]:
            raise PlanError(f"load: {name}={size} in the header; at most {CAPS[name]} is accepted")
    floats = _float_width(dims)
    if width != floats + 6 + L:
        raise PlanError(
            f"load: {width} numbers per row in the header; its sizes give {floats + 6 + L}"
        )
    rest = len(data) - HEADER.size
    if (
        note_bytes > NOTE_CAP
        or note_bytes > rest
        or (rest - note_bytes) // (8 * width) != R
        or (rest - note_bytes) % (8 * width)
    ):
        raise PlanError(
            f"load: the header announces {R} rows of {width} numbers and a note of {note_bytes} "
            f"bytes; {rest} bytes follow"
        )
    if hashlib.sha256(data[: HEADER.size - 32] + data[HEADER.size :]).digest() != digest:
        raise PlanError(
            "load: the checksum does not match; the file was damaged, fetch or make it again"
        )
    table = np.frombuffer(data, "<f8", R * width, HEADER.size).reshape(R, width)
    return _assemble(table, dims, floats, load_note(data[len(data) - note_bytes :], "load"), cls)


def _assemble(
    table: np.ndarray, dims: dict[str, int], floats: int, note: dict, cls: type[Plan]
) -> Plan:
    arrays, at = {}, 0
    for name, shape in _layout(dims):
        size = math.prod(shape)
        arrays[name] = table[:, at : at + size].reshape(dims["R"], *shape)
        at += size
    words = table[:, floats:]
    whole = np.where(np.isfinite(words), words, -2.0)
    if (
        (whole != np.floor(whole)).any()
        or (np.abs(whole) >= 2.0**53).any()
        or not np.isfinite(words).all()
    ):
        raise PlanError(
            "load: a word of a row is not a whole number; the file is not a plan this version wrote"
        )
    words = whole.astype(np.int64)
    for k, name in enumerate(("reads", "branches", "known_reads")):
        arrays[name] = words[:, k]
    arrays |= {"dst": words[:, 3:5], "call": words[:, 5], "ids": words[:, 6:]}
    return cls(**arrays, note=note)


def save(plan: Plan, path: Any) -> None:
    """Write the .fsplan file, whole or not at all."""
    files.write_whole(path, encode(plan))


def load(path: Any, cls: type[Plan]) -> Plan:
    """Read at most as much as the longest plan has: a pipe or a device tells no size beforehand."""
    longest = HEADER.size + NOTE_CAP + 8 * CAPS["R"] * (_float_width(CAPS) + 6 + CAPS["L"])
    name = files.named(path, "load")
    with open(name, "rb") as file:
        data = file.read(HEADER.size)
        if data[: len(MAGIC)] == MAGIC:
            data += file.read(longest + 1 - len(data))
    if len(data) > longest:
        raise PlanError(f"load: {name} has more than {longest} bytes; no plan is longer")
    return decode(data, cls)


# -- JSON ------------------------------------------------------------------------------------------
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
        value = json.loads(
            data.decode("utf-8"),
            parse_constant=refuse,
            parse_float=finite,
            object_pairs_hook=unique,
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
    depth = deepest = 0
    quoted = escaped = False
    for byte in data:
        if quoted:
            quoted, escaped = (byte != 0x22 or escaped), (byte == 0x5C and not escaped)
        elif byte == 0x22:
            quoted = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


def to_json(plan: Plan) -> str:
    """The plan as JSON: {"fastsample_plan": 1, "note": {...}, "M": [...], ...}. Numbers round-trip
    exactly.
    """
    names = [name for name, _ in _layout(plan.dims)] + list(_WORDS)
    arrays = {name: getattr(plan, name).tolist() for name in names}
    return dump_note({"fastsample_plan": VERSION, "dims": plan.dims, "note": plan.note, **arrays})


def from_json(text: str, cls: type[Plan]) -> Plan:
    if not isinstance(text, str) or len(text) > JSON_CAP:
        given = f"{len(text)} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise PlanError(f"from_json: {given}; a str of at most {JSON_CAP} characters is accepted")
    value = load_note(text.encode("utf-8", "surrogatepass"), "from_json")
    names = {name for name, _ in _layout(CAPS)} | set(_WORDS)
    if value.pop("fastsample_plan", None) != VERSION or set(value) != names | {"dims", "note"}:
        raise PlanError(
            f"from_json: keys are {sorted(value)[:20]}; those of a version {VERSION} plan are "
            "needed"
        )
    dims, note = value.pop("dims"), value.pop("note")
    if (
        not isinstance(dims, dict)
        or set(dims) != set(CAPS)
        or any(type(v) is not int or not 0 <= v <= CAPS[k] for k, v in dims.items())
    ):
        raise PlanError(f"from_json: dims are {dims}; R, S, G, L, K, E within {CAPS} are needed")
    shapes = dict(_layout(dims)) | {"dst": (2,), "ids": (dims["L"],)}
    arrays = {n: _array(n, value[n], (dims["R"], *shapes.get(n, ()))) for n in names}
    return cls(**arrays, note=note)


def _array(name: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A JSON array of numbers as an array of the given shape (an empty axis has no numbers to
    nest).
    """
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise PlanError(
            f"from_json: {name} is not a regular array of numbers; shape {list(shape)} is needed"
        ) from None
    if array.size != math.prod(shape):
        raise PlanError(
            f"from_json: {name} holds {array.size} numbers; shape {list(shape)} is needed"
        )
    if name in _WORDS and ((array != np.floor(array)).any() or (np.abs(array) >= 2.0**53).any()):
        raise PlanError(
            f"from_json: {name} holds a number that is not whole; words of a row are integers"
        )
    return array.reshape(shape).astype(np.int64 if name in _WORDS else np.float64)


# -- readable --------------------------------------------------------------------------------------
def printable(value: Any) -> str:
    """Text with control and non-printing characters escaped: a note comes from a file, and a
    terminal obeys what it prints.
    """
    escaped = lambda ch: ch if ch.isprintable() else ch.encode("unicode_escape").decode()
    return "".join(map(escaped, str(value)))


def describe(plan: Plan) -> str:
    """The plan as a readable table: the note's lines, then a line per row."""
    silent = {"clip": 0, "inpaint": False, "consistent": True}
    note = {
        k: v
        for k, v in plan.note.items()
        if v not in (None, [], {}) and not (k in silent and v == silent[k])
    }
    sizes = f"{plan.nfe} evaluations, {plan.rows} rows, {plan.S} slots, {plan.G} branches"
    lines = [f"Plan  {printable(note.pop('solver', 'unnamed'))}   {sizes}"]
    lines += [f"  {printable(k):14s} {_short(v)}" for k, v in sorted(note.items())]
    if plan.sigma[0]:
        lines.append(
            f"  {'init_scale':14s} {plan.init_scale:.6g} (row 0 multiplies unit noise by it)"
        )
    lines.append(
        f"  {'consistency':14s} {plan.consistency():.1e} (largest departure from the schedule with "
        "exact predictions)"
    )
    lines.append(
        f"  {'row':>4} {'model':>5} {'time':>10} {'alpha':>9} {'sigma':>9} {'log a/s':>8}   update"
    )
    times = np.concatenate([[np.nan], plan.t[:-1, 0]])
    for i in range(plan.rows):
        a, s = plan.alpha[i], plan.sigma[i]
        log = "inf" if s == 0 else "-inf" if a == 0 else f"{math.log(a) - math.log(s):.3f}"
        call, time = "-", "-"
        if plan.call[i] >= 0:
            call, time = str(plan.call[i]), f"{times[i]:.5g}"
        head = f"  {i:4d} {call:>5} {time:>10} {a:9.5f} {s:9.5f} {log:>8}"
        lines.append(f"{head}   {_update(plan, i)}")
    return "\n".join(lines)


def _update(plan: Plan, i: int) -> str:
    parts = []
    for name, o in (("x", 0), *((f"r{d}", 1 + k) for k, d in enumerate(plan.dst[i]) if d >= 0)):
        terms = [
            f"{plan.M[i, o, k]:+.5g} {plan.operand(k)}"
            for k in range(plan.W)
            if (plan.reads[i] >> k) & 1 and plan.M[i, o, k]
        ]
        parts.append(f"{name} = {' '.join(terms) or '0'}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    text = printable(dump_note(value) if isinstance(value, dict) else value)
    return text if len(text) <= 150 else text[:147] + "..."
