"""Files: written whole or not at all; what is no regular file is left as it is, links lead on,
modes stay.
"""

import errno
import os
import socket
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fastsample as fs
from fastsample import cli, files, report
from fastsample.optimize._search import Search

SCHEDULE = fs.schedules.Flow()
PLAN = fs.solvers.euler(SCHEDULE, fs.grids.uniform(SCHEDULE, 2), prediction="flow")
DOORS = {
    "Plan.save": (PLAN.save, PLAN.to_bytes()),
    "write_whole": (lambda path: files.write_whole(path, b"new"), b"new"),
    "save_images": (
        lambda path: report.save_images(path, np.zeros((1, 2, 2)), zoom=1),
        report.png(report.image_grid(np.zeros((1, 2, 2)))),
    ),
}


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def kind_of(path):
    """Which thing stands there, itself and not where it leads."""
    return os.lstat(path).st_ino, os.lstat(path).st_mode


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, and a umask of 022 whatever the caller's."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def special(kind, name):
    if kind == "fifo":
        os.mkfifo(name)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as it:
            it.bind(name)
    elif kind == "folder":
        os.mkdir(name)
    elif kind == "loop":
        os.symlink(name, name)
    elif kind == "link to a fifo":
        os.mkfifo("fifo")
        os.symlink("fifo", name)
    elif kind == "link into no folder":
        os.symlink("absent/file", name)
    elif kind == "link to a folder":
        os.symlink(".", name)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "kind",
    ["fifo", "socket", "folder", "loop"]
    + ["link to a fifo", "link into no folder", "link to a folder"],
)
def test_what_is_no_regular_file_is_refused_and_stays(here, door, kind):
    special(kind, "it.png")
    before = {name: kind_of(name) for name in os.listdir()}
    what = r"is no regular file \([ps]|is a folder, or lies in none|leads to no file \(Too many"
    with pytest.raises(OSError, match=f"^save: it.png ({what}).*; .* accepted$"):
        DOORS[door][0]("it.png")
    assert {name: kind_of(name) for name in os.listdir()} == before


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
@pytest.mark.parametrize(
    ("links", "target"),
    [
        ({"link": "a/file"}, "a/file"),
        ({"a/link": "../b/file"}, "b/file"),
        ({"link": "b/over", "b/over": "../a/file"}, "a/file"),
        ({"c": "b"}, "b/c"),
    ],
    ids=["link", "upwards", "two links", "folder"],
)
def test_links_are_followed_and_stay(here, door, there, links, target):
    save, data = DOORS[door]
    os.mkdir("a"), os.mkdir("b")
    for name, leads in links.items():
        os.symlink(leads, name)
    if there:
        Path(target).write_bytes(b"old")
        os.chmod(target, 0o640)
    save("c/c" if "c" in links else next(iter(links)))
    assert Path(target).read_bytes() == data and not os.path.islink(target)
    assert mode(target) == (0o640 if there else 0o644)
    assert {name: os.readlink(name) for name in links} == links
    things = sum(len(folders) + len(names) for _, folders, names in os.walk("."))
    assert things == 2 + len(links) + 1, "nothing else is there"


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o664, 0o755])
def test_an_old_file_keeps_its_mode_and_is_never_more_open(here, monkeypatch, kept):
    Path("it").write_bytes(b"old")
    os.chmod("it", kept)
    seen, sync = [], os.fsync
    look = lambda handle: seen.append(stat.S_IMODE(os.fstat(handle).st_mode))
    monkeypatch.setattr(os, "fsync", lambda handle: (look(handle), sync(handle)))
    PLAN.save("it")
    assert mode("it") == kept and seen == [0o600]


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027, 0o077, 0])
def test_a_new_file_has_the_mode_of_open_and_nobodys_umask_is_touched(here, monkeypatch, mask):
    os.umask(mask)
    Path("opened").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(os, "umask", None)
        PLAN.save("it")
    assert mode("it") == mode("opened") == 0o666 & ~mask


@pytest.mark.parametrize("refused", [(), ("owner",), ("owner", "group")])
def test_owner_and_group_stay_where_they_may(here, monkeypatch, refused):
    Path("it").write_bytes(b"old")
    os.chmod("it", 0o640)
    old, set_to = os.stat("it"), []

    def chown(name, owner, group):
        set_to.append((owner, group))
        if ("owner" if group == -1 else "group") in refused:
            raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    PLAN.save("it")
    assert set_to == [(old.st_uid, -1), (-1, old.st_gid)] and mode("it") == 0o640
    assert Path("it").read_bytes() == PLAN.to_bytes()


def failing(name, error, after=False):
    """os.<name>, which raises instead of working, or once it has worked."""
    real = getattr(os, name)

    def call(*args, **kwargs):
        if after:
            done = real(*args, **kwargs)
            os.close(done) if name == "open" else None
        raise error

    return call


