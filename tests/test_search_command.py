"""fastsample optimize: the whole climb from the command line."""

import shlex

import pytest

import fastsample as fs
from fastsample import cli, metrics

MODEL = """
import numpy as np, torch, fastsample as fs
from fastsample.models import analytic

law = analytic.GaussianMixture(np.eye(3, 6) * 2 - 0.5, np.ones(3) / 3, 0.3)
asked = []

def make(fails=None):
    base = law.model(fs.schedules.Flow(3), "flow")
    def fn(x, t):
        asked.append(len(x))
        if fails is not None and sum(asked) > 5500:
            raise fails
        return base.fn(x, t)
    return fs.Model(fn, base.schedule, "flow", time=base.time, model_id="three")

def broken():
    return make(RuntimeError("the card is full"))

def interrupted():
    return make(KeyboardInterrupt())
"""
WORDS = "--shape 6 --samples 48 --held-out 8 --teacher 12 --beam 1 --seed 3"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metrics, "STARTS", (5.0,))
    (tmp_path / "climbing.py").write_text(MODEL)
    monkeypatch.delitem(__import__("sys").modules, "climbing", raising=False)
    return tmp_path


def call(line):
    try:
        return cli.main(shlex.split(line))
    except SystemExit as left:
        return left.code


def test_a_climb_writes_plans_page_and_figures(here, capsys):
    line = f"optimize --model climbing:make --budgets 2,3 {WORDS}"
    assert call(f"{line} --out plans") == 0
    said = capsys.readouterr().out
    files = sorted(path.name for path in (here / "plans").iterdir())
    named = ["checkpoint", "error_vs_evaluations.png", "plan-2.fsplan", "plan-3.fsplan"]
    assert files == [*named, "schedules.png", "search.csv", "search.html"]
    plan = fs.Plan.load("plans/plan-3.fsplan")
    found = plan.note["found"]
    row = next(line for line in said.splitlines() if "plans/plan-3.fsplan" in line)
    assert row.startswith(found["method"]) and f"{found['held_out']['psnr'][0]:.2f}" in row
    assert f"{found['held_out']['pooled']:.2f}" in row and "8 noises held out" in said
    page = (here / "plans/search.html").read_text()
    assert found["command"] in page
    # The command of the note makes the same plan again.
    assert found["command"].startswith("fastsample optimize ")
    again = found["command"].removeprefix("fastsample ")
    assert call(f"{again} --out again") == 0
    assert (here / "again/plan-3.fsplan").read_bytes() == (
        here / "plans/plan-3.fsplan"
    ).read_bytes()
    assert call("sample plans/plan-3.fsplan --model climbing:make --shape 6 --out a.npy") == 0


@pytest.mark.parametrize(
    "factory, code, words",
    [("broken", 2, "the card is full"), ("interrupted", 130, "interrupted; the same command goes")],
)
def test_what_was_found_is_written_when_it_is_cut(here, capsys, factory, code, words):
    line = f"optimize --budgets 2,3 {WORDS} --out plans"
    assert call(f"{line} --model climbing:{factory}") == code
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1
    assert "plans/plan-2.fsplan" in said.out and fs.Plan.load("plans/plan-3.fsplan").nfe == 3
    assert call(f"{line} --model climbing:make") == 0
    assert "polish" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, words",
    [
        ("--budgets 2 --budget 3", "--budget 3 beside --budgets"),
        ("--held-out 0", "--held-out 0; noise to judge the climb on"),
        ("--time-limit 0", "time_limit=0"),
        ("--device nowhere", "--device nowhere: "),
        ("--dtype int99", "--dtype int99: one of float32, float16, bf"),
        ("--rows sideways", "rows='sideways'"),
        ("--budgets 50", "budget=50 on a teacher grid of 12 steps"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(here, capsys, line, words):
    before = sorted(path.name for path in here.iterdir())
    assert call(f"optimize --model climbing:make --shape 6 --teacher 12 {line}") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said
    left = sorted(path.name for path in here.iterdir() if path.name != "__pycache__")
    assert left == before
