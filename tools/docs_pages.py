"""Writes those pages of docs/ that follow from the code: docs/api/*.md, docs/citations.md, and the
cards of docs/gallery.md, of the plans in docs/gallery.

python tools/docs_pages.py [--check]; --check fails where a page is not what is written, and writes
nothing. A page of the API is a line for each name, which `make docs` fills from its docstring.
"""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from fastsample import grids
from fastsample.plan import Plan
from fastsample.schedules import EDM
from fastsample.solvers import SOLVERS

DOCS = Path(__file__).resolve().parents[1] / "docs"
COMMAND = "python tools/docs_pages.py"
# page: its title, the modules whose docstrings it has, and names beside those of their __all__
API = {
    "model": ("Model", ["model"], ["model.Model"]),
    "plan": ("Plan", ["plan"], ["Plan", "PlanError"]),
    "sampler": ("Sampler and Run", ["runtime.sampler", "runtime.run"], ["Sampler", "Run"]),
    "conditions": (
        "Conditions, seeds, windows",
        ["runtime.conditions", "runtime.sources"],
        ["shared", "window", "brownian", "Select"],
    ),
    "engine": (
        "Engine",
        ["runtime.engine", "runtime.queue"],
        ["Engine", "runtime.ticket.Ticket", "EngineFull", "DeadlineExceeded"],
    ),
    "solvers": ("Solvers", ["solvers"], []),
    "grids": ("Grids", ["grids"], []),
    "schedules": ("Schedules", ["schedules"], []),
    "guidance": ("Guidance", ["guidance"], ["guidance.guided"]),
    "optimize": (
        "Searches",
        ["optimize", "optimize.search", "optimize.fit", "optimize.polish", "optimize.oss"]
        + ["optimize.gits", "optimize.ays"],
        ["optimize.Given", "optimize.model_free", "optimize.polish"],
    ),
    "metrics": ("Metrics and trajectories", ["metrics", "trajectories"], []),
    "interop": (
        "In other people's loops",
        ["interop", "interop.lerobot", "interop.mflux"],
        ["export", "interop.lerobot.integrator", "interop.lerobot.install"]
        + ["interop.lerobot.recorded", "interop.lerobot.Recorded"],
    ),
    "models": (
        "Embedded and exact models",
        ["models", "models.analytic"],
        ["models.analytic.GaussianMixture", "models.analytic.Gaussian", "models.analytic.Point"]
        + ["models.analytic.ring", "models.analytic.waves"],
    ),
    "report": ("Pages and pictures", ["report"], []),
}


PAPER = re.compile(r"\b(?:arXiv:)?(\d{4}\.\d{4,5})\b|doi:(\S+[^\s.,)])")
OPTIONS = "    options:\n      show_root_heading: false\n      members: false\n"


def api(title: str, modules: list[str], further: list[str]) -> str:
    """A page of the API."""
    told = [f"::: fastsample.{module}\n{OPTIONS}" for module in modules]
    each = [f"::: {o.__module__}.{o.__qualname__}" for o in named(modules, further)]
    head = f"# {title}\n\nWhat `help()` says of these names. Written by `{COMMAND}`.\n"
    return "\n".join([head, *told, *each]) + "\n"


def named(modules: list[str], further: list[str]) -> list[Any]:
    """The classes and functions of a page, in order."""
    fronts = [import_module(f"fastsample.{module}") for module in modules]
    found = [getattr(of, name) for of in fronts for name in getattr(of, "__all__", [])]
    for name in further:
        module, _, last = f"fastsample.{name}".rpartition(".")
        found.append(getattr(import_module(module), last))
    return list(dict.fromkeys(o for o in found if inspect.isclass(o) or inspect.isfunction(o)))


def citations() -> str:
    """Whom the solvers cite, as their plans say, and which papers the API's docstrings name."""
    by, schedule = {}, EDM()
    for name, solver in SOLVERS.items():
        plan = solver(schedule, grids.karras(schedule, 4), prediction="x0")
        for source in plan.note.get("citations", []):
            by.setdefault(source, []).append(f"`{name}`")
    lines = [f"- {linked(source)}: {', '.join(by[source])}" for source in sorted(by)]
    papers = {}
    for page, (_, modules, further) in API.items():
        said = [(f"`{module}`", import_module(f"fastsample.{module}")) for module in modules]
        if page != "solvers":
            at = "optimize." if page == "optimize" else ""  # a search's help() has its module's
            said += [(f"`{at}{thing.__name__}`", thing) for thing in named(modules, further)]
        for name, thing in said:
            for paper in PAPER.finditer(inspect.getdoc(thing) or ""):
                papers.setdefault(linked(paper[0]), {})[name] = None
    table = [f"| {paper} | {', '.join(where)} |" for paper, where in sorted(papers.items())]
    return CITATIONS.format(COMMAND, "\n".join(lines), "\n".join(table))


CITATIONS = """# Citations

Who made what stands here. A plan says it itself: `plan.note["citations"]` names the method's paper
and the place in it, in the file too, so that whoever is handed a plan can cite it. Written by
`{}`.

## Solvers

{}

## Searches, schedules, grids and models

| paper | named by |
|---|---|
{}
"""


def linked(text: str) -> str:
    """With a link for each paper."""

    def link(paper: re.Match) -> str:
        at = f"https://arxiv.org/abs/{paper[1]}" if paper[1] else f"https://doi.org/{paper[2]}"
        return f"[{f'arXiv:{paper[1]}' if paper[1] else paper[0]}]({at})"

    return PAPER.sub(link, text)


def gallery() -> str:
    """The page of the plans, with a card for each between its marks."""
    cards = []
    for path in sorted((DOCS / "gallery").glob("*.fsplan")):
        plan, size = Plan.load(path), path.stat().st_size
        cards += [f"### {path.stem}", f"[{path.name}](gallery/{path.name}), {size:,} bytes."]
        cards.append(f'<div class="card">{plan._repr_html_()}</div>')
    page = (DOCS / "gallery.md").read_text()
    inner = "\n\n".join(["<!-- cards -->", *cards, "<!-- end -->"])
    return re.sub("<!-- cards -->.*<!-- end -->", lambda _: inner, page, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """What is written, by file."""
    made = {DOCS / "api" / f"{page}.md": api(*of) for page, of in API.items()}
    return {**made, DOCS / "citations.md": citations(), DOCS / "gallery.md": gallery()}


def main(words: list[str]) -> None:
    for path, text in pages().items():
        if words == ["--check"] and path.read_text() != text:
            sys.exit(f"docs_pages: {path} is stale; {COMMAND} writes it")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
