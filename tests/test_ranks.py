"""ranks: what a search finds is the same to the bit in a world of any size, and what goes wrong in
one process goes wrong in all.
"""

import contextlib
import io
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import distributed
from worlds import ASKED, EVERY, LIMIT, SCHEDULE, D, few_by_hand, found, model, net, world

import fastsample as fs
from fastsample import cli, metrics
from fastsample.optimize import _checkpoint, _climb
from fastsample.runtime.ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:.* the teacher .* agrees to")
WORDS = {"seed": 5, "batch_size": 16}
SHAPE = [64, D]


@pytest.fixture
def alone(monkeypatch):
    """This process does as those of a world do: on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(metrics, "by_hand", few_by_hand)
    yield
    torch.set_num_threads(before)


def counted(make):
    """What is found, and the rows that the model was asked for it in this process."""
    ASKED.clear()
    return found(make()), sum(ASKED)


def fine(steps=8):
    return fs.solvers.dpmpp_2m(model(), fs.grids.fine(SCHEDULE, steps))


def climb(fn=None, **words):
    words = {"teacher": fine(), "iterations": 1, "beam": 1, **WORDS, **words}
    return fs.optimize.search(model(fn), SHAPE, [2], **words)


def test_the_models_bits_depend_on_how_many_are_asked_together(alone):
    x = torch.randn(16, D, generator=torch.Generator().manual_seed(1))
    ask, t = net(), torch.ones(16)
    assert not torch.equal(ask(x, t), torch.cat([ask(part, t[:2]) for part in x.split(2)]))


# -- two processes, which are begun once ----------------------------------------------------------
class Odd(Exception):
    """One that cannot be sent."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def raised(make):
    try:
        make()
    except (Exception, KeyboardInterrupt) as error:
        return type(error).__name__, str(error)


def failing(wrong, begun=(True,)):
    """A model that fails once it has `begun`, in process 1, once."""
    ask, failed = net(), []

    def asked(x, t):
        if distributed.get_rank() == 1 and begun and not failed:
            failed.append(1)
            if isinstance(wrong, BaseException):
                raise wrong
            return x * wrong
        return ask(x, t)

    return asked


def late(rung, wrong):
    """A climb whose model fails in a rung, in process 1."""
    begun, own = [], getattr(_climb.Climb, rung)
    setattr(_climb.Climb, rung, lambda self, *given: (begun.append(1), own(self, *given))[1])
    try:
        return climb(failing(wrong, begun))
    finally:
        setattr(_climb.Climb, rung, own)


def short(fn=None, z=(32, D), **words):
    """A short search: fine() alone asks 16 times."""
    return fs.optimize.gits(model(fn), z, 1, teacher=fine(), **{**WORDS, **words})


def in_two(rank, folder):
    said = {}
    write, written = _checkpoint.write_whole, []
    _checkpoint.write_whole = lambda path, data: (written.append(path), write(path, data))
    said["search"] = counted(lambda: climb(checkpoint=folder / "kept"))
    said["wrote"] = len(written)
    for name, wrong in (
        ("value", ValueError("of its own")),
        ("odd", Odd(1, 2)),
        ("nan", torch.nan),
    ):
        said[name] = raised(lambda wrong=wrong: short(failing(wrong)))
    said["lost"] = found(late("judged", torch.nan))
    said["interrupted"] = late("polish", KeyboardInterrupt()).stopped
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        short(z=[4, D])
    said["warned"] = [str(one.message) for one in caught]
    torch.manual_seed(rank)
    fresh = short(seed=None)
    said["fresh"] = found(fresh), fresh.plan.note["found"]["seed"]
    z = torch.randn(4, D)
    said["alike"] = raised(lambda: short(z=z))
    groups = [distributed.new_group([one]) for one in (0, 1)]
    said["own group"] = found(short(group=groups[rank]))
    said["other group"] = raised(lambda: short(group=groups[1 - rank]))
    with mock.patch.object(distributed, "get_backend_config", lambda group: "cuda:nccl"):
        said["nccl"] = found(short()), found(short())
        own = Ranks.of(None).group
        said["gloo"] = own is not distributed.group.WORLD and own is Ranks.of(None).group
    return said


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return world(2, folder / "world", in_two, folder), folder


def test_two_processes_find_what_one_does(two, alone):
    (first, second), folder = two
    whole, rows = counted(climb)
    plans, parts = zip(first["search"], second["search"], strict=True)
    assert plans == (whole, whole)
    assert sum(parts) == rows and min(parts) > rows / 3, "nothing is asked twice"
    assert first["wrote"] and not second["wrote"]
    assert len([*(folder / "kept").iterdir()]) == 2


def test_what_fails_in_one_process_fails_in_all(two):
    said, _ = two
    for one in said:
        assert one["value"] == ("ValueError", "of its own")
        assert one["odd"] == ("RuntimeError", "process 1 failed: Odd: 1 and 2")
        assert "is not finite for sample 16" in one["nan"][1]
        assert one["interrupted"] == "interrupted"
        name, sentence = one["alike"]
        assert name == "ValueError" and sentence.startswith("gits: noise is")
        assert sentence.endswith("in process 1; the same in all is needed")
        name, sentence = one["other group"]
        assert name == "ValueError" and "is not in it; a group of those that call" in sentence


