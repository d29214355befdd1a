"""Writes docs/solvers.md: the registry, which solver to take, and what other libraries have.

python tools/solvers_page.py                 all that follows from the registry; seconds
python tools/solvers_page.py --check         fails where the page is not that; writes nothing
python tools/solvers_page.py --measure GRID  one of GRIDS on the embedded model; minutes
python tools/solvers_page.py --late GRID     on one of them, the solvers that it lacks yet
python tools/solvers_page.py --pictures      docs/solvers.png, docs/solvers_curves.png; minutes

What was measured stands in the page between `<!-- measured: GRID -->` and `<!-- end -->`, and stays
there until it is measured again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastsample import cli, grids, metrics, report, solvers
from fastsample.plan import Plan
from fastsample.plan.pays import FURTHER, MEASURED, WORSE
from fastsample.report import registry
from fastsample.solvers import SOLVERS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "solvers.md"
COMMAND = "python tools/solvers_page.py"
GRIDS = ("Karras", "Karras, not to zero", "log-uniform", "uniform flow time")
BUDGETS, NOISES = (5, 6, 8, 10, 20), 16
BLOCK = re.compile(r"<!-- measured: (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)
CURVES = ("ddim", "heun", "dpmpp_2s", "dpmpp_2m", "dpmpp_3m", "unipc", "deis", "ipndm")
SHOWN, STEPS = 4, (10, 20)  # noises and evaluations of docs/solvers.png

# why, {library: names}: what the registry does not have
NOT_HERE = [
    (
        "It chooses its steps by an error estimate while it runs; a plan is fixed before.",
        {"k_diffusion": "sample_dpm_adaptive", "comfyui": "dpm_adaptive"},
    ),
    (
        "It samples nothing: a likelihood from the model's divergence, which takes its gradient.",
        {"k_diffusion": "log_likelihood"},
    ),
    (
        "Discrete tokens: what it draws is no weighted sum of x, outputs and noise.",
        {
            "diffusers": "AmusedScheduler, BlockRefinementScheduler, DiscreteDDIMScheduler, "
            "EntropyBoundScheduler, VQDiffusionScheduler"
        },
    ),
    (
        "Its walk goes up and down the grid, the known part of the image noised anew at each "
        "turn; inpaint=True of every solver keeps the known part on a falling grid.",
        {"diffusers": "RePaintScheduler"},
    ),
    (
        "The size of its Langevin steps comes from norms of the score and the noise at hand.",
        {"diffusers": "ScoreSdeVeScheduler"},
    ),
    (
        "Euler-Maruyama in t, withdrawn there too; ddpm and euler_ancestral integrate the same "
        "equation's linear part exactly.",
        {"diffusers": "ScoreSdeVpScheduler"},
    ),
    (
        "One call of the network returns a policy that is followed over many small steps.",
        {"diffusers": "PiflowScheduler"},
    ),
    (
        "The size of x changes between its stages.",
        {"diffusers": "HeliosScheduler, HeliosDMDScheduler"},
    ),
    (
        "Levels of their own for each token or block of frames, some of them held.",
        {"diffusers": "RFD4ProteinaScheduler", "comfyui": "ar_video"},
    ),
    (
        "Times, or stages, that a network learned or a search found: gits is "
        "`fastsample.optimize.gits`.",
        {"diff_sampler": "amed, gits"},
    ),
]


def names(words: str) -> list[str]:
    """The names in a maker's words of one library, what stands in brackets left out."""
    return [name.strip() for name in re.sub(r"\([^)]*\)", "", words).split(",")]


def here() -> list[tuple[str, str, str]]:
    """(library, name there, maker) of everything that a maker is called elsewhere."""
    makers = {f.__name__: f for f in vars(solvers).values() if hasattr(f, "elsewhere")} | SOLVERS
    return [
        (library, name, maker)
        for maker, f in makers.items()
        for library, words in getattr(f, "elsewhere", {}).items()
        for name in names(words)
    ]


