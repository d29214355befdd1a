"""The command line's streams: a reader that goes early, a full disk behind standard output, none at
all, and progress where tqdm is missing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastsample as fs
from fastsample import cli
from fastsample.cli import options

ROOT = Path(__file__).resolve().parents[1]
MINE = """
import fastsample as fs

def fails(x, t):
    raise BrokenPipeError("the worker has gone")

def make(fn=lambda x, t: -x):
    return fs.Model(fn, schedule=fs.schedules.Flow(), prediction="flow")

def gone():
    return make(fails)
"""
SAMPLE = ["sample", "p.fsplan", "--shape", "1,2,2", "--samples", "2"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    Path("mine.py").write_text(MINE)
    s = fs.schedules.Flow()
    fs.solvers.euler(s, fs.grids.uniform(s, 2), prediction="flow").save("p.fsplan")
    return tmp_path


def code_of(*words):
    try:
        return cli.main([*words])
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize("buffering", [1, -1], ids=["by-the-line", "by-the-block"])
def test_a_reader_that_goes_early_is_no_error_and_costs_no_file(
    here, monkeypatch, capfd, buffering
):
    def unread(*words):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w", buffering=buffering) as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stream)
            return code_of(*words)  # to close the stream raises, were anything left in its buffer

    assert unread("--help") == unread("show", "--help") == 0
    assert unread("show", "p.fsplan", "--picture", "p.png") == 0
    files = ["--out", "a.npy", "--out", "a.png"]
    assert unread(*SAMPLE, "--model", "mine:make", *files) == 0
    assert {"p.png", "a.npy", "a.png"} <= {*os.listdir()}
    assert unread("show", "absent") == 2
    assert capfd.readouterr().err.splitlines() == [
        "fastsample show: absent: No such file or directory; the path of a .fsplan file is needed"
    ]


def test_a_pipe_that_a_model_lost_is_no_reader_that_went(here, capsys):
    assert cli.main([*SAMPLE, "--model", "mine:gone", "--out", "a.npy"]) == 2
    assert capsys.readouterr().err == "fastsample sample: the worker has gone\n"
    assert not os.path.exists("a.npy")


def test_what_cannot_be_written_is_said_by_the_command_and_not_by_python(here):
    """Standard output and error on a full disk, at the end of a process of its own."""
    command = [sys.executable, "-m", "fastsample", "show"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("PYTHONUNBUFFERED", None)  # with it nothing is left for the end
    with open("/dev/full", "w") as full:
        out = subprocess.run([*command, "p.fsplan"], stdout=full, stderr=-1, text=True, env=env)
        err = subprocess.run([*command, "absent"], stderr=full, env=env)
    assert out.stderr == "fastsample: standard output: No space left on device\n"
    assert out.returncode == err.returncode == 2


def test_a_command_without_streams_is_done(here, monkeypatch, capfd):
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert code_of("convert", "p.fsplan", "--to", "sigmas") == code_of("show", "p.fsplan") == 0
    assert code_of("convert", "-", "--to", "sigmas") == 2
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_on_a_terminal_where_tqdm_is_installed(monkeypatch):
    given = lambda *words: options.progress(cli.parser().parse_args(["demo", *words]))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert given() and given("--progress") and not given("--no-progress")
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert not given() and given("--progress")
