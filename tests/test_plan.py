"""The Plan: its checks, its facts, its file. Every refusal is one sentence, and a damaged file is
never read.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from interpreter import run

from fastsample.plan import Plan, PlanError


def small_plan(**changes) -> Plan:
    """Two evaluations by hand: DDIM from sigma 4 to 1, then a 2nd-order row from 1 to 0.5 that
    reads a slot and draws noise (alpha = 1).
    """
    R, S, G, L, K = 4, 1, 1, 1, 0
    W = 3 + S + G + L  # x r0 m f f0 n0
    M = np.zeros((R, 3, W))
    M[0, 0, 0] = 4.0
    M[1, 0, [0, 2]] = 0.25, 0.75
    M[1, 1, 2] = 1.0
    M[2, 0, [0, 1, 2, 5]] = 0.4, -0.1, 0.7, 0.3
    M[3, 0, 0] = 1.0
    arrays = dict(
        M=M,
        p=[0, 0, 0, 0],
        q=[0, 1, 1, 0],
        clip=[0, 0, 2.5, 0],
        U=np.ones((R, G)),
        V=np.zeros((R, G, K)),
        known=np.zeros((R, 1 + L)),
        c=[0.5, 0.7, 1, 1],
        t=[[4.0], [1.0], [1.0], [1.0]],
        preview=[[0, 0], [0, 1], [0, 1], [1, 0]],
        alpha=[0, 1, 1, 1],
        sigma=[1, 4, 1, 0.5],
        reads=[0b1, 0b101, 0b100111, 0b1],
        branches=[0, 1, 1, 0],
        known_reads=np.zeros(R),
        dst=[[-1, -1], [0, -1], [-1, -1], [-1, -1]],
        call=[-1, 0, 0, -1],
        ids=[[-1], [-1], [2], [-1]],
        note={"solver": "by hand", "stored": "x0"},
    )
    return Plan(**{**arrays, **changes})


def test_facts():
    plan = small_plan()
    assert (plan.rows, plan.S, plan.G, plan.L, plan.K, plan.E, plan.nfe) == (4, 1, 1, 1, 0, 1, 2)
    assert plan.entries == (0, 1)  # row 2 reads what row 1 kept
    assert [plan.operand(k) for k in range(plan.W)] == ["x", "r0", "m", "f", "f0", "n0"]
    assert (
        hash(plan.program) == hash(small_plan(c=[0.1, 0.2, 1, 1]).program)
        and plan.program == small_plan(c=[0.1, 0.2, 1, 1]).program
    )
    assert plan.program != small_plan(clip=[0, 0, 0, 0]).program


def test_consistency_of_a_hand_made_plan():
    plan = small_plan()  # row 2: x0 weight 0.4 - 0.1 + 0.7 = 1; noise sqrt(0.4^2 + 0.3^2) = 0.5
    assert plan.consistency() < 1e-15
    M = plan.M.copy()
    M[2, 0, 1] = -0.2
    assert small_plan(M=M).consistency() == pytest.approx(0.1 / 1.5)


def test_facts_of_a_wild_table_are_numbers():
    """A sound file may hold any finite numbers; what is printed of it must not be a traceback or a
    warning.
    """
    wild = small_plan(
        note={"stored": "flow"},
        sigma=[1, 4, 0, 0.5],
        alpha=[0, 1, 1, 1e-300],
        p=[0, 1e308, 1e308, 0],
    )
    assert wild.consistency() == np.inf and "log a/s" in wild.describe()


def test_arrays_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        small_plan().M[0, 0, 0] = 1.0


def test_table_layout():
    plan = small_plan()
    numbers, words = plan.table(np.float32)
    W = plan.W
    assert numbers.dtype == np.float32 and words.dtype == np.int32
    assert numbers.shape == (4, 3 * W + 3 + 1 + 0 + 2 + 1 + 1 + 2 + 2) and words.shape == (4, 8)
    assert (
        numbers[2, :W].tolist() == np.float32([0.4, -0.1, 0.7, 0, 0, 0.3]).tolist()
        and numbers[2, 3 * W + 2] == 2.5
    )
    assert numbers[2, -2:].tolist() == [1, 1]
    assert words[2].tolist() == [0b100111, 0, 1, 0, -1, -1, 0, 2] and words[1].tolist() == [
        0b101,
        0,
        1,
        0,
        0,
        -1,
        0,
        -1,
    ]
    with pytest.raises(PlanError, match="beyond the range of float32"):
        small_plan(c=[1e300, 1, 1, 1]).table(np.float32)
    for wrong in (np.float16, "abc", 3):
        with pytest.raises(PlanError, match="is not a state dtype"):
            plan.table(wrong)


def test_padding_changes_nothing_a_run_sees():
    plan = small_plan()
    wide = plan.padded(S=3, G=2, L=2, K=1, E=2)
    assert (wide.S, wide.G, wide.L, wide.K, wide.E) == (
        3,
        2,
        2,
        1,
        2,
    ) and wide.entries == plan.entries
    x, noise = np.linspace(-2, 2, 9), lambda k: np.cos(np.arange(9.0) * k)
    model = lambda x, t, i, call: [np.tanh(x) * t[0]]
    both = lambda x, t, i, call: [np.tanh(x) * t[0], None]
    assert np.array_equal(run(plan, x, model, noise), run(wide, x, both, noise))
    with pytest.raises(PlanError, match="S=0 is less"):
        plan.padded(S=0)
    with pytest.raises(PlanError, match="R given"):
        plan.padded(R=30)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (dict(c=[0.5, np.nan, 1, 1]), r"c\[1\] is nan"),
        (dict(p=[0, 0, np.inf, 0]), r"p\[2\] is inf"),
        (dict(p=[0, 0, 0]), r"p has shape \[3\]; \[4\] is needed"),
        (dict(reads=[1, 0b101, 0b100111, 0b11]), "must hold"),
        (dict(reads=[1, 0b111, 0b100111, 1]), "row 1 reads slot 0 that no earlier row wrote"),
        (dict(reads=[1, 0b101, 0b1100111, 1]), "reads holds 103"),
        (dict(ids=[[-1], [-1], [-1], [-1]]), "row 2 reads a noise that has no id"),
        (dict(ids=[[-1], [-1], [2**32], [-1]]), "ids holds 4294967296"),
        (dict(dst=[[-1, -1], [1, -1], [-1, -1], [-1, -1]]), "dst holds 1"),
        (dict(dst=[[-1, -1], [0, 0], [-1, -1], [-1, -1]]), "writes slot 0 twice"),
        (dict(call=[0, 0, 0, -1]), "first and the last row call no model"),
        (dict(clip=[0, 0, -1, 0]), "negative"),
        (dict(note=[]), "note is a list"),
        (dict(note={"stored": [1]}), r"stored kind is \[1\]"),
        (dict(note={"stored": "noise"}), "stored kind is 'noise'"),
        (dict(M=np.zeros((4, 3))), "M and V must have 3"),
    ],
)
def test_unsound_plans_are_refused(changes, sentence):
    with pytest.raises(PlanError, match=sentence):
        small_plan(**changes)


# -- file ------------------------------------------------------------------------------------------
def same(a: Plan, b: Plan) -> bool:
    arrays = [k for k, v in vars(a).items() if isinstance(v, np.ndarray)]
    return (
        len(arrays) == 18
        and all(np.array_equal(getattr(a, k), getattr(b, k)) for k in arrays)
        and a.note == b.note
    )


def test_file_and_json_round_trip(tmp_path):
    plan = small_plan(
        note={
            "solver": "by hand",
            "citations": ["Søren, 2020"],
            "nested": {"a": [1, 2.5, None, True]},
            "brackets": ["[" * 40, '"' + "{" * 40, "\\", "[" * 40 + '\\"', "]" * 40],
            "deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
        }
    )
    path = tmp_path / "mine.fsplan"
    plan.save(path)
    assert (
        same(Plan.load(path), plan)
        and path.read_bytes() == plan.to_bytes() == Plan.from_bytes(plan.to_bytes()).to_bytes()
    )
    assert same(Plan.from_json(plan.to_json()), plan)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.fsplan"]


def test_save_and_load_name_the_path_and_read_within_bounds(tmp_path):
    for wrong in (tmp_path, tmp_path / "none" / "mine.fsplan"):
        with pytest.raises(FileNotFoundError, match=f"save: {wrong} is a folder, or lies in none"):
            small_plan().save(wrong)
    with pytest.raises(PlanError, match="a plan file starts with"):
        Plan.load("/dev/zero")  # endless: a reader that trusts a size would not come back
    for wrong in (None, b"{}", 3):
        with pytest.raises(PlanError, match="from_json: a "):
            Plan.from_json(wrong)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "mine.fsplan"
    small_plan().save(path)
    before = path.read_bytes()

    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        small_plan(note={"solver": "other"}).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["mine.fsplan"]
    with pytest.raises(PlanError, match="note: "):
        small_plan(note={"f": float("nan")}).save(path)
    assert path.read_bytes() == before


def test_a_file_cut_at_every_byte_is_refused():
    data = small_plan().to_bytes()
    for n in range(len(data)):
        with pytest.raises(PlanError):
            Plan.from_bytes(data[:n])
    with pytest.raises(PlanError, match="bytes follow"):
        Plan.from_bytes(data + b"\0")


def test_a_file_with_any_bit_flipped_is_refused():
    data = small_plan().to_bytes()
    for at in range(len(data)):
        for bit in range(8):
            bad = bytearray(data)
            bad[at] ^= 1 << bit
            with pytest.raises(PlanError):
                Plan.from_bytes(bytes(bad))


def sealed(data: bytearray) -> bytes:
    """The bytes with a digest that matches: what is refused then is refused for what it says."""
    import hashlib

    data[56:88] = hashlib.sha256(bytes(data[:56] + data[88:])).digest()
    return bytes(data)


@pytest.mark.parametrize(
    "at, value, sentence",
    [
        (88, np.float64(np.nan), r"M\[0, 0, 0\] is nan"),
        (88 + 8 * 30, np.float64(0.5), "not a whole number"),
        (88 + 8 * 30, np.float64(np.inf), "not a whole number"),
        (88 + 8 * 30, np.float64(2.0**60), "not a whole number"),
        (16, np.uint32(3), "announces 3 rows"),
        (16, np.uint32(2**31), "R=2147483648"),
        (20, np.uint32(25), "S=25"),
        (40, np.uint32(7), "7 numbers per row"),
        (48, np.uint64(2**63), "note of 9223372036854775808 bytes"),
    ],
)
def test_a_sealed_but_wrong_file_is_refused(at, value, sentence):
    data = bytearray(small_plan().to_bytes())
    data[at : at + value.nbytes] = value.tobytes()
    with pytest.raises(PlanError, match=sentence):
        Plan.from_bytes(sealed(data))


@pytest.mark.parametrize(
    "note, sentence",
    [
        (b'{"a":NaN}', "NaN"),
        (b'{"a":1e999}', "1e999"),
        (b'{"a":-Infinity}', "Infinity"),
        (b'{"a":1,"a":2}', "repeats a key"),
        (b"[1]", "is a list"),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", "nested"),
        (b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", "nested"),
        (b'{"a":"\\\\","b":' + b"[" * 40, "nested"),
        (b'{"\\"]]]]]]]]":' + b"[" * 40, "nested"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\\ud800"}', "UTF-8"),
        (b"{", "not sound"),
        (b'{"a":' + b"9" * 5000 + b"}", "not sound"),
    ],
)
def test_a_hostile_note_is_refused(note, sentence):
    data = bytearray(small_plan().to_bytes())
    length = int.from_bytes(data[48:56], "little")
    data = data[: len(data) - length] + note
    data[48:56] = len(note).to_bytes(8, "little")
    with pytest.raises(PlanError, match=sentence):
        Plan.from_bytes(sealed(data))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda d: d.pop("M"), "keys are"),
        (lambda d: d.update(extra=1), "keys are"),
        (lambda d: d.update(fastsample_plan=2), "keys are"),
        (lambda d: d["p"].append(1.0), "p holds 5 numbers"),
        (lambda d: d.update(p=["a", 1, 2, 3]), "not a regular array"),
        (lambda d: d.update(reads=[1, 5.5, 39, 1]), "not a whole number"),
        (lambda d: d["dims"].update(R=10**9), "dims are"),
    ],
)
def test_wrong_json_is_refused(change, sentence):
    value = json.loads(small_plan().to_json())
    change(value)
    with pytest.raises(PlanError, match=sentence):
        Plan.from_json(json.dumps(value))


@pytest.mark.parametrize(
    "text",
    ['{"a": NaN}', '{"p": [1e999]}', "", "[]", "null", '{"fastsample_plan": 1}', "[" * 100_000],
)
def test_text_that_is_no_plan_is_refused(text):
    with pytest.raises(PlanError, match="from_json: "):
        Plan.from_json(text)


def test_describe_escapes_what_a_terminal_would_obey():
    text = small_plan(
        note={"solver": "by \x1b[31mhand", "stored": "x0", "evil\x07": "\x1b]0;title\x07"}
    ).describe()
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[31mhand" in text
    assert "x = +0.4 x -0.1 r0 +0.7 m +0.3 n0" in text and "2 evaluations" in text