# -- measuring -------------------------------------------------------------------------------------
def most(name: str, model: Any, budget: int, grid: Callable[[int], Any]) -> Plan | None:
    """The plan with the most steps n on grid(n) of at most `budget` evaluations, or None."""
    for n in range(budget, 0, -1):
        try:
            plan = SOLVERS[name](model, grid(n))
        except (KeyError, ValueError):  # no such grid, or the solver refuses it
            continue
        if plan.nfe <= budget:
            return plan
    return None


def of_hand(model: Any, grid: str) -> Callable[[int], Any]:
    """n -> the times of `metrics.hand_made` by name."""
    return lambda n: metrics.hand_made(model.schedule, n, [None])[grid]


def measured(grid: str) -> str:
    """What stands in the page for a grid: mean PSNR in dB by solver and evaluations."""
    lines, teacher, agreement = scored(grid, SOLVERS)
    return block(lines, grid, f"{teacher.nfe} evaluations of {teacher.note['solver']}", agreement)


def with_late(grid: str, text: str) -> str:
    """The block of a grid with rows of the solvers that it lacks, in the registry's order."""
    late = lacking(text)
    if not late:
        return text
    rows, note = text.rstrip().split("\n\n")
    head, rule, *old = rows.splitlines()
    new = [f"| {' | '.join(cells)} |" for cells in scored(grid, late)[0]]
    place = {name: k for k, name in enumerate(SOLVERS)}
    lines = sorted([*old, *new], key=lambda line: place.get(line.split()[1], -1))
    note += f" {', '.join(late)}: {date.today()}, `--late`."
    return "\n".join([head, rule, *lines]) + f"\n\n{note}\n"


def scored(grid: str, solvers: Iterable[str]) -> tuple[list[list[str]], Plan, float]:
    """Cells by solver; the teacher, and dB to which it agrees with one of twice as many."""
    it = cli.embedded()
    noise, words = it.noise(NOISES, cli.UNSEEN), it.words(NOISES)
    teacher, agreement, target = metrics.find_teacher(it.model, noise, **words)
    found: dict[bytes, float] = {}
    lines = []
    for name in solvers:
        plans = [most(name, it.model, m, of_hand(it.model, grid)) for m in BUDGETS]
        # noise ends elsewhere than the teacher; CFG++ steps by a guidance of its own
        if any(plan is not None and (plan.L or "direction" in plan.note) for plan in plans):
            continue
        cells = [name]
        for plan, budget in zip(plans, BUDGETS, strict=True):
            if plan is None:
                cells.append("-")
                continue
            key = plan.M.tobytes() + plan.t.tobytes()
            if key not in found:
                found[key] = metrics.score(plan, it.model, noise, target, **words).mean
            cells.append(f"{found[key]:.1f}" + f" ({plan.nfe})" * (plan.nfe < budget))
        lines.append(cells)
    return lines, teacher, agreement


def block(lines: list[list[str]], grid: str, teacher: str, agreement: float) -> str:
    """The figures and how they were come by."""
    head = ("solver", *(f"{m} evaluations" for m in BUDGETS))
    return (
        f"{report.table(head, lines, True)}\n\n"
        f'{date.today()}, `{COMMAND} --measure "{grid}"`: {NOISES} noises that nothing was found '
        f"with, the classes in turn; the teacher, {teacher}, agrees with one of twice as many to "
        f"{agreement:.1f} dB.\n"
    )


def figures(text: str) -> dict[str, float]:
    """{"solver evaluations": dB} of a block."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {
        f"{name} {m}": float(cell.split()[0])
        for name, *cells in lines[2:]  # below the rule
        for m, cell in zip(BUDGETS, cells, strict=True)
        if cell != "-"
    }


def evidence(blocks: dict[str, str]) -> str:
    """What `Plan.describe` warns by, of the figures: fastsample/plan/measured.json."""
    out: dict[str, dict] = {}
    for grid, text in blocks.items():
        at = figures(text)
        for key, dB in at.items():
            name, m = key.split()
            made = of_default(name).note["arguments"]
            own = out.setdefault(grid, {}).setdefault(name, {"arguments": dict(made), "dB": []})
            cell = [spent(text, name, int(m)), dB, at[f"ddim {m}"]]
            # a plan that spends less than a budget is compared with ddim at the least that holds it
            if cell[0] not in [c[0] for c in own["dB"]]:
                own["dB"].append(cell)
    lines = [
        f"  {json.dumps(grid)}: {{\n"
        + ",\n".join(f"    {json.dumps(name)}: {json.dumps(own)}" for name, own in of.items())
        + "\n  }"
        for grid, of in out.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def spent(text: str, name: str, budget: int) -> int:
    """Evaluations of a cell: what stands there in brackets, or its budget."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    cell = row.strip("| ").split(" | ")[1 + BUDGETS.index(budget)]
    return int(cell.partition("(")[2].rstrip(")") or budget)


