"""The command line, as a user types it: results, files, one-sentence errors with exit code 2,
nothing half-written.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import cli
from fastsample.optimize import _climb

FACTORY = """
import numpy as np
import fastsample as fs
from fastsample.models.analytic import GaussianMixture

LAW = GaussianMixture(np.random.default_rng(0).standard_normal((3, 1, 4, 4)), np.ones(3), 0.3)

def make():
    return LAW.model(fs.schedules.Flow(), "flow")

def interrupted():
    def fn(x, t):
        raise KeyboardInterrupt
    return fs.Model(fn, schedule=fs.schedules.Flow(), prediction="flow")

def broken():
    return fs.Model(lambda x, t: x[:1], schedule=fs.schedules.Flow(), prediction="flow")

def keyless():
    raise KeyError("boo")

def no_model():
    return 3

def leaves():
    raise SystemExit(3)

def raises():
    return fs.Model(lambda x, t: {}["a word"], schedule=fs.schedules.Flow(), prediction="flow")

class Shaped:
    shape = (1, 4, 4)
    def __call__(self, x, t):
        return make().fn(x, t)

def shaped():
    return fs.Model(Shaped(), schedule=fs.schedules.Flow(), prediction="flow")
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a model of the user's own, and nothing else."""
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


MINE = ["--model", "mine:make", "--shape", "1,4,4", "--samples", "4"]


def call(line, *more):
    """The exit code of a line as it is typed, with more words after it."""
    return cli.main([*line.split(), *more])


