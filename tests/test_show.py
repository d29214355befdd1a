"""fastsample show: a plan drawn, two side by side, its levels alone, and what is refused."""

import io
import os
import struct
import sys

import pytest

import fastsample as fs
from fastsample import cli
from fastsample.report import terminal

FLOW = fs.schedules.Flow()


def plan(n=3, solver="euler"):
    return fs.solvers.SOLVERS[solver](FLOW, fs.grids.uniform(FLOW, n), prediction="flow")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan().save("a.fsplan")
    return tmp_path


def shown(capsys, *words):
    assert cli.main(["show", *words]) == 0
    return capsys.readouterr().out


def test_bars_are_as_long_as_the_logarithm_of_the_level():
    """Levels inf, 2 and .5 on a bar of 80 cells: its ends are 4 % from the axis' own."""
    text = terminal.bars({"a": plan()}, blocks=False, width=80 + 10 + 2 + 11 + 2)
    lines = text.splitlines()
    assert lines[0] == "evaluation  sigma/alpha"
    assert [line.split()[:2] for line in lines[1:]] == [["1", "inf"], ["2", "2"], ["3", "0.5"]]
    assert [line.count("#") for line in lines[1:]] == [80, 77, 3]
    blocks = terminal.bars({"a": plan()}, blocks=True, width=105).splitlines()
    assert [line.count("█") for line in blocks[1:]] == [80, 76, 3]
    assert blocks[2].endswith("▊") and blocks[3].endswith("▎")  # 76.8 and 3.2 cells


def test_a_terminal_without_utf8_gets_plain_ascii(here, monkeypatch):
    """Also where a note holds what it has not."""
    plan().with_note(remark="é").save("b.fsplan")
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["show", "b.fsplan"]) == 0
    out.flush()
    said = out.buffer.getvalue().decode("ascii")
    assert "\\xe9" in said and "###" in said


def test_two_plans_of_one_program(here, capsys):
    other = fs.solvers.euler(FLOW, [1.0, 0.5, 0.25, 0.0], prediction="flow")
    other.save("b.fsplan")
    said = shown(capsys, "a.fsplan", "b.fsplan", "--picture", "p.png")
    assert "a  a.fsplan: Plan(euler, nfe=3" in said and "b  b.fsplan: Plan(euler" in said
    assert "program  the same: one compiled or captured graph runs both" in said
    assert "note     grid: [1.0, 0.666" in said and "solver" not in said
    # x' = x + (s' - s) m: of the first step -1/3 and -1/2, and its t, alpha and sigma of row 2
    rows = {line.split()[0]: line for line in said.splitlines() if line[:1].isdecimal()}
    assert rows["1"].split()[1:5] == ["M", "0.167,", "t", "0.167"]
    assert "alpha 0.167, sigma 0.167" in rows["2"] and "5" not in rows
    assert [line.split()[-2] for line in said.splitlines() if "█" in line] == [
        *("inf", "inf", "2", "1", "0.5", "0.3333")
    ]
    assert (here / "p.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_has_any_name_as_it_stands(here, capsys):
    """No formula, no label that is kept back, none that UTF-8 has not, and none as long as a file's
    note may make it.
    """
    names = [r"_$\\frac$.fsplan", os.fsdecode(b"\xff.fsplan")]
    for name in names:
        plan().with_note(solver="$x_" + 50_000 * "y").save(name)
    for words in (names, names[:1]):
        shown(capsys, *words, "--picture", "p.png")
        wide, _ = struct.unpack(">II", (here / "p.png").read_bytes()[16:24])
        assert wide < 2_000
    assert max(map(len, shown(capsys, names[0]).splitlines())) < 200


@pytest.mark.parametrize(
    "other, words",
    [
        (plan(), "every number is the same"),
        (plan(4), "different: 3 evaluations in 5 rows with 0 slots | 4 evaluations in 6 rows"),
        (plan(4), "5    b alone has it"),
        (plan().padded(S=2, L=1), "the same once padded to S=2, L=1"),
        (plan(3, "euler_ancestral"), "operands"),
    ],
    ids=["same", "longer", "alone", "padded", "operands"],
)
def test_two_plans_by_their_structure(here, capsys, other, words):
    other.save("b.fsplan")
    assert words in shown(capsys, "a.fsplan", "b.fsplan")


def test_its_levels_alone(here, capsys):
    assert shown(capsys, "a.fsplan", "--sigmas") == "1.0,0.666666666666667,0.333333333333333,0.0\n"


@pytest.mark.parametrize(
    "line, words",
    [
        ("a.fsplan b.fsplan", "b.fsplan: No such file"),
        ("a.fsplan a.fsplan --json", "--json beside a.fsplan; it is accepted alone"),
        ("a.fsplan a.fsplan --sigmas", "--sigmas beside a.fsplan"),
        ("a.fsplan --json --sigmas", "--json beside --sigmas"),
        ("a.fsplan --picture p.svg", "--picture p.svg: a .png file is accepted"),
        ("a.fsplan --picture no/folder/p.png", "no/folder"),
        ("solvers --sigmas", "--sigmas belongs to a plan"),
        ("solvers hoin", "hoin: no solver; one of "),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_shown(here, capsys, line, words):
    before = sorted(os.listdir())
    assert cli.main(["show", *line.split()]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert said.err.startswith("fastsample show: ") and sorted(os.listdir()) == before
