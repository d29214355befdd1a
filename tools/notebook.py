"""docs/notebook.ipynb, made again: its cells run from the top, and what they show is kept.

python tools/notebook.py: needs nbclient and ipykernel beside fastsample, whose embedded model it
runs; a minute. Writes the notebook whole or not at all; exits with a sentence where a cell fails or
the outputs are too large for a repository.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "docs" / "notebook.ipynb"
MOST = 300_000  # bytes of the notebook
CELLS = (
    (
        "markdown",
        """# fastsample in a notebook

A plan is a sampler compiled into a small table: so many evaluations of a model, at these noise
levels, with these coefficients. Here one is made by hand, run, and compared with what a search
finds for the same model. The model is the small one that comes with the package: 28 x 28 pictures
of clothes, in ten classes.""",
    ),
    (
        "code",
        """import torch

import fastsample as fs

model = fs.models.fashion()
model""",
    ),
    (
        "markdown",
        """## A plan by hand

DPM-Solver++ (2M) in six evaluations, on Karras' noise levels. At the end of a cell a plan shows
where it asks the model; its rows and its note unfold.""",
    ),
    (
        "code",
        """by_hand = fs.solvers.dpmpp_2m(model, fs.grids.karras(model.schedule, 6))
by_hand""",
    ),
    (
        "code",
        """class Pictures:
    \"\"\"Samples [B,1,28,28] as one picture, twice as large.\"\"\"

    def __init__(self, samples):
        self.samples = samples

    def _repr_png_(self):
        sheet = fs.report.image_grid(self.samples, columns=10)
        return fs.report.png(sheet.repeat(2, axis=0).repeat(2, axis=1))


sampler = fs.Sampler(by_hand, model)
label = torch.arange(10)
images = sampler(shape=(10, 1, 28, 28), seed=7, cond={"label": label})
print(sampler)
Pictures(images)""",
    ),
    (
        "markdown",
        """## A plan found for this model

`fit` searches the times of every number of evaluations up to four, and for each the coefficients
that bring the end points nearest to a fine run's. Eight noises are enough to see what is gained; it
is judged on four others.""",
    ),
    (
        "code",
        """generator = torch.Generator().manual_seed(0)
noise = torch.randn(12, 1, 28, 28, generator=generator)
words = {"held_out": noise[8:], "teacher": 16, "cond": {"label": torch.arange(8)}}
search = fs.optimize.fit(model, noise[:8], budget=4, **words)
search""",
    ),
    (
        "markdown",
        """The plan of four evaluations, and the same seeds as above with a third fewer calls.""",
    ),
    (
        "code",
        """found = search.plans[4]
Pictures(fs.Sampler(found, model)(shape=(10, 1, 28, 28), seed=7, cond={"label": label}))""",
    ),
    (
        "markdown",
        """## Step by step, and many requests at once

A `Run` is a loop that is yours; an `Engine` takes requests with different plans and asks the model
once for all of them. Everything says in one line what it is and where it stands.""",
    ),
    (
        "code",
        """run = fs.Run(found, shape=(10, 1, 28, 28), seed=7)
print(run)
while not run.done:
    run.step(model(run.model_input, run.t, label=label))
print(run)

engine = fs.Engine(model, shape=(1, 28, 28), capacity=8)
tickets = [
    engine.submit(plan, seed=k, cond={"label": torch.tensor([k])})
    for k, plan in enumerate((by_hand, found, by_hand))
]
print(engine)
engine.run()
print(*tickets, sep="\\n")""",
    ),
    (
        "markdown",
        """`found.save("plan-4.fsplan")` keeps it; `fastsample show plan-4.fsplan` prints it.""",
    ),
)


def cells() -> list[dict]:
    """The cells as the format (nbformat 4.5) has them, not run."""
    made = []
    for k, (kind, source) in enumerate(CELLS):
        cell = {"cell_type": kind, "id": f"cell-{k}", "metadata": {}}
        cell["source"] = source
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    return made


def notebook() -> dict:
    words = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return {"cells": cells(), "metadata": words, "nbformat": 4, "nbformat_minor": 5}


def main() -> int:
    import nbclient
    import nbformat

    from fastsample.files import write_whole

    made = nbformat.from_dict(notebook())
    options = {"timeout": 600, "record_timing": False, "kernel_name": "python3"}
    try:
        nbclient.NotebookClient(
            made, resources={"metadata": {"path": str(ROOT)}}, **options
        ).execute()
    except nbclient.exceptions.CellExecutionError as error:
        print(f"notebook: a cell failed: {error}", file=sys.stderr)
        return 2
    made.metadata = notebook()["metadata"]  # without what the kernel was
    text = nbformat.writes(made) + "\n"
    if len(text.encode()) > MOST:
        print(f"notebook: {len(text.encode())} bytes; {MOST} are accepted", file=sys.stderr)
        return 2
    write_whole(PATH, text.encode())
    print(f"wrote {os.path.relpath(PATH)}, {len(text.encode())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
