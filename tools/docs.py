"""Builds the documentation: python tools/docs.py, in an environment with the extra `docs`.

The pages of docs/ are copied to build/docs. A file of the repository that they point to (an
example, the C header) becomes a page of its own there. zensical makes build/site of them, strictly:
anything that it or griffe has to say fails. Last, every link and every file that a page asks for
must be in the site, or, links alone, be an address elsewhere: a page loads nothing from the net.
No backslash that Markdown should have taken may show.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
DOCS, STAGE, SITE = ROOT / "docs", ROOT / "build" / "docs", ROOT / "build" / "site"
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)]*)?\)")
SAID = re.compile(r"\s*|Build (started|finished in .*)|No issues found")
KEPT = re.compile(r"\\[\\*_<>\[\]|#~].{,20}")
VERBATIM = ("code", "pre", "script", "style")
LANGUAGES = {"py": "python", "h": "c", "hpp": "cpp", "sh": "sh", "": "text", "md": "markdown"}


def main() -> None:
    if find_spec("zensical") is None:
        sys.exit("docs: zensical is not installed; pip install 'fastsample[docs]'")
    for folder in (STAGE, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS, STAGE)
    waiting, done = sorted(DOCS.rglob("*.md")), set()
    while waiting:
        page = waiting.pop()
        found = sorted(stage(page) - done)
        done.update(found)
        waiting += [path for path in found if path.suffix == ".md"]
    command = ["zensical", "build", "--strict", "--clean"]
    words = {**os.environ, "PYTHONPATH": str(ROOT / "tools"), "NO_COLOR": "1"}
    built = subprocess.run(command, cwd=ROOT, env=words, text=True, capture_output=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", built.stdout + built.stderr)
    if built.returncode or any(not SAID.fullmatch(line) for line in text.splitlines()):
        sys.exit(f"docs: {text}")
    if faults := astray(SITE):
        sys.exit("docs: " + "; ".join(faults))
    print(f"docs: {len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}, no warnings")


def stage(page: Path) -> set[Path]:
    """Write a page as it is in the site; the files outside docs/ that it points to."""
    found = set()

    def link(match: re.Match) -> str:
        target = Path(os.path.normpath(page.parent / match[2]))
        if not target.is_file() or DOCS in target.parents:
            return match[0]
        found.add(target)
        way = os.path.relpath(place(target), place(page).parent)
        return f"{match[1]}{way}{match[3] or ''})"

    shown = place(page)
    shown.parent.mkdir(parents=True, exist_ok=True)
    shown.write_text(LINK.sub(link, page.read_text()))
    for path in found:
        if path.suffix != ".md":
            name, language = path.relative_to(ROOT), path.suffix[1:]
            fence = f"```{LANGUAGES.get(language, language)}\n{path.read_text()}```"
            place(path).parent.mkdir(parents=True, exist_ok=True)
            place(path).write_text(f"# {name}\n\n{fence}\n")
    return found


def place(path: Path) -> Path:
    """Where a file of the repository stands among the pages."""
    if DOCS in path.parents:
        return STAGE / path.relative_to(DOCS)
    name = path.relative_to(ROOT)
    return STAGE / "source" / (name if path.suffix == ".md" else f"{name}.md")


class Page(HTMLParser):
    """What a page has names for, points to and asks for, and backslashes that were to keep a mark
    as it is and show.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names, self.links, self.files, self.kept, self.verbatim = set(), [], [], [], 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        self.verbatim += tag in VERBATIM
        words = {name: value or "" for name, value in given}
        self.names |= {words[name] for name in ("id", "name") if name in words}
        if tag == "a" and "href" in words:
            self.links.append(words["href"])
        elif tag in ("link", "script", "img", "source", "iframe"):
            self.files += [words[name] for name in ("href", "src") if name in words]

    def handle_endtag(self, tag: str) -> None:
        self.verbatim -= tag in VERBATIM

    def handle_data(self, text: str) -> None:
        if not self.verbatim:
            self.kept += KEPT.findall(text)


def astray(site: Path) -> list[str]:
    """In words, each link to what the site lacks, file from elsewhere and backslash that shows."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    faults = []
    for path, page in pages.items():
        where = path.relative_to(site)
        faults += [f"{where} loads {at}" for at in page.files if urlsplit(at).netloc]
        faults += [f"{where} shows {text!r}" for text in page.kept]
        for address in [*page.links, *page.files]:
            way = urlsplit(address)
            if way.scheme or way.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(way.path))) if way.path else path
            target = target / "index.html" if target.is_dir() else target
            names = pages[target].names if target in pages else set()
            if not target.is_file() or (way.fragment and unquote(way.fragment) not in names):
                faults.append(f"{where} points to {address}, which is not there")
    return faults


if __name__ == "__main__":
    main()