# -- the page --------------------------------------------------------------------------------------
def page(blocks: dict[str, str]) -> str:
    """The whole page, of the registry and what was measured."""
    legend = "\n".join(f"- **{key}**: {said}." for key, said in registry.LEGEND.items())
    reasons = "\n".join(f"| {', '.join(of)} | {why} |" for of, why in absent())
    others = [
        f"`{maker}`, {name} of {library_of(library)}"
        for library, name, maker in here()
        if maker not in SOLVERS
    ]
    return f"""# Solvers

This page says which solver to take, and has every solver with its name in other libraries. Each of
them runs with every schedule, any falling grid and any prediction:
`fs.solvers.heun(model, grid)`. Written by `{COMMAND}`; a test fails when it is stale.

## Which one?

{advice(blocks)}

## All solvers

`fastsample show solvers` prints this table, and `fastsample show solvers heun` one solver's options
and formula.

{registry.solvers(markdown=True)}

{legend}

[Orders](orders.md) has the orders of more options, on finer grids and from exact history. Two more
functions make plans that the table does not have: {"; ".join(others)};
`analytic_first_step(plan)` of any plan, the afs=True of diff-sampler's samplers.

## Measured

Mean PSNR of each sample, in dB, to the end points of a fine run, the teacher. In brackets stand the
evaluations spent, where no whole number of steps takes them all.

{curves(blocks)}
## Samples

![Every solver at 10 and 20 evaluations](solvers.png)

The embedded model, the same four noises at up to {STEPS[0]} evaluations (left) and {STEPS[1]}
(right), on Karras' grid to sigma = 0; what draws noise ends elsewhere from the same start.

## What is not here, and why

| elsewhere | why |
|---|---|
{reasons}
"""


def library_of(key: str) -> str:
    return registry.LIBRARIES.get(key, key)


def absent() -> list[tuple[list[str], str]]:
    """([library: names], why) of NOT_HERE."""
    return [([f"{library_of(k)}: {v}" for k, v in of.items()], why) for why, of in NOT_HERE]


def advice(blocks: dict[str, str]) -> str:
    """What the figures say, in their own numbers."""
    at = {grid: figures(text) for grid, text in blocks.items()}
    if GRIDS[0] not in at:
        return "Not measured yet."
    row = lambda name, of: ", ".join(f"{at[GRIDS[0]][f'{name} {m}']:.1f}" for m in of)
    few, last = BUDGETS[:3], BUDGETS[-1:]
    budgets, fewer = (", ".join(map(str, of)) for of in (BUDGETS, few))
    about = """The tables below have what was measured: the embedded model (EDM's schedule, sigma 80
        to .002), every solver that draws no noise, on grids that people make by hand."""
    order = f"""On Karras' grid to sigma = 0, solvers of third order on predictions of x0 lose at
        few evaluations: at {fewer} dpmpp_3m has {row("dpmpp_3m", few)} dB and unipc
        {row("unipc", few)}, where dpmpp_2m, of second order, has {row("dpmpp_2m", few)} and ddim,
        of first, {row("ddim", few)}. The steps grow, and the parabola through the last outputs is
        far off beyond them. At {last[0]} they have {row("dpmpp_3m", last)} and
        {row("unipc", last)}, dpmpp_2m {row("dpmpp_2m", last)}. Third order on eps, deis, gains at
        every number: {row("deis", BUDGETS)} at {budgets}. Several evaluations a step leave few
        steps: heun has {row("heun", few)} at {fewer}."""
    warned = f"""This is one small network. For yours, `fs.metrics.best_hand_made(..., solver=None)`
        compares the usual ones of these on all such grids, and
        [a search](calibrate.md) looks for plans that are nearer. `Plan.describe()` warns, with the
        figures, of a plan whose solver ended more than {FURTHER:g} dB below ddim here, with as many
        evaluations on a grid of that kind. It also warns of any plan that ends more than {WORSE:g}
        times as far off as first-order steps through its levels do on Gaussian data, where the
        exact end is known; no plan in these tables that is nearer than ddim draws that warning."""
    nearest = [[grid, *best(of)] for grid, of in at.items()]
    return "\n\n".join(
        [
            paragraph(about),
            "Which came nearest, by grid and number of evaluations:",
            report.table(("grid", *map(str, BUDGETS)), nearest, True),
            *map(paragraph, (order, warned)),
            "![PSNR by number of evaluations on Karras' grid](solvers_curves.png)",
        ]
    )