def test_optimize_then_sample_then_show(here, capsys, monkeypatch):
    monkeypatch.setattr(fs.metrics, "STARTS", (None,))
    assert call("optimize --budget 3 --teacher 16 --held-out 3 --out plans", *MINE) == 0
    said = capsys.readouterr().out
    assert sorted(os.listdir("plans")) == ["plan-1.fsplan", "plan-2.fsplan", "plan-3.fsplan"]
    plan = fs.Plan.load("plans/plan-3.fsplan")
    found = plan.note["found"]
    assert plan.nfe == 3 and found["seed"] == 0
    T, A = found["teacher"]["nfe"], found["teacher"]["agreement_evaluations"]
    assert f"{T + A + 3 * 16 - 3 - 1 + 2 * (1 + 2 + 3):g} evaluations for each of 4 samples" in said
    agreement = f"{found['teacher']['agreement']:.1f} dB with twice as many"
    assert f"teacher: dpmpp_3m, {T} evaluations; it agrees to {agreement}" in said
    row = next(line for line in said.splitlines() if "plans/plan-3.fsplan" in line)
    compared = found["compared"]
    assert row.split()[5:7] == [f"{compared['found']:.2f}", f"{compared['by_hand']:.2f}"]
    assert compared["samples"] == 3
    assert f"{compared['solver']}, {compared['grid']}" in row
    notes = {m: fs.Plan.load(f"plans/plan-{m}.fsplan").note for m in (1, 2, 3)}
    beaten = [str(m) for m, note in notes.items() if not note["found"]["compared"]["beats"]]
    verdict = "evaluations do not beat the best made by hand"
    assert beaten and f"the plans of {', '.join(beaten)} {verdict}" in said

    assert call("sample plans/plan-3.fsplan --seed 9 --out a.png --out a.npy", *MINE) == 0
    assert "4 samples of 3 evaluations" in capsys.readouterr().out
    got = np.load("a.npy", allow_pickle=False)
    it = cli.subject(cli.parser().parse_args(["sample", "x", *MINE]))
    want = fs.Sampler(plan, it.model)(shape=(4, 1, 4, 4), seed=9)
    np.testing.assert_array_equal(got, want.numpy())
    assert Path("a.png").read_bytes()[:4] == b"\x89PNG"

    assert cli.main(["show", "plans/plan-3.fsplan", "--picture", "p.png"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(plan.describe()) and told.count("█") > 3
    assert Path("p.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["show", "plans/plan-3.fsplan", "--json"]) == 0
    assert fs.Plan.from_json(capsys.readouterr().out).to_bytes() == plan.to_bytes()


def test_optimize_with_fitted_rows(here, capsys):
    options = "--budget 3 --teacher 8 --held-out 0 --beam 2 --aggregate log"
    assert call(f"optimize --rows consistent {options}", *MINE) == 0
    assert "plans/plan-3.fsplan" in capsys.readouterr().out
    found = fs.Plan.load("plans/plan-3.fsplan").note["found"]
    said = {"method": "fit", "rows": "consistent", "beam": 2, "aggregate": "log"}
    assert found == {**found, **said}
    assert call("sample plans/plan-3.fsplan --out a.npy", *MINE) == 0


def test_the_grid_that_is_searched_has_a_name(here, capsys):
    options = "--budget 2 --teacher 8 --held-out 0"
    assert call(f"optimize --grid kl_optimal {options}", *MINE) == 0
    it = cli.subject(cli.parser().parse_args(["sample", "x", *MINE]))
    searched = fs.grids.kl_optimal(it.model.schedule, 8)
    grid = fs.Plan.load("plans/plan-2.fsplan").note["grid"]
    assert np.isin(np.round(grid, 12), np.round(searched, 12)).all()
    with pytest.raises(SystemExit):
        cli.main(["optimize", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in fs.grids.GRIDS)
    assert call(f"optimize --grid trailing {options}", *MINE) == 2
    assert "schedule is a Flow; a DiscreteVP is accepted" in capsys.readouterr().err


def test_the_shape_may_be_the_models_own(here, capsys):
    options = "--samples 2 --budget 1 --teacher 5 --held-out 0"
    assert call(f"optimize --model mine:shaped {options}") == 0
    assert "not compared" in capsys.readouterr().out
    assert cli.main(["optimize", "--model", "mine:make", "--samples", "2"]) == 2
    assert "pass --shape" in capsys.readouterr().err


def test_a_guided_plan_is_run_with_the_scale_it_was_found_with(here, capsys):
    it = cli.embedded(None, 1.5)
    plan = fs.guidance.guided(fs.solvers.euler(it.model, [10.0, 1.0, 0.0]))
    want = fs.Sampler(plan, it.model)(noise=it.noise(2, 0), **it.words(2))
    for made in (plan, plan.unguided()):
        made.with_note(found={"guidance": 1.5}).save("g.fsplan")
        assert cli.main(["sample", "g.fsplan", "--samples", "2", "--out", "g.npy"]) == 0
        np.testing.assert_array_equal(np.load("g.npy"), want.numpy())
    for found in (None, {"guidance": "2"}, {"guidance": True}, [1]):
        plan.with_note(found=found).save("bad.fsplan")
        assert cli.main(["sample", "bad.fsplan", "--samples", "2"]) == 2
        assert "pass --guidance" in capsys.readouterr().err


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("python", "torch", "native code", "cpu, float32"))


def test_show_escapes_what_a_terminal_would_obey(here, capsys):
    s = fs.schedules.Flow()
    plan = fs.solvers.euler(s, fs.grids.uniform(s, 2), prediction="flow")
    plan.with_note(solver="\x1b[2J", remark="\x9b\u202e").save("bad.fsplan")
    assert cli.main(["show", "bad.fsplan"]) == 0 and cli.main(["show", "bad.fsplan", "--json"]) == 0
    said = capsys.readouterr().out
    assert not any(ch in said for ch in "\x1b\x9b\u202e") and "\\x1b[2J" in said


def test_sample_begins_from_images(here, capsys):
    s = fs.schedules.Flow()
    plan = fs.solvers.euler(s, fs.grids.uniform(s, 4), prediction="flow")
    plan.save("p.fsplan")
    images = np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)
    np.save("i.npy", images)
    it = cli.subject(cli.parser().parse_args(["sample", "x", *MINE]))
    latent = torch.from_numpy(images[[0, 1, 2, 0]])
    for option, begin in (
        ("--strength 0.5", {"strength": 0.5}),
        ("--level 1.0", {"level": 1.0}),
        ("--start 1", {"start": 1}),
    ):
        run = ["sample", "p.fsplan", *MINE, "--seed", "7", "--latent", "i.npy", "--out", "a.npy"]
        assert cli.main([*run, *option.split()]) == 0
        image = plan.remake(**begin)
        assert f"4 samples of {image.nfe} evaluations" in capsys.readouterr().out
        want = fs.Sampler(image, it.model)(latent=latent, seed=7)  # noised anew, at stage 1
        np.testing.assert_array_equal(np.load("a.npy"), want.numpy())
    plan.remake(1).save("image.fsplan")
    assert cli.main(["sample", "image.fsplan", *run[2:]]) == 0
    np.testing.assert_array_equal(np.load("a.npy"), want.numpy())


BAD = [
    (["show", "absent.fsplan"], "absent.fsplan: No such file"),
    (["show", "."], "."),
    (["show", "mine.py"], "mine.py"),
    (["sample", "p.fsplan", *MINE, "--out", "a.gif"], ".png or a .npy"),
    (["sample", "p.fsplan", *MINE, "--out", "no/folder/a.png"], "no/folder"),
    (["sample", "p.fsplan", "--model", "mine", "--shape", "1"], "package.module:factory"),
    (["sample", "p.fsplan", "--model", "absent:make", "--shape", "1"], "absent"),
    (["sample", "p.fsplan", "--model", "mine:nothing"], "no callable nothing"),
    (["sample", "p.fsplan", "--model", "mine:no_model"], "returned a int"),
    (["sample", "p.fsplan", "--model", "mine:broken", "--shape", "1,4,4"], "returned"),
    (["sample", "p.fsplan", *MINE, "--guidance", "2"], "embedded model"),
    (["sample", "p.fsplan", "--model", "mine:leaves"], "its call failed (SystemExit: 3)"),
    (["sample", "p.fsplan", "--model", "mine:raises", "--shape", "4"], "KeyError: 'a word'"),
    (["sample", "p.fsplan", *MINE, "--dtype", "int8"], "--dtype int8: one of float32, float16"),
    (["sample", "p.fsplan", *MINE, "--device", "nosuch"], "--device nosuch: "),
    (["optimize", *MINE, "--budgets", "2", "--held-out", "0"], "--held-out 0; noise to judge"),
    (["show", "p.fsplan", "--picture", ""], "--picture : a .png file is accepted"),
    (["sample", "p.fsplan", "--model", "mine:keyless"], "its call failed (KeyError: 'boo')"),
    (["sample", "p.fsplan", "--model", "unsound:make"], "its import failed (SyntaxError: "),
    (["optimize", *MINE, "--budgets", "2", "--start", "fixed"], "--start fixed belongs to one"),
    (["optimize", *MINE, "--aggregate", "median"], "--aggregate median belongs to one search"),
    (["optimize", *MINE, "--budget", "2", "--time-limit", "9"], "--time-limit 9.0 belongs to the"),
    (["optimize", *MINE, "--rows", "free", "--checkpoint", "c"], "--checkpoint c belongs to the"),
    (["optimize", *MINE, "--budget", "2", "--beam", "2"], "--beam 2 belongs to a fit; --rows"),
    (["optimize", *MINE, "--solver", "heun"], "solver='heun'"),
    (["optimize", *MINE, "--budget", "9", "--teacher", "5"], "budget=9"),
    (["optimize", *MINE, "--rows", "heun", "--teacher", "5", "--budget", "2"], "rows='heun'"),
    (["optimize", *MINE, "--rows", "free", "--solver", "euler"], "--solver euler beside --rows"),
    (["optimize", *MINE, "--rows", "free", "--aggregate", "joint"], "aggregate='joint'"),
    (["sample", "p.fsplan", "--label", "10"], "--label 10"),
    (["sample", "p.fsplan", "--shape", "1,8,8"], "--shape belongs to --model"),
    (["sample", "p.fsplan", *MINE, "--level", "1"], "--level 1.0 begins from an image; --latent"),
    (["sample", "p.fsplan", *MINE, "--latent", "n.npy"], "where it begins is not said; --strength"),
    (["sample", "p.fsplan", *MINE, "--latent", "n.npy", "--start", "1"], "n.npy: No such file"),
    (["sample", "p.fsplan", *MINE, "--latent", "mine.py", "--start", "1"], "it holds no array"),
    (["sample", "p.fsplan", *MINE, "--latent", "cut.npz", "--start", "1"], "it holds no array"),
    (
        ["sample", "p.fsplan", *MINE, "--latent", "i.npy", "--start", "1"],
        "i.npy: it holds NaN, Inf",
    ),
    (["show", "p.fsplan", "--picture", "p.jpg"], "--picture p.jpg: a .png file is accepted"),
]


@pytest.mark.parametrize(
    "arguments, words", BAD, ids=[" ".join(a[:3]) + f" {k}" for k, (a, _) in enumerate(BAD)]
)
def test_bad_input_is_one_sentence_and_leaves_nothing(here, capsys, arguments, words):
    s = fs.schedules.Flow()
    fs.solvers.euler(s, fs.grids.uniform(s, 2), prediction="flow").save("p.fsplan")
    Path("unsound.py").write_text("def make(:")
    Path("cut.npz").write_bytes(b"PK\x03\x04, and no more")
    np.save("i.npy", np.full((1, 1, 4, 4), 1e300))
    before = sorted(os.listdir())
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and words in said
    assert said.startswith(f"fastsample {arguments[0]}: ")
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["show"],
        ["sample", "p", "--samples", "0"],
        ["sample", "p", "--shape", "1,x"],
        ["sample", "p", "--seed", "9" * 20],
        ["optimize", "--budget", "-1"],
        ["sample", "p", "--guidance", "inf"],
        ["doctor", "--soon"],
    ],
)
def test_what_argparse_refuses_also_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    command = " ".join(["fastsample", *arguments[: arguments[:1] != ["fly"]]])
    assert said.startswith(f"{command}: ") and said.endswith(
        f"; {command} --help says what is accepted\n"
    )


