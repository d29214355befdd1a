"""The code on a page, run as one who reads it would: from the top, in one session, in an empty
folder.

A block ```text right after a block ```python or ```sh is what that prints. Words and whole numbers
are compared as they are; a fraction may be off by two in its last digit, for sums that are taken in
another order move what is rounded.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class Block(NamedTuple):
    language: str
    text: str


def blocks(page, language=None):
    """The code blocks of a page, all or those of one language."""
    found = []
    for indent, of, text in BLOCK.findall(page.read_text()):
        text = "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
        found.append(Block(of, text))
    return [block for block in found if language in (None, block.language)]


def run(found, names=None):
    """Run blocks in the folder where one stands: Python in `names`, and lines of a shell that call
    fastsample or python; the names that are then there.
    """
    names = {} if names is None else names
    for block, after in zip(found, [*found[1:], None], strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if block.language == "python":
                exec(compile(block.text, "<page>", "exec"), names)
            elif block.language == "sh":
                for command in commands(block.text):
                    sys.stdout.write(called(command))
        if after is not None and after.language == "text" and block.language in ("python", "sh"):
            alike(printed.getvalue(), after.text)
    return names


def commands(text):
    """The commands of a block of shell, each a list of words, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def called(words):
    """What a command prints. Other programs than fastsample and python have tests elsewhere."""
    if words[0] == "fastsample":
        words = [sys.executable, "-m", *words]
    elif words[0] == "python":
        words = [sys.executable, *words[1:]]
    else:
        return ""
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout


def alike(printed, shown):
    """AssertionError where what was printed is not what the page shows."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown), f"printed:\n{printed}"
    for have, want in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        off = 2.1 * 10.0 ** -len(want.partition(".")[2]) if "." in want else 0.0
        assert abs(float(have) - float(want)) <= off, f"printed:\n{printed}"


def links(page):
    """Where a page's links within the repository lead."""
    text = BLOCK.sub("", page.read_text())
    paths = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    return [page.parent / path for path in paths]
