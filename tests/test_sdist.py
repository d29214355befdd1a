"""The sdist: the whole tree, from which the tests run and every wheel is built; one tree gives the
same bytes whenever it is packed.
"""

import os
import shutil
import tarfile
from pathlib import Path

import pytest
from c import build
from test_native_build import released

pytestmark = pytest.mark.slow
OWN = {"FASTSAMPLE_NATIVE": "off", "SOURCE_DATE_EPOCH": "1780000000"}


def tracked():
    """The files of the tree, as git or, where there is none, as the sdist that this is says."""
    if (build.ROOT / ".git").exists():
        return build.run("git", "ls-files", cwd=build.ROOT).splitlines()
    listed = (build.ROOT / "fastsample.egg-info/SOURCES.txt").read_text().splitlines()
    return [name for name in listed if not name.startswith("fastsample.egg-info/")]


def packed(folder, date):
    """The sdist of a copy of the tree whose files are all of this date."""
    for name in tracked():
        path = folder / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(build.ROOT / name, path)
        os.utime(path, (date, date))
    (folder / "out").mkdir()
    return released().sdist(folder / "out", folder / "tree", "--no-isolation", **OWN)


def test_the_sdist_is_the_tree_and_always_the_same(tmp_path):
    first, second = (tmp_path / name for name in "ab")
    made = packed(first, 1_700_000_000)
    assert made.read_bytes() == packed(second, 1_750_000_000).read_bytes()
    with tarfile.open(made) as archive:
        members = archive.getmembers()
    top = made.name.removesuffix(".tar.gz")
    names = {member.name.removeprefix(f"{top}/") for member in members}
    more = {name for name in names - {*tracked()} if not name.startswith("fastsample.egg-info/")}
    assert {*tracked()} <= names and more == {"PKG-INFO", "setup.cfg"}
    assert {(m.uid, m.gid, m.uname, m.mtime) for m in members} == {(0, 0, "", 1780000000)}
    assert not any(Path(name).suffix in (".so", ".pyc", ".whl") for name in names)