def best(at: dict[str, float]) -> list[str]:
    """The solver with the largest figure at each number of evaluations."""
    of = lambda m: {key.split()[0]: v for key, v in at.items() if key.endswith(f" {m}")}
    return [f"`{max(of(m), key=of(m).__getitem__)}`" for m in BUDGETS]


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 100, break_on_hyphens=False)


def curves(blocks: dict[str, str]) -> str:
    """The tables, each with what the registry has beyond it."""
    out = []
    for grid, text in blocks.items():
        out.append(f"### {grid}\n\n<!-- measured: {grid} -->\n{text}<!-- end -->\n")
        if late := lacking(text):
            out.append(f"Not measured on it yet: {', '.join(late)}.\n")
    return "\n".join(out)


def lacking(text: str) -> list[str]:
    """Solvers of the registry that a block has no row of."""
    has = {key.split()[0] for key in figures(text)}
    return [name for name in SOLVERS if name not in has and still(name)]


@lru_cache
def of_default(name: str) -> Plan:
    """A plan of this solver with its default arguments."""
    return SOLVERS[name](registry.SCHEDULE, grids.karras(registry.SCHEDULE, 8), prediction="x0")


def still(name: str) -> bool:
    """Is it one that is measured: no noise, no guidance of its own?"""
    made = of_default(name)
    return not made.L and "direction" not in made.note


# -- pictures --------------------------------------------------------------------------------------
def pictures(blocks: dict[str, str]) -> None:
    at = figures(blocks["Karras"])
    lines = {name: {m: at[f"{name} {m}"] for m in BUDGETS} for name in CURVES}
    title = "The embedded model on Karras' grid to sigma = 0"
    report.error_picture(DOCS / "solvers_curves.png", lines, title)
    rows, it = {}, cli.embedded()
    noise, words = it.noise(SHOWN, cli.UNSEEN), it.words(SHOWN)
    for name in SOLVERS:
        plans = [most(name, it.model, m, of_hand(it.model, "Karras")) for m in STEPS]
        ends = [metrics.run(plan, it.model, noise, **words) for plan in plans]
        rows[name] = [image for end in ends for image in end.numpy()]
    title = f"{STEPS[0]} evaluations (left four) and {STEPS[1]}, the same noises"
    report.samples_picture(DOCS / "solvers.png", rows, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    parser.add_argument("--measure", choices=GRIDS, help="measure on this grid")
    parser.add_argument("--late", choices=GRIDS, help="measure on it what it lacks yet")
    parser.add_argument("--pictures", action="store_true", help="draw the two pictures")
    given = parser.parse_args()
    old = PAGE.read_text() if PAGE.exists() else ""
    blocks = dict(BLOCK.findall(old))
    if given.measure:
        blocks[given.measure] = measured(given.measure)
    blocks = {grid: blocks[grid] for grid in GRIDS if grid in blocks}
    if given.late in blocks:
        blocks[given.late] = with_late(given.late, blocks[given.late])
    if given.pictures:
        pictures(blocks)
    for path, new in ((PAGE, page(blocks)), (MEASURED, evidence(blocks))):
        if given.check and new != (path.read_text() if path.exists() else ""):
            sys.exit(f"{path.name}: it is not what the registry says; run {COMMAND}")
        if not given.check:
            path.write_text(new)


if __name__ == "__main__":
    main()
