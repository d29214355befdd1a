"""The forms of a Plan outside memory: kernel records, the .fsplan file and JSON.

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
import struct
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files
from .note import dump_note, load_note
from .row import CAPS, FIELDS, FLOATS, INTS, READS_SPLIT, Layout, PlanError

if TYPE_CHECKING:
    from .plan import Plan

MAGIC = b"\x89FSPLAN\n"
VERSION = 1
HEADER = struct.Struct("<8s10IQ32s")
NOTE_CAP = 1 << 20
JSON_CAP = 64 << 20


def table(plan: Plan, dtype: type | str = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """The rows as kernels read them: (numbers [R, WF] of `dtype`, words [R, 7+L] int32), rounded
    once; noise ids are the bits of a uint32. Layout: csrc/core/row.h.
    """
    if dtype not in (np.float32, np.float64, "float32", "float64"):
        raise PlanError(f"table: dtype {dtype!r} is not a state dtype; float32 and float64 are")
    with np.errstate(over="ignore"):
        numbers = _joined(plan, FLOATS).astype(dtype)
    if not np.isfinite(numbers).all():
        raise PlanError(
            f"table: a coefficient is beyond the range of {np.dtype(dtype)}; use a float64 state"
        )
    reads, *others = INTS
    words = np.column_stack([plan.reads, plan.reads >> READS_SPLIT, _joined(plan, others)])
    words[:, 0] &= (1 << READS_SPLIT) - 1
    return numbers, (words & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


def _joined(plan: Plan, fields: tuple | list) -> np.ndarray:
    """The numbers of these fields, a row of the plan in a row."""
    arrays = [getattr(plan, field.name).reshape(plan.rows, -1) for field in fields]
    return np.concatenate(arrays, axis=1)


def _width(layout: Layout) -> int:
    """Numbers of a row in the file, where `reads` is one."""
    return sum(prod(layout.shape(field)) for field in FIELDS)


# -- .fsplan ---------------------------------------------------------------------------------------
def to_bytes(plan: Plan) -> bytes:
    """The plan as the bytes of a .fsplan file."""
    rows = _joined(plan, FIELDS).astype("<f8")
    note = dump_note(plan.note).encode()
    if len(note) > NOTE_CAP:
        raise PlanError(f"save: the note takes {len(note)} bytes; {NOTE_CAP} are accepted")
    sizes = (VERSION, HEADER.size, *plan.dims.values(), rows.shape[1], 0)
    head = HEADER.pack(MAGIC, *sizes, len(note), b"")[:-32]
    rest = rows.tobytes() + note
    return head + hashlib.sha256(head + rest).digest() + rest


def digest(plan: Plan) -> str:
    """SHA-256 in the header of the plan's file, in hexadecimal."""
    return to_bytes(plan)[HEADER.size - 32 : HEADER.size].hex()