STEPS = [("open", False), ("open", True), ("fsync", False), ("chmod", False), ("replace", False)]
ERRORS = [
    PermissionError(errno.EACCES, "Permission denied"),
    OSError(errno.ENOSPC, "No space left on device"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(("step", "after"), STEPS, ids=lambda v: str(v))
def test_whatever_fails_the_old_file_stays_alone(here, monkeypatch, step, after, error):
    os.mkdir("plans")
    Path("plans/it").write_bytes(b"old")
    os.chmod("plans/it", 0o640)
    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing(step, error, after))
        with pytest.raises(type(error)) as raised:
            PLAN.save("plans/it")
    assert os.listdir("plans") == ["it"] and mode("plans/it") == 0o640
    assert Path("plans/it").read_bytes() == b"old"
    if isinstance(error, OSError):
        sentence = f"save: plans/it could not be written in the folder {here}/plans "
        sentence += f"({error.strerror}); a folder that can be written,"
        assert str(raised.value).startswith(sentence) and ".fastsample" not in str(raised.value)


def test_a_protected_file_is_refused(here, monkeypatch):
    """Root may write anything: the answer is what counts, so it is given."""
    Path("it").write_bytes(b"old")
    os.chmod("it", 0o444)
    given = lambda name, how: not (how == os.W_OK and name == str(here / "it"))
    monkeypatch.setattr(os, "access", given)
    with pytest.raises(PermissionError, match=r"save: it is protected from writing \(-r--r--r--\)"):
        PLAN.save("it")
    assert Path("it").read_bytes() == b"old"


@pytest.mark.parametrize("path", ["it", b"it", Path("it"), "x" * 255, "é" * 127])
def test_every_kind_of_path_is_taken(here, path):
    PLAN.save(path)
    assert os.listdir() == [os.fsdecode(path)] and fs.Plan.load(path).to_bytes() == PLAN.to_bytes()


@pytest.mark.parametrize(
    ("path", "error", "sentence"),
    [
        ("", ValueError, "the path is ''"),
        ("a\0b", ValueError, r"the path is 'a\\x00b'"),
        (None, TypeError, "the path is None, a NoneType"),
        (1, TypeError, "the path is 1, a int"),
        (True, TypeError, "the path is True, a bool"),
        ("new/", FileNotFoundError, "new/ is a folder, or lies in none"),
        (b"old/", OSError, r"old/ leads to no file \(Not a directory\)"),
        ("old/it", OSError, r"old/it leads to no file \(Not a directory\)"),
        ("new/.", FileNotFoundError, "new/. is a folder, or lies in none"),
        ("a\ud800", ValueError, r"the path is 'a\\ud800'"),
        ("x" * 256, OSError, r"leads to no file \(File name too long\)"),
    ],
)
def test_what_names_no_file_is_refused(here, path, error, sentence):
    Path("old").write_bytes(b"old")
    with pytest.raises(error, match=f"^save: .*{sentence}.*; .* accepted$"):
        PLAN.save(path)
    assert os.listdir() == ["old"] and Path("old").read_bytes() == b"old"


def test_a_working_folder_that_is_gone_is_named(here):
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir(here / "gone")
    sentence = "^save: it lies in a working folder that is gone; .* accepted$"
    with pytest.raises(FileNotFoundError, match=sentence):
        PLAN.save("it")
    PLAN.save(here / "it")
    assert os.listdir(here) == ["it"]


def test_a_file_descriptor_is_left_to_its_owner(here):
    PLAN.save("it")
    with open("it", "rb") as file:
        for use in (PLAN.save, fs.Plan.load):
            with pytest.raises(TypeError, match=rf"the path is {file.fileno()}, a int; a str"):
                use(file.fileno())
        assert file.read() == PLAN.to_bytes()


@pytest.mark.parametrize("there", ["file", "fifo", "link into no folder"])
def test_a_folder_that_cannot_be_one_is_refused_before_the_work(here, capsys, there):
    Path("it").write_bytes(b"old") if there == "file" else special(there, "it")
    before = kind_of("it")
    for folder in ("it", "it/below"):
        sentence = f"^save: the folder {folder} cannot be made .*; the name of a folder is accepted"
        with pytest.raises(OSError, match=sentence):
            Search.save(SimpleNamespace(plans={2: PLAN}), folder)
        for command in ("optimize", "demo"):
            assert cli.main([command, "--out", folder]) == 2
            said = f"fastsample {command}: --out {folder}: it is no folder that can be written; "
            assert capsys.readouterr().err.startswith(said)
    assert os.listdir() == ["it"] and kind_of("it") == before


def test_a_folder_has_a_name(here, capsys):
    with pytest.raises(ValueError, match="^save: the path is ''; a name, .* accepted$"):
        Search.save(SimpleNamespace(plans={2: PLAN}), "")
    for command in ("optimize", "demo"):
        assert cli.main([command, "--out", ""]) == 2
        assert capsys.readouterr().err.startswith(f"fastsample {command}: --out: the path is ''; ")
    assert not os.listdir()


def test_the_command_line_refuses_before_it_samples(here, capsys, monkeypatch):
    monkeypatch.setattr(cli, "subject", None)  # the work would begin here
    PLAN.save("p.fsplan")
    for kind, name in (("fifo", "a.png"), ("socket", "a.npy"), ("link into no folder", "b.npy")):
        special(kind, name)
        assert cli.main(["sample", "p.fsplan", "--out", name]) == 2
        assert capsys.readouterr().err.startswith(f"fastsample sample: save: {name} is ")
