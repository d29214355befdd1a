"""A plan's numbers by name, what makes two plans equal, and the note that cannot be changed."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreter import run
from test_plan import small_plan

import fastsample as fs
from fastsample.guidance import guided
from fastsample.plan import Plan, PlanError
from fastsample.plan.row import FIELDS, FLOATS

FLOW = fs.schedules.Flow(3.0)
MADE = fs.solvers.dpmpp_2m(FLOW, fs.grids.uniform(FLOW, 4), prediction="flow")


# -- numbers ---------------------------------------------------------------------------------------
def test_numbers_are_the_arrays_by_name():
    numbers = MADE.numbers()
    assert list(numbers) == [field.name for field in FIELDS]
    for field in FIELDS:
        array = numbers[field.name]
        assert array is getattr(MADE, field.name) and not array.flags.writeable
        assert array.dtype == (np.float64 if field.kind is float else np.int64)
    assert Plan(**numbers, note=MADE.note) == MADE == MADE.with_numbers(**numbers)


def changed_in(plan: Plan, name: str, where: tuple, value: float, **words) -> Plan:
    """The plan with one number changed, and whole arrays beside it."""
    array = plan.numbers()[name].copy()
    array[where] = value
    return plan.with_numbers(**{name: array}, **words)


@given(st.sampled_from([f for f in FLOATS if f.name != "V"]), st.data())
def test_one_number_is_replaced_and_nothing_else(field, data):
    """Any number that is read: that one changes, and the note says so. One that is not, and the
    last row, are refused.
    """
    old = MADE.numbers()[field.name]
    where = tuple(data.draw(st.integers(0, n - 1)) for n in old.shape)
    holds = field.name == "M" and where[0] == MADE.rows - 1
    unread = field.name == "M" and not MADE.program.rows[where[0]].reads_operand(where[2])
    unread |= field.name == "M" and where[1] > 0 and MADE.dst[where[0], where[1] - 1] < 0
    unread |= field.name == "known" or (field.name == "U" and not MADE.branches[where[0]])
    value = old[where] + 0.125
    if holds or (unread and old[where] == 0):
        with pytest.raises(PlanError):
            changed_in(MADE, field.name, where, value)
        return
    made = changed_in(MADE, field.name, where, value)
    for name, array in made.numbers().items():
        differs = np.argwhere(array != MADE.numbers()[name]).tolist()
        assert differs == ([list(where)] if name == field.name else [])
    if (field.name, where) == ("M", (0, 0, 0)):
        assert made.note == MADE.note and made.init_scale == MADE.init_scale + 0.125
        return
    assert made.note["changed"] == [field.name] and not {"order", "orders"} & made.note.keys()
    said = {k: v for k, v in MADE.note.items() if k not in ("order", "orders", "consistent")}
    assert {k: made.note[k] for k in said} == said
    assert made.note["consistent"] == (made.consistency() <= 1e-9)


@pytest.mark.parametrize(
    "name, where, words, widened",
    [
        ("M", (2, 0, 0), "reads", 0b100111),
        ("M", (1, 1, 4), "reads", 0b11101),
        ("M", (1, 0, 4), "reads", 0b11101),
        ("U", (0, 0), "branches", 1),
        ("known", (2, 1), "known_reads", 0b10),
    ],
)
def test_reads_stay_declared_and_are_widened_by_name(name, where, words, widened):
    """A coefficient whose operand is not read is refused with the word that would read it, which
    then is accepted.
    """
    plan = small_plan(reads=[1, 0b1101, 0b100110, 1], U=np.zeros((4, 1)), branches=[0, 1, 1, 0])
    zeroed = changed_in(plan, name, where, 0.0)
    sentence = (
        rf"with_numbers: {name}\[.*\] is 0.5 and row {where[0]} .* {words}= with {widened} in"
    )
    with pytest.raises(PlanError, match=sentence):
        changed_in(zeroed, name, where, 0.5)
    array = zeroed.numbers()[words].copy()
    array[where[0]] = widened
    made = changed_in(zeroed, name, where, 0.5, **{words: array})
    assert made.numbers()[name][where] == 0.5 and made.numbers()[words][where[0]] == widened
    # a coefficient that is there keeps its operand
    array[where[0]] = zeroed.numbers()[words][where[0]]
    with pytest.raises(PlanError, match=sentence):
        made.with_numbers(**{words: array})


def test_a_learned_coefficient_may_pass_through_zero():
    z, model = np.linspace(-2, 2, 5), lambda x, t, i, call: [np.tanh(x) + t[0]]
    none = changed_in(MADE, "M", (3, 0, MADE.layout.slot(0)), 0.0)
    assert (none.reads == MADE.reads).all() and none.note["changed"] == ["M"]
    back = none.with_numbers(M=MADE.M)
    assert np.array_equal(run(back, z, model), run(MADE, z, model))
    assert back.note["consistent"] is True and none.note["consistent"] is False


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"W": 3}, "with_numbers: W given; M, p, q, .* are accepted"),
        ({"p": [0.0]}, r"with_numbers: p has shape \[1\]; \[6\], as the plan has it, is accepted"),
        ({"p": "soon"}, r"with_numbers: p is not a regular array of numbers; shape \[R\]"),
        ({"call": [-1, 0, 0.5, 0, 0, -1]}, "with_numbers: call holds 0.5, not a whole number"),
        ({"c": [np.nan] * 6}, r"plan: c\[0\] is nan"),
        ({"reads": [1, 1, 1, 1, 1, 1]}, r"with_numbers: M\[1, .* does not read operand"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arrays, sentence):
    with pytest.raises(PlanError, match=sentence):
        MADE.with_numbers(**arrays)


def test_a_plan_of_other_numbers_has_no_remake_but_another_start_has():
    scaled = changed_in(MADE, "M", (0, 0, 0), 1.5)
    assert scaled.remake(None).init_scale == 1.5 and scaled.remake(2).note["start"] == 2
    with pytest.raises(ValueError, match=r"remake: \['c'\] of the plan are not the solver's"):
        changed_in(scaled, "c", (1,), 0.5).remake(2)


# -- guidance --------------------------------------------------------------------------------------
@given(
    st.sampled_from(["unipc", "heun", "dpmpp_2m_sde", "euler"]),
    st.integers(2, 8),
    st.none() | st.tuples(st.floats(-4, 0), st.floats(0.1, 4)),
    st.booleans(),
)
def test_unguided_gives_back_the_plan_that_was_guided(name, branches, interval, inpaint):
    grid = fs.grids.uniform(FLOW, 4)
    plan = fs.solvers.SOLVERS[name](FLOW, grid, prediction="v", inpaint=inpaint)
    made = guided(plan, branches, interval)
    assert made.unguided() == plan and made != plan
    assert made.with_note(found=3).unguided() == plan.with_note(found=3)
    assert made.padded(S=9, L=3).unguided() == plan.padded(S=9, L=3)
    assert Plan.from_bytes(made.to_bytes()).unguided() == plan


@pytest.mark.parametrize(
    "plan",
    [
        MADE,
        MADE.padded(G=2, K=1),
        MADE.with_note(guidance={"form": "linear", "branches": 2, "interval": None}),
        guided(MADE).padded(G=3),
        guided(MADE).with_note(guidance=None),
        guided(MADE).with_note(guidance={"branches": "two", "interval": 3}),
        changed_in(guided(MADE), "U", (2, 1), 0.5),
    ],
)
def test_unguided_refuses_what_guided_did_not_make(plan):
    with pytest.raises(PlanError, match="unguided: the plan's . branches and . scales are not"):
        plan.unguided()


# -- equality --------------------------------------------------------------------------------------
def test_equal_plans_are_one_key(tmp_path):
    path = tmp_path / "a.fsplan"
    MADE.save(path)
    one, two = Plan.load(path), Plan.load(path)
    assert one is not two and one == two == MADE and len({one: 1, two: 2, MADE: 3}) == 1
    assert one.sha256 == MADE.sha256 == path.read_bytes()[56:88].hex()
    assert MADE == Plan.from_json(MADE.to_json()) == pickle.loads(pickle.dumps(MADE))
    assert MADE is copy.deepcopy(MADE) is copy.copy(MADE)
    assert MADE != "plan" and MADE.with_note(seen=1) != MADE
    assert MADE.with_note(seen=1).sha256 != MADE.sha256


@given(st.sampled_from([f for f in FIELDS if f.name != "V"]), st.data())
def test_any_bit_makes_another_plan(field, data):
    """The smallest change of any number, the sign of a zero too."""
    plan = small_plan()
    array = plan.numbers()[field.name].copy()
    where = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    change = (lambda v: -v if v == 0 else np.nextafter(v, 9)) if field.kind is float else None
    array[where] = change(array[where]) if change else array[where] + 1
    try:
        other = small_plan(**{field.name: array})
    except PlanError:
        return
    assert other != plan and hash(other) != hash(plan) and other.sha256 != plan.sha256


def test_widths_alone_make_another_plan():
    assert MADE.padded(K=1) != MADE and MADE.padded() == MADE


# -- the note --------------------------------------------------------------------------------------
NOTE = {"a": [1, {"b": [2.5, None]}], "c": {"d": {}}, "e": (True, "x")}
CHANGES = {
    "item": lambda n: n.__setitem__("a", 1),
    "new item": lambda n: n.update(z=1),
    "joined": lambda n: n.__ior__({"z": 1}),
    "gone": lambda n: n.pop("a"),
    "deleted": lambda n: n.__delitem__("a"),
    "cleared": lambda n: n.clear(),
    "default": lambda n: n.setdefault("z", 1),
    "last": lambda n: n.popitem(),
    "in a list": lambda n: n["a"].append(1),
    "in a list's dict": lambda n: n["a"][1].__setitem__("b", 1),
    "in its list": lambda n: n["a"][1]["b"].__setitem__(0, 1),
    "in a dict": lambda n: n["c"]["d"].update(z=1),
    "in a tuple": lambda n: n["e"].extend([1]),
    "slices": lambda n: n["a"].__delitem__(slice(None)),
    "sorted": lambda n: n["e"].sort(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_note_is_read_only_at_any_depth(change):
    plan = small_plan(note=NOTE)
    before = json.dumps(plan.note)
    with pytest.raises(TypeError, match=r"read-only; plan.with_note\(key=value\) makes"):
        change(plan.note)
    assert json.dumps(plan.note) == before == json.dumps(NOTE)


def test_copies_of_a_note_are_plain_and_free():
    plan, own = small_plan(note=NOTE), json.loads(json.dumps(NOTE))
    given_dict = {"solver": "mine", "list": [1]}
    kept = small_plan(note=given_dict)
    given_dict["list"].append(2)  # the caller's own dict is not the plan's
    assert kept.note["list"] == [1]
    for again in (copy.deepcopy(plan.note), pickle.loads(pickle.dumps(plan.note))):
        assert again == own and type(again) is dict and type(again["a"][1]["b"]) is list
        again["a"][1]["b"].append(3)
    assert plan.note == own and dict(plan.note) == own and {**plan.note, "a": 1} == {**own, "a": 1}
    assert Plan.from_bytes(plan.to_bytes()).note == own
    endless: dict = {}
    endless["again"] = endless
    with pytest.raises(PlanError, match="note: it is nested without end; at most 32 levels"):
        small_plan(note=endless)