def test_a_plan_whose_run_fails_in_one_process_is_at_minus_infinity_in_all(two):
    said, _ = two
    assert said[0]["lost"] == said[1]["lost"]
    *_, rungs, _ = said[0]["lost"]
    assert [name for name, psnr, *_ in rungs if psnr[2][0] == -math.inf] == ["model-free"]


def test_only_the_first_process_warns_and_draws_a_seed(two, alone):
    said, _ = two
    (warned,) = said[0]["warned"]
    assert warned.startswith("gits: the teacher (dpmpp_2m, 8 evaluations) agrees to")
    assert not said[1]["warned"]
    torch.manual_seed(0)
    own = short(seed=None)
    assert said[0]["fresh"] == said[1]["fresh"] == (found(own), own.plan.note["found"]["seed"])
    assert said[0]["own group"] == said[1]["own group"] == found(short())


def test_a_group_that_carries_no_tensors_of_the_host_is_accepted(two, alone):
    said, _ = two
    assert said[0]["nccl"] == said[1]["nccl"] == (found(short()),) * 2
    assert said[0]["gloo"] and said[1]["gloo"], "one of gloo beside it, made once"


# -- worlds of one, two and four ------------------------------------------------------------------
def everything(rank=0, folder=None):
    """Every search, one of them from what another world has left."""
    words = {"teacher": fine(), **WORDS}
    plans, polished = fine(2), {"iterations": 1, **words}
    every = {
        "oss": lambda: fs.optimize.oss(model(), SHAPE, 2, **words),
        "multistep": lambda: fs.optimize.oss(model(), SHAPE, 3, solver="dpmpp_2m", **words),
        "fit": lambda: fs.optimize.fit(model(), SHAPE, 3, beam=2, judged=0.2, **words),
        "gits": lambda: fs.optimize.gits(model(), SHAPE, 3, held_out=unseen(), **words),
        "ays": lambda: fs.optimize.ays(model(), SHAPE, 3, steps=10, held_out=unseen(), **words),
        "polish": lambda: fs.optimize.polish(model(), SHAPE, plans, **polished),
        "jvp": lambda: fs.optimize.polish(model(), [16, D], plans, jvp=True, batch=4, **polished),
        "search": lambda: climb(iterations=3, checkpoint=folder),
    }
    return {name: counted(make) for name, make in every.items()}


def unseen():
    return torch.randn(8, D, generator=torch.Generator().manual_seed(3))


def begun(rank, folder):
    """A climb that stops after the first step of the polish; more than one process may be in it."""
    keep = _checkpoint.Checkpoint.keep

    def kept(self, name, said, arrays=None):
        keep(self, name, said, arrays)
        if name.startswith("polish") and said["note"]["iterations"] == 1:
            raise KeyboardInterrupt

    _checkpoint.Checkpoint.keep = kept
    try:
        return climb(iterations=3, checkpoint=folder).stopped
    finally:
        _checkpoint.Checkpoint.keep = keep


@pytest.mark.slow
def test_every_search_is_the_same_in_every_world(alone, tmp_path):
    own = everything()
    for size, before in ((1, 4), (2, 1), (4, 2)):
        folder = tmp_path / f"kept {size}"
        assert world(before, tmp_path / f"{before} before {size}", begun, folder) == (
            ["interrupted"] * before
        )
        said = world(size, tmp_path / f"{size}", everything, folder)
        for name, (whole, rows) in own.items():
            plans, parts = zip(*(one[name] for one in said), strict=True)
            assert plans == (whole,) * size, (size, name)
            assert sum(parts) == rows or name == "search", "nothing is asked twice"
        assert len([*folder.iterdir()]) == 2


MINE = """
import fastsample as fs
def make():
    return fs.Model(lambda x, t: x / (1 + t.view(-1, 1) ** 2), fs.schedules.EDM(), "x0")
def broken():
    return fs.Model(lambda x, t: x[:1], fs.schedules.EDM(), "x0")
"""
OPTIONS = ["--shape=4", "--samples=8", "--held-out=2", "--teacher=4", "--batch-size=2"]


def command(rank, folder):
    """The exit code and what is said of a single search, in one of the processes."""
    os.chdir(folder)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = cli.main(["optimize", "--model", "mine:make", "--budget", "2", *OPTIONS])
    return code, said.getvalue()


@pytest.mark.slow
def test_the_command_under_torchrun(alone, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (code, said), other = world(2, tmp_path / "world", command, tmp_path)
    assert code == 0 and said and other == (0, "")
    root = str(Path(fs.__file__).parents[1])
    words = {"env": {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}}
    words |= {"capture_output": True, "text": True, "timeout": LIMIT}

    def launched(name):
        line = ["optimize", "--model", f"mine:{name}", "--budgets", "2", "--out", name, *OPTIONS]
        run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
        return line, subprocess.run([sys.executable, *run, "fastsample", *line], **words)

    monkeypatch.setattr(metrics, "by_hand", EVERY)
    line, done = launched("make")
    assert done.returncode == 0, done.stderr
    line[line.index("--out") + 1] = "alone"
    assert cli.main(line) == 0
    two, one = (
        {path.name: path.read_bytes() for path in Path(name).glob("*.fsplan")}
        for name in ("make", "alone")
    )
    assert one and two == one
    assert len(done.stdout.splitlines()) == len(capsys.readouterr().out.splitlines()), "said once"
    _, failed = launched("broken")
    assert failed.returncode == 1 and "the model returned [1, 4]" in failed.stderr
