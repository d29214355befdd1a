"""search: the climb, what it returns, and what is kept of it when it is cut short."""

import itertools
import json
import re
import sys

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import metrics
from fastsample.models import analytic
from fastsample.optimize import _checkpoint, _climb
from fastsample.optimize import search as climb
from fastsample.optimize.search import Stopped

LAW = analytic.GaussianMixture(
    np.random.default_rng(0).standard_normal((3, 4)), np.ones(3) / 3, 0.3
)
BASE = LAW.model(fs.schedules.EDM(), "x0")
WORDS = {"seed": 5, "iterations": 2, "beam": 1, "teacher": 12}
SHAPE, BUDGETS = [48, 4], [2, 3]


@pytest.fixture(autouse=True)
def few_by_hand(monkeypatch):
    """The plans made by hand are a handful."""
    every = metrics.by_hand
    some = lambda model, nfe, solver=None: every(model, nfe, "euler")[:6]
    monkeypatch.setattr(metrics, "by_hand", some)


def model(fn=BASE, **words):
    return fs.Model(fn, BASE.schedule, "x0", model_id="mixture", **words)


def texts(search):
    return {m: plan.to_json() for m, plan in search.plans.items()}


class Bar:
    """In tqdm's place."""

    made = []

    def __init__(self, total, unit, desc):
        self.total, self.unit, self.desc, self.n = total, unit, desc, 0
        self.made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nothing is left open."""

    def set_postfix_str(self, text):
        """It has no place for words."""

    def update(self, n=1):
        self.n += n


@pytest.fixture(scope="module")
def whole():
    """A search that nothing stops."""
    with pytest.MonkeyPatch.context() as patch:
        every = metrics.by_hand
        patch.setattr(
            metrics, "by_hand", lambda model, nfe, solver=None: every(model, nfe, "euler")[:6]
        )
        asked, Bar.made = [], []
        counted = model(lambda x, t: (asked.append(len(x)), BASE(x, t))[1])
        search = climb(counted, SHAPE, BUDGETS, progress=Bar, **WORDS)
        return search, asked, Bar.made


def test_every_rung_is_judged_and_each_budget_has_the_best(whole):
    search, asked, _ = whole
    assert [rung.name for rung in search.rungs] == ["by hand", "model-free", "fit", "polish"]
    assert sum(asked) == search.nfe * 48, "every evaluation is counted"
    assert search.stopped is None and list(search.plans) == BUDGETS
    for m, plan in search.plans.items():
        best = max(search.rungs, key=lambda rung: rung.psnr[m][0])
        found = plan.note["found"]
        assert found["method"] == best.name and plan.nfe == m
        assert found["held_out"]["psnr"] == list(best.psnr[m])
        assert found["held_out"]["rungs"] == {r.name: r.psnr[m][0] for r in search.rungs}
        assert "seconds" not in json.dumps(found)
        assert fs.Plan.from_json(plan.to_json()) == plan
    by_name = {rung.name: rung for rung in search.rungs}
    for m in BUDGETS:
        assert (
            by_name["polish"].psnr[m][0] > by_name["fit"].psnr[m][0] > by_name["by hand"].psnr[m][0]
        )


def test_every_part_has_a_bar_of_its_evaluations(whole):
    bars = {bar.desc: bar for bar in whole[2] if bar.unit == " evaluations"}
    assert {"teacher", "end points", "fit", "by hand"} <= {*bars}
    assert all(bar.n > 0 for bar in bars.values())
    assert bars["by hand"].n == whole[0].rungs[0].nfe * 48 <= bars["by hand"].total


def test_without_plans_by_hand_the_others_are_the_same(whole):
    search = climb(model(), SHAPE, BUDGETS, by_hand=False, **WORDS)
    assert [rung.name for rung in search.rungs] == ["model-free", "fit", "polish"]
    for rung, same in zip(search.rungs, whole[0].rungs[1:], strict=True):
        assert rung.psnr == same.psnr and search.nfe < whole[0].nfe
    assert all("by_hand=False" in p.note["found"]["command"] for p in search.plans.values())


def test_figures_are_those_of_the_plans_on_noise_of_its_own(whole):
    search, *_ = whole
    noise = fs.kernels.normal(torch.arange(48) + 5, torch.zeros(48, dtype=torch.int64), 4)
    unseen = sys.modules["fastsample.optimize.search"]._unseen(noise)
    assert not (unseen[:, None] == noise).all(-1).any()
    subject = model()
    target = metrics.run(search.teacher, subject, unseen)
    for rung in search.rungs:
        for m, plan in rung.plans.items():
            end = metrics.run(plan, subject, unseen)
            each = metrics.psnr_each(end, target)
            assert rung.psnr[m] == pytest.approx(
                (each.mean(), *np.quantile(each, [0.25, 0.5, 0.75])), abs=0.2
            )
            assert rung.psnr[m][0] == each.mean()
            assert rung.pooled[m] == metrics.psnr(end, target)
            assert np.array_equal(rung.ends[m], end[:8].numpy())
    assert np.array_equal(search.target, target[:8].numpy())


class Killed(BaseException):
    pass


def test_it_is_cut_at_every_part_and_goes_on_to_the_same_bytes(whole, tmp_path, monkeypatch):
    keep, kept = _checkpoint.Checkpoint.keep, []

    def killed(self, name, *given):
        keep(self, name, *given)
        kept.append(name)
        raise Killed

    monkeypatch.setattr(_checkpoint.Checkpoint, "keep", killed)
    for _ in range(100):
        try:
            search = climb(model(), SHAPE, BUDGETS, checkpoint=tmp_path, **WORDS)
            break
        except Killed:
            assert len(list(tmp_path.iterdir())) == 2
    assert texts(search) == texts(whole[0]) and search.nfe == whole[0].nfe
    assert kept.count("polish 3") == 3 and len({*kept}) == len(kept) - 4, "begun and two steps"
    assert {"teacher", "held out", "fit", "model-free", "by hand 2", "judged fit 3"} <= {*kept}


@pytest.fixture
def stage(monkeypatch):
    """The rungs that have begun, as they begin."""
    begun = []

    def told(name, rung):
        return lambda self: (begun.append(name), rung(self))[1]

    for name in ("fit", "by_hand", "polish"):
        monkeypatch.setattr(_climb.Climb, name, told(name, getattr(_climb.Climb, name)))
    return begun


@pytest.mark.parametrize("rung, found", [("fit", 1), ("by_hand", 2), ("polish", 3)])
def test_an_interrupted_climb_returns_what_it_has(whole, rung, found, stage, tmp_path):
    interrupted = []

    def impatient(x, t):
        if stage[-1:] == [rung] and not interrupted:
            interrupted.append(rung)
            raise KeyboardInterrupt
        return BASE(x, t)

    search = climb(model(impatient), SHAPE, BUDGETS, checkpoint=tmp_path, **WORDS)
    assert search.stopped == "interrupted" and len(search.rungs) == found
    assert {*search.plans} == {*BUDGETS}
    again = climb(model(), SHAPE, BUDGETS, checkpoint=tmp_path, **WORDS)
    assert again.stopped is None and texts(again) == texts(whole[0])


@pytest.mark.parametrize("wrong", [RuntimeError("out of memory"), None])
def test_a_model_that_fails_on_the_way_leaves_what_was_found(wrong, stage):
    failed = []

    def failing(x, t):
        if stage[-1:] == ["polish"] and not failed:
            failed.append(1)
            if wrong is not None:
                raise wrong
            x = x.clone()
            x[1] = torch.nan
        return BASE(x, t)

    said = "search: .* on the way .*what was found before .*fit"
    with pytest.raises(Stopped, match=said) as stop:
        climb(model(failing), SHAPE, BUDGETS, **WORDS)
    search = stop.value.search
    assert [rung.name for rung in search.rungs] == ["by hand", "model-free", "fit"]
    assert search.stopped == "failed" and {*search.plans} == {*BUDGETS}


@pytest.mark.parametrize(
    "call, rungs",
    [
        (2, ["by hand", "model-free"]),  # fit, and so nothing to polish
        (3, ["model-free", "fit", "polish"]),
        (5, ["by hand", "model-free", "fit"]),
    ],
)
def test_what_would_go_beyond_the_limit_is_not_begun_and_the_rest_is(monkeypatch, call, rungs):
    room, asked = _climb.Climb.room, []

    def until(self, rows):
        asked.append(rows)
        if len(asked) == call:
            raise _climb.TimeUp
        room(self, rows)

    monkeypatch.setattr(_climb.Climb, "room", until)
    search = climb(model(), SHAPE, BUDGETS, time_limit=1e6, **WORDS)
    assert search.stopped == "time_limit" and {*search.plans} == {*BUDGETS}
    assert [rung.name for rung in search.rungs] == rungs


def test_what_a_step_of_a_polish_takes_is_known_before_it_is_begun(monkeypatch):
    """Its twins, which are most of it, included."""
    room, told, asked = _climb.Climb.room, [], []
    monkeypatch.setattr(
        _climb.Climb,
        "room",
        lambda self, rows: (told.append((rows, sum(asked))), room(self, rows))[1],
    )
    counted = model(lambda x, t: (asked.append(len(x)), BASE(x, t))[1])
    search = climb(counted, SHAPE, [3], by_hand=False, **WORDS)
    assert search.rungs[-1].name == "polish"
    told.append((0, sum(asked) - 3 * 64))  # the plan is judged on 64 noises in the end
    begin, *steps = [pair for pair in told if pair[1] > 0][-4:]
    assert len(steps) == 3 and begin[0] == 2 * 5 * 3
    for (rows, before), (_, after) in itertools.pairwise([begin, *steps]):
        assert rows == after - before


def test_where_the_search_is_worse_the_best_by_hand_is_returned(monkeypatch):
    """Plans made worse than any: the answer is the best by hand, and says so."""
    fitted, free = _climb.fit_with, _climb.model_free

    def worse(plan):
        return plan.with_numbers(M=np.concatenate([1.5 * plan.M[:-1], plan.M[-1:]]))

    def spoilt(*given):
        found = fitted(*given)
        found.plans.update({m: worse(plan) for m, plan in found.plans.items()})
        return found

    monkeypatch.setattr(_climb, "fit_with", spoilt)
    monkeypatch.setattr(_climb, "model_free", lambda *given: worse(free(*given)))
    search = climb(model(), [20, 4], BUDGETS, **WORDS)
    for m, plan in search.plans.items():
        assert plan.note["found"]["method"] == "by hand"
        assert plan.note["solver"] == "euler" and plan.note["found"]["grid"]
        assert m not in search.indices


def test_no_noise_is_left_to_polish_with():
    search = climb(model(), [20, 4], 2, **WORDS)
    assert [rung.name for rung in search.rungs] == ["by hand", "model-free", "fit"]
    assert list(search.plans) == [1, 2]


def test_a_model_is_looked_at_before(tmp_path, monkeypatch):
    noisy = lambda x, t: BASE(x, t) + 0.01 * torch.randn(x.shape, dtype=x.dtype)
    with pytest.raises(
        ValueError, match="search: the model answers otherwise when it is asked the"
    ):
        climb(model(noisy), SHAPE, 2, **WORDS)
    partly = lambda x, t: (
        BASE(x, t) + torch.where(torch.arange(len(x)) % 3 == 1, torch.nan, 0.0)[:, None]
    )
    with pytest.raises(ValueError, match="not finite for sample 1"):
        climb(model(partly), SHAPE, 2, **WORDS)
    seen = _climb.probe
    for limit in (1e-9, 0.01):  # the way to the look is no part of the teacher's time
        said = "search: an evaluation of one sample takes .* a time_limit above ([^ ]*) s"
        with monkeypatch.context() as slow, pytest.raises(ValueError, match=said) as refused:
            slow.setattr(_climb, "probe", lambda *given: (0.01, *seen(*given)[1:]))
            climb(model(), SHAPE, 2, time_limit=limit, **WORDS)
        assert float(re.search(said, str(refused.value))[1]) > limit

    class Deaf(Exception):
        pass

    def deaf(x, t, label):
        return BASE(x, t)

    words = {"cond": {"label": torch.arange(48)}}
    with pytest.warns(UserWarning, match="search: other conditions have the same answers"):
        climb(model(deaf), SHAPE, 1, **WORDS, **words)
    words |= {"uncond": {"label": torch.zeros(48)}, "guidance": 2.0}
    with pytest.warns(UserWarning, match="cond and uncond have the same answers, so guidance=2.0"):
        climb(model(deaf), SHAPE, 1, **WORDS, **words)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    climb(model(), [20, 4], 1, checkpoint=tmp_path, **WORDS)
    state = tmp_path / "search.json"
    before = state.read_bytes()
    with pytest.raises(ValueError, match="is of another search: beam is 1 there and 2 here"):
        climb(model(), [20, 4], 1, checkpoint=tmp_path, **{**WORDS, "beam": 2})
    assert state.read_bytes() == before
    half = json.loads(before)
    del half["done"]["fit"]["rows"]
    state.write_text(json.dumps(half))
    with pytest.raises(ValueError, match="holds no search; a folder that a search has written"):
        climb(model(), [20, 4], 1, checkpoint=tmp_path, **WORDS)
    state.write_bytes(before)
    (arrays,) = tmp_path.glob("*.npz")
    with open(arrays, "wb") as file:
        np.savez(file, **{"held out/ends": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="cannot be read .*; a folder that a search has written"):
        climb(model(), [20, 4], 1, checkpoint=tmp_path, **WORDS)
    for text in (b"{", b"[]", b'{"asked": {}}'):
        state.write_bytes(text)
        with pytest.raises(ValueError):
            climb(model(), [20, 4], 1, checkpoint=tmp_path, **WORDS)


def test_a_checkpoint_of_other_conditions_another_teacher_or_model_is_refused(tmp_path):
    """Its plans would be given out for those of what is searched now, and no word said."""
    listed = ("a", "b", "c", "d")
    told = lambda x, t, c, name, own: BASE(x, t) + c + own
    cond = {"c": torch.arange(4.0)[:, None], "name": listed, "own": fs.shared(torch.zeros(4))}
    grid = fs.grids.fine(BASE.schedule, 6)
    own = {**WORDS, "by_hand": False, "checkpoint": tmp_path, "teacher": grid, "cond": cond}
    first = climb(model(told), [4, 4], 1, **own)
    assert texts(climb(model(told), [4, 4], 1, **own)) == texts(first)
    for other in (
        {"c": torch.ones(4, 1)},
        {"name": listed[::-1]},
        {"own": fs.shared(torch.ones(4))},
        {"own": fs.shared(torch.zeros(4, dtype=torch.float64))},
    ):
        with pytest.raises(ValueError, match=r"is of another search: conditions\S* is "):
            climb(model(told), [4, 4], 1, **{**own, "cond": cond | other})
    moved = np.append(grid[0], grid[1:] * 0.9)
    with pytest.raises(ValueError, match="is of another search: teacher is '"):
        climb(model(told), [4, 4], 1, **{**own, "teacher": moved})
    mended = lambda *given, **words: 0.9 * told(*given, **words)
    with pytest.raises(ValueError, match="search: the model answers otherwise than the one that"):
        climb(model(mended), [4, 4], 1, **own)


@pytest.mark.parametrize(
    "budgets, words, sentence",
    [
        ([], {}, r"search: budgets=\[\]; numbers of evaluations"),
        ("46", {}, "search: budgets='46'"),
        ([4, 0], {}, "search: budgets=0; an integer of at least 1"),
        (2, {"time_limit": 0}, "search: time_limit=0; seconds above 0"),
        (2, {"rows": "dpmpp_9m"}, "search: rows='dpmpp_9m'"),
        (2, {"solver": "dpmpp_9m"}, "solver"),
        (2, {"searched": 0}, "search: searched=0"),
        (2, {"max_bytes": 999}, "search: states of 16 samples take .* and max_bytes is 999; a"),
    ],
)
def test_bad_input(budgets, words, sentence):
    with pytest.raises(ValueError, match=sentence):
        climb(fs.Model(None, BASE.schedule, "x0"), SHAPE, budgets, **{**WORDS, **words})


def test_a_warning_points_at_the_caller():
    coarse = {**WORDS, "teacher": [80.0, 10.0, 1.0, 0.0], "all_budgets": True}
    hard = lambda x, t: BASE(x, t) + torch.sin(40 * x)
    with pytest.warns(UserWarning, match="search: the teacher .* agrees to") as said:
        climb(model(hard), [4, 4], 1, **coarse)
    assert {one.filename for one in said} == {__file__}
