"""The field table: a plan, its packed rows, its file and csrc/core/row.h have every number at the
place that it names.
"""

from __future__ import annotations

from dataclasses import fields
from math import prod

import numpy as np
from c import build, rows
from hypothesis import given
from hypothesis import strategies as st

from fastsample.plan import CAPS, Plan
from fastsample.plan.row import FIELDS, FLOATS, INTS, READS_SPLIT, Layout, blank, moved

EACH = {"S": (0, 24), "G": (1, 8), "L": (0, 8), "K": (0, 8), "E": (1, 4)}
layouts = st.builds(Layout, *(st.integers(*ends) for ends in EACH.values()))
# what row.h calls the offset of a field; alpha and sigma stand together there
OFFSETS = {"M": "0", "known": "ky()", "preview": "dx()", "sigma": "alpha() + 1"}
WORDS = {"reads": "ReadsLow", "branches": "Branches", "known_reads": "KnownReads", "dst": "Du"}
WORDS |= {"call": "Call", "ids": "Ids"}


def sound(layout: Layout, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays of a plan in which every number differs from its neighbours and every word is used."""
    arrays = blank(layout, 4)
    for field in FLOATS:
        arrays[field.name][:] = rng.uniform(0.5, 2.0, arrays[field.name].shape)
    for field in INTS:
        low, high = field.within(layout)
        arrays[field.name][1:-1] = rng.integers(low, high + 1, arrays[field.name][1:-1].shape)
    slots = (1 << layout.slot(layout.S)) - (1 << layout.slot(0))
    arrays["reads"] &= ~slots  # no slot is written before it would be read
    arrays["dst"][1:-1] = [[layout.S - 1, -1 if layout.S < 2 else 0]]
    arrays["ids"][1:-1] = rng.integers(0, 2**32, arrays["ids"][1:-1].shape)
    arrays["reads"][-1], arrays["M"][-1, 0, 0] = 1, 1.0
    return arrays


def test_a_plan_has_the_fields_in_their_order():
    assert [f.name for f in fields(Plan)] == [*(f.name for f in FIELDS), "note"]
    assert set(EACH) == set(CAPS) - {"R"} and list(EACH) == list(Layout._fields)
    assert all(CAPS[axis] == most for axis, (_, most) in EACH.items())


@given(layouts, st.integers(0, 2**32 - 1))
def test_every_number_is_packed_where_the_layout_says(layout, seed):
    """Each field by its name: in the float record or the words, in the file, in a wider plan."""
    plan = Plan(**sound(layout, np.random.default_rng(seed)), note={})
    assert plan.layout == layout
    numbers, words = plan.table(np.float64)
    assert numbers.shape == (4, layout.WF) and words.shape == (4, layout.WI)
    for field in FIELDS:
        width, at = prod(layout.shape(field)), layout.at(field.name)
        want = getattr(plan, field.name).reshape(4, -1)
        if field.name == "reads":
            low, high = words[:, at].astype(np.int64), words[:, at + 1].astype(np.int64)
            assert np.array_equal((low | high << READS_SPLIT)[:, None], want)
        elif field.kind is float:
            assert np.array_equal(numbers[:, at : at + width], want), field.name
        else:
            have = words[:, at : at + width]
            assert np.array_equal(have.view(np.uint32), want.astype(np.uint32)), field.name
    assert Plan.from_bytes(plan.to_bytes()).to_bytes() == plan.to_bytes()
    assert Plan.from_json(plan.to_json()).to_bytes() == plan.to_bytes()


@given(layouts, layouts, st.integers(0, 2**32 - 1))
def test_padding_moves_every_number_to_its_place(one, other, seed):
    """Column by column against the wider layout's own names; the rest is what blank says."""
    wide = Layout(*map(max, one, other))
    plan = Plan(**sound(one, np.random.default_rng(seed)), note={})
    padded = plan.padded(**wide._asdict())
    columns, empty = one.columns_in(wide), blank(wide, 4)
    for k, column in enumerate(columns):
        assert wide.operand(column) == one.operand(k)
        assert np.array_equal(padded.M[:, :, column], plan.M[:, :, k])
        assert np.array_equal(padded.reads >> column & 1, plan.reads >> k & 1)
    assert not (np.delete(padded.M, columns, 2)).any()
    back = moved(padded.reads, ((column, k) for k, column in enumerate(columns)))
    assert np.array_equal(back, plan.reads) and (padded.reads < 2**wide.W).all()
    for field in FIELDS:
        if field.name not in ("M", "reads"):
            old, new = getattr(plan, field.name), getattr(padded, field.name)
            inner = tuple(map(slice, old.shape))
            empty[field.name][inner] = old
            assert np.array_equal(new, empty[field.name]), field.name


@given(layouts)
def test_the_interpreter_of_packed_rows_agrees(layout):
    W, names, width = rows.offsets(*layout)
    assert (W, width) == (layout.W, layout.WF)
    names["alpha"], names["sigma"] = names["level"], names.pop("level") + 1
    assert names == {field.name: layout.at(field.name) for field in FLOATS}


def test_row_h_has_the_same_places(tmp_path):
    """Each offset, column and word of the C++ table is asserted while a file that includes it is
    compiled, for layouts in which no two sizes are alike.
    """
    lines = ['#include "core/row.h"']
    for layout in (Layout(2, 3, 5, 7, 4), Layout(24, 8, 7, 1, 2), Layout(0, 1, 2, 0, 3)):
        dims = f"fs::Dims{{{', '.join(map(str, layout))}}}"
        said = {OFFSETS.get(f.name, f"{f.name}()"): layout.at(f.name) for f in FLOATS}
        said |= {"W()": layout.W, "floats()": layout.WF, "ints()": layout.WI}
        said |= {"slot(1)": layout.slot(1), "m()": layout.m, "f()": layout.f}
        said |= {"branch(1)": layout.branch(1), "noise(2)": layout.noise(2)}
        assert said.pop("0") == 0  # M
        lines += [f'static_assert({dims}.{c} == {at}, "{c}");' for c, at in said.items()]
        words = {f"k{WORDS[f.name]}": layout.at(f.name) for f in INTS}
        words |= {"kReadsHigh": layout.at("reads") + 1, "kDv": layout.at("dst") + 1}
        words["kReadsSplit"] = READS_SPLIT
        lines += [f'static_assert(fs::{c} == {at}, "{c}");' for c, at in words.items()]
    source = tmp_path / "places.cpp"
    source.write_text("\n".join(lines))
    build.run("g++", "-std=c++17", "-fsyntax-only", f"-I{build.ROOT / 'csrc'}", source)