def from_bytes(cls: type[Plan], data: bytes | bytearray | memoryview) -> Plan:
    """A plan from the bytes of a .fsplan file; sizes are bounded before anything is allocated."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise PlanError(f"load: a {type(data).__name__}; the bytes of a .fsplan file are accepted")
    data = bytes(data)
    if len(data) < HEADER.size:
        raise PlanError(
            f"load: {len(data)} bytes are fewer than the header's {HEADER.size}; the file is cut "
            "short or not a plan"
        )
    magic, version, header, R, *sizes, width, zero, note_bytes, seal = HEADER.unpack_from(data)
    if magic != MAGIC:
        raise PlanError(
            f"load: the file starts with {data[:8].hex()}; a plan file starts with {MAGIC.hex()}"
        )
    if version != VERSION or header != HEADER.size or zero != 0:
        raise PlanError(
            f"load: version {version} with a header of {header} bytes; version {VERSION} with "
            f"{HEADER.size} is read here"
        )
    layout = Layout(*sizes)
    for name, size in {"R": R, **layout._asdict()}.items():
        if size > CAPS[name]:
            raise PlanError(f"load: {name}={size} in the header; at most {CAPS[name]} is accepted")
    if width != _width(layout):
        raise PlanError(
            f"load: {width} numbers per row in the header; its sizes give {_width(layout)}"
        )
    rest = len(data) - HEADER.size
    if note_bytes > NOTE_CAP or rest != 8 * R * width + note_bytes:
        raise PlanError(
            f"load: the header announces {R} rows of {width} numbers and a note of {note_bytes} "
            f"bytes; {rest} bytes follow"
        )
    if hashlib.sha256(data[: HEADER.size - 32] + data[HEADER.size :]).digest() != seal:
        raise PlanError(
            "load: the checksum does not match; the file was damaged, fetch or make it again"
        )
    rows = np.frombuffer(data, "<f8", R * width, HEADER.size).reshape(R, width)
    arrays, at = {}, 0
    for field in FIELDS:
        shape = layout.shape(field)
        arrays[field.name] = rows[:, at : at + prod(shape)].reshape(R, *shape)
        at += prod(shape)
    return cls(**arrays, note=load_note(data[len(data) - note_bytes :], "load"))


def save(plan: Plan, path: Any) -> None:
    """Write the .fsplan file, whole or not at all."""
    files.write_whole(path, to_bytes(plan))


def load(cls: type[Plan], path: Any) -> Plan:
    """Read a .fsplan file; PlanError, one sentence, for anything but a sound one."""
    # no more than the longest plan has: a pipe or a device tells no size beforehand
    most = Layout(*(CAPS[axis] for axis in Layout._fields))
    longest = HEADER.size + NOTE_CAP + 8 * CAPS["R"] * _width(most)
    name = files.named(path, "load")
    with open(name, "rb") as file:
        data = file.read(HEADER.size)
        if data[: len(MAGIC)] == MAGIC:
            data += file.read(longest + 1 - len(data))
    if len(data) > longest:
        raise PlanError(f"load: {name} has more than {longest} bytes; no plan is longer")
    return from_bytes(cls, data)


# -- JSON ------------------------------------------------------------------------------------------
def to_json(plan: Plan) -> str:
    """The plan as JSON: {"fastsample_plan": 1, "note": {...}, "M": [...], ...}, numbers exact."""
    arrays = {name: array.tolist() for name, array in plan.numbers().items()}
    return dump_note({"fastsample_plan": VERSION, "dims": plan.dims, "note": plan.note, **arrays})


def from_json(cls: type[Plan], text: str) -> Plan:
    """The plan that to_json wrote; PlanError, one sentence, for anything else."""
    if not isinstance(text, str) or len(text) > JSON_CAP:
        given = f"{len(text)} characters" if isinstance(text, str) else f"a {type(text).__name__}"
        raise PlanError(f"from_json: {given}; a str of at most {JSON_CAP} characters is accepted")
    value = load_note(text.encode("utf-8", "surrogatepass"), "from_json")
    names = {field.name for field in FIELDS}
    if value.pop("fastsample_plan", None) != VERSION or set(value) != names | {"dims", "note"}:
        raise PlanError(
            f"from_json: keys are {sorted(value)[:20]}; those of a version {VERSION} plan are "
            "needed"
        )
    dims, note = value.pop("dims"), value.pop("note")
    known = isinstance(dims, dict) and set(dims) == set(CAPS)
    if not known or any(type(v) is not int or not 0 <= v <= CAPS[k] for k, v in dims.items()):
        raise PlanError(f"from_json: dims are {dims}; R, S, G, L, K, E within {CAPS} are needed")
    R, layout, arrays = dims["R"], Layout(*(dims[axis] for axis in Layout._fields)), {}
    for field in FIELDS:
        array, shape = field.array(value[field.name], "from_json"), (R, *layout.shape(field))
        if array.size != prod(shape):
            raise PlanError(
                f"from_json: {field.name} holds {array.size} numbers; shape {list(shape)} is needed"
            )
        # an empty axis has no numbers to nest
        arrays[field.name] = array.reshape(shape)
    return cls(**arrays, note=note)
