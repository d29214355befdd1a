"""The form of this project's docstrings, as Markdown.

A docstring is paragraphs, and has besides only

    lists       lines "name  text" or "name  type  text": two or more spaces before a text that
                begins in one column in every line and goes on in that column; that of a longer
                name begins behind it
    displays    lines indented by four: formulas, code, tables; a list where they are one

and within a line code in backticks, and shapes in brackets such as [B,*]. As it stands Markdown
would run a list together, and set what lies between two `*` or `_` of formulas in italics.
"""

from __future__ import annotations

import re
from functools import partial
from inspect import cleandoc

ENTRY = re.compile(r"(?P<name>.*\S) {2,}(?=[^\s=#])")
SHAPE = re.compile(r"(`[^`]*`)|(\w*\[[\w*+·-]+(?:, ?[\w*+·-]+)*\])")
MARKS = re.compile(r"[\\*_<>\[\]|#~]")
NAMED = {"<": "&lt;", "~": "&#126;"}  # which no backslash keeps as they are


def markdown(docstring: str) -> str:
    """The docstring for Markdown with definition lists."""
    return "\n\n".join(DRAWN[kind](lines) for kind, lines in parts(docstring))


def parts(docstring: str) -> list[tuple[str, list[str]]]:
    """[("list", "display" or "prose", its lines)], in order."""
    found = []
    for block in re.split(r"\n\s*\n", cleandoc(docstring)):
        lines = block.splitlines()
        while lines:
            shown = lines[0].startswith("    ")
            kind, end = "display" if shown else "prose", 1
            if listed(lines):
                kind, end = "list", listed(lines)
            else:
                while end < len(lines) and (
                    lines[end].startswith("    ")
                    if shown
                    else not (displayed(lines[end]) or listed(lines[end:]))
                ):
                    end += 1
            found.append((kind, lines[:end]))
            lines = lines[end:]
    return found


def displayed(line: str) -> bool:
    """Is it indented, and no formula of a paragraph that goes on?"""
    return line.startswith("    ") and line.strip()[0] not in "+-·"


def listed(lines: list[str]) -> int:
    """How many of the first lines are a list."""
    first = ENTRY.match(lines[0])
    if first is None or first["name"][-1] in ",;." or " = " in first["name"]:
        return 0
    items = list(map(partial(item, column=column(lines)), lines))
    end = items.index(None) if None in items else len(lines)
    if not displayed(lines[0]):
        return end
    # as a whole or not at all, and with two columns
    whole = not any(map(displayed, lines[end : end + 1]))
    return end if whole and not any("  " in name for name, _ in items[:end]) else 0


def column(lines: list[str]) -> int:
    """Where the texts of the list that begins here do: its first, or what goes on below that."""
    first, second = (ENTRY.match(line) for line in (lines * 2)[:2])
    margin, below = (len(line) - len(line.lstrip()) for line in (lines * 2)[:2])
    same = below <= margin or (second and second.end() == first.end())
    return first.end() if same else min(first.end(), below)


def item(line: str, column: int) -> tuple[str, str] | None:
    """(name, text) of a line of a list, the name "" where a text goes on; a name may reach beyond
    the column, and its text then begins two spaces after it.
    """
    if line[:column].isspace() and line[column : column + 1].strip():
        return "", line[column:]
    entry = ENTRY.match(line)
    if entry and (entry.end() == column or len(entry["name"]) > column - 2 > 0):
        return entry["name"].strip(), line[entry.end() :]
    return None


def prose(lines: list[str]) -> str:
    """One paragraph: formulas as they are, shapes and what stands in backticks as code."""
    pieces = SHAPE.split(" ".join(line.strip() for line in lines))
    kept = lambda mark: NAMED.get(mark[0], f"\\{mark[0]}")
    texts = [MARKS.sub(kept, text or "") for text in pieces[::3]]
    codes = [old or f"`{new}`" for old, new in zip(pieces[1::3], pieces[2::3], strict=True)]
    made = "".join(a + b for a, b in zip(texts, [*codes, ""], strict=True))
    return re.sub(r"^(\d+)\.|^([-+])", r"\1\\.\2" if made[0].isdigit() else r"\\\2", made)


def display(lines: list[str]) -> str:
    return "\n".join(["```text", *(line[4:] for line in lines), "```"])


def entries(lines: list[str]) -> str:
    """A list of definitions: each name, and what is said of it."""
    found = []
    for name, text in map(partial(item, column=column(lines)), lines):
        if name:
            found.append((" ".join(name.split()), []))
        found[-1][1].append(text)
    names = [name if "`" in name else f"`{name}`" for name, _ in found]
    return "\n\n".join(f"{n}\n:   {prose(text)}" for n, (_, text) in zip(names, found, strict=True))


DRAWN = {"prose": prose, "display": display, "list": entries}