def test_traceback_on_demand(here):
    with pytest.raises(ValueError, match="absent"):
        cli.main(["show", "absent.fsplan", "--traceback"])


def test_an_interrupt_leaves_nothing(here, capsys):
    options = "--shape 4 --samples 2 --budget 2 --out plans"
    assert call(f"optimize --model mine:interrupted {options}") == 130
    assert "interrupted" in capsys.readouterr().err and sorted(os.listdir()) == ["mine.py"]


def test_help_is_a_page(capsys):
    """Every command with a line, examples that are read as they stand, and the exit codes."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and max(map(len, said.splitlines())) <= 100
    for command in cli.COMMANDS:
        name = command.__name__.rpartition(".")[2]
        assert f"    {name}" in said and f"  fastsample {name} " in said
    assert re.findall(r"^  (\d+) ", said, re.M) == ["0", "2", "130"]
    lines = re.findall(r"^  fastsample (.+?)(?:  .*)?$", said, re.M)
    for line in lines:
        cli.parser().parse_args(shlex.split(line))
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0 and fs.__version__ in capsys.readouterr().out


def test_help_has_an_example_for_every_command(capsys):
    for name in ("demo", "optimize", "sample", "show", "convert", "doctor"):
        with pytest.raises(SystemExit) as stop:
            cli.main([name, "--help"])
        assert stop.value.code == 0 and f"example:\n  fastsample {name}" in capsys.readouterr().out


def test_python_dash_m_is_the_command_and_help_is_light():
    code = """
