"""README's doors from an installed wheel: what each tells a newcomer to paste, pasted. `make wheel`
runs this in the wheel's environment; README is the wheel's own, as a package index shows it.

PYTHONPATH=tests python tools/doors.py SOURCE

Every block of Python runs by itself, in a folder of its own, and prints what README says. A line of
a shell that calls `fastsample` runs where `package.module:factory` is a model of one line, on few
and small noises (SMALL); the line for a pipeline is left to tests/test_pipelines.py, since it needs
a whole text encoder. The C++ program is built with the library of SOURCE, an unpacked sdist, as its
.pc files say, and runs the plan that a Python door saved.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pages
from c import build

import fastsample

FACTORY = """
import fastsample as fs

def factory():
    return fs.Model(lambda x, t: -x, fs.schedules.Flow(shift=3.0), "flow")
"""
SMALL = ["--shape", "4,8,8", "--samples", "20", "--held-out", "4"]


@contextlib.contextmanager
def empty() -> Iterator[Path]:
    """An empty folder, in which one stands."""
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def python(found: list[pages.Block], saved: Path) -> Iterator[str]:
    """The first words of each door that ran. What the doors save ends in `saved`."""
    for block, after in zip(found, [*found[1:], None], strict=True):
        if block.language != "python":
            continue
        shown = [after] if after is not None and after.language == "text" else []
        with empty() as folder:
            pages.run([block, *shown])
            for path in folder.glob("*.fsplan"):
                shutil.copy(path, saved)
        yield block.text.partition("\n")[0]


def shell(found: list[pages.Block]) -> Iterator[str]:
    """The lines that ran, one after the other in one folder."""
    with empty() as folder:
        (folder / "package").mkdir()
        (folder / "package/module.py").write_text(FACTORY)
        for block in found:
            for words in pages.commands(block.text) if block.language == "sh" else []:
                if words[0] != "fastsample" or "--pipeline" in words:
                    continue
                pages.called(words + (SMALL if words[1] == "optimize" else []))
                yield shlex.join(words)


def cpp(found: list[pages.Block], source: Path, plan: Path) -> Iterator[str]:
    """What each program printed."""
    with empty() as folder:
        build.run("cmake", "-S", source / "csrc", "-B", "made", "-G", "Ninja", *build.PLAIN)
        build.run("cmake", "--build", "made")
        build.run("cmake", "--install", "made", "--prefix", folder / "prefix")
        core, engine = (
            build.package(folder / "prefix", name) for name in ("fastsample", "fastsample-engine")
        )
        words = f"program.cpp {core['Cflags']} {engine['Libs']} {core['Libs']}"
        words = f"-std=c++17 {words} -Wl,-rpath,{core['libdir']} -o program"
        for block in found:
            if block.language == "cpp":
                Path("program.cpp").write_text(block.text)
                build.run("c++", *words.split())
                yield f"program.cpp: {build.run('./program', plan).strip()}"


def main() -> None:
    source = Path(sys.argv[1]).resolve()
    if Path(fastsample.__file__).is_relative_to(build.ROOT / "fastsample"):
        raise SystemExit(f"doors: {fastsample.__file__} is the checkout's; a wheel's is wanted")
    os.environ.pop("PYTHONPATH", None)  # what the doors start has the wheel alone
    with TemporaryDirectory() as folder:
        readme = Path(folder, "README.md")
        readme.write_text(importlib.metadata.metadata("fastsample").get_payload())
        found, saved = pages.blocks(readme), Path(folder, "saved")
        saved.mkdir()
        ran = [*python(found, saved), *shell(found), *cpp(found, source, next(saved.iterdir()))]
    print(*ran, sep="\n")


if __name__ == "__main__":
    main()