import sys, runpy
sys.argv = ["fastsample", "--help"]
try:
    runpy.run_module("fastsample", run_name="__main__")
except SystemExit:
    print(sorted({"torch", "matplotlib", "scipy"} & set(sys.modules)))
"""
    command, root = [sys.executable, "-c", code], Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "fastsample demo" in done.stdout and done.stdout.rstrip().endswith("[]"), done.stderr


def small_demo():
    it = cli.embedded()
    teacher = fs.solvers.dpmpp_3m(it.model, fs.grids.fine(it.model.schedule, 24))
    options = {"searched": 4, "teacher": teacher, "beam": 1, "iterations": 1, "batch": 8}
    z, held_out, label = it.noise(36, 0), it.noise(4, cli.UNSEEN), it.words(36)["cond"]["label"]
    options |= {"budgets": (2, 3), "command": "mine"}
    return fs.report.demo(it.model, z, label, held_out, Path("demo"), **options)


FOUND = {"search.html", "search.csv", "plan-2.fsplan", "plan-3.fsplan"}


@pytest.mark.slow
def test_the_demo_shows_the_gain(here, capsys, monkeypatch):
    """A small demo: every part of it runs; fit and polish beat the usual and all made by hand at
    every budget; the plans, the page and the pictures are there.
    """
    monkeypatch.setattr(fs.metrics, "STARTS", (10.0,))
    few = {name: fs.solvers.SOLVERS[name] for name in ("euler", "dpmpp_2m", "dpmpp_3m", "unipc")}
    monkeypatch.setattr(fs.solvers, "SOLVERS", few)
    os.mkdir("demo")
    Path("demo/mine.txt").touch()
    made = small_demo()
    said, search = capsys.readouterr().out, made["search"]
    psnr = {name: {m: s.mean for m, s in row.items()} for name, row in made["scores"].items()}
    pictures = {"samples.png", "schedules.png", "error_vs_evaluations.png"}
    assert FOUND | pictures | {"mine.txt"} == set(os.listdir("demo"))
    wrote = re.search(r"^wrote (.*) to demo\n\Z", said, re.M)[1].split(", ")
    assert sorted(wrote) == sorted(FOUND | pictures)
    assert "class accuracy" in said and search.about_teacher() in said
    usual = ("euler (Karras)", "dpmpp_2m (Karras)", "by hand", "model-free")
    assert list(psnr) == [*usual, "fit", "polish"]
    for m in (2, 3):
        ours = max(psnr["fit"][m], psnr["polish"][m])
        assert ours > max(psnr[name][m] for name in usual)
        found = fs.Plan.load(f"demo/plan-{m}.fsplan").note["found"]
        assert psnr[found["method"]][m] == ours and found["command"] == "mine"
        for rung in search.rungs:  # the demo's own runs, beside what the search judged
            assert psnr[rung.name][m] == pytest.approx(rung.psnr[m][0], abs=1e-6)
            assert re.search(rf"^{rung.name}.* {m} +{psnr[rung.name][m]:.2f} ", said, re.M)


def test_a_demo_cut_short_keeps_what_was_found(here, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(_climb.Climb, "fit", stop)
    with pytest.raises(KeyboardInterrupt):
        small_demo()
    pictures = {"samples.png", "schedules.png", "error_vs_evaluations.png"}
    assert set(os.listdir("demo")) == FOUND | pictures
    assert fs.Plan.load("demo/plan-3.fsplan").note["found"]["method"] == "model-free"
