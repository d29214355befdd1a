"""docs/servers.md keeps its word: its code runs, and what it points to is there."""

import re
from pathlib import Path

import torch

import fastsample as fs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "servers.md"
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_engine_of_the_page(capsys):
    names = {}
    exec(CODE[0], names)
    assert len(names["images"]) == 10 and "'result': 10" in capsys.readouterr().out
    k, plan, model = 3, names["plans"][1], names["model"]
    own = fs.Sampler(plan, model)(shape=(1, 1, 28, 28), seed=k, cond={"label": torch.tensor([k])})
    assert (names["images"][k] - own).abs().max() <= 1e-5


def test_the_program_of_the_page():
    """With a smaller network than the page's, which takes half a minute to export."""
    net = torch.nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    model = fs.Model(lambda x, t: net(x), fs.schedules.EDM(), "x0")
    names = {"fs": fs, "torch": torch, "model": model}
    exec(CODE[1], names)
    assert names["x0"].shape == (5, 1, 28, 28)


def test_every_path_of_the_page_exists():
    paths = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text())
    assert len(paths) >= 5 and all((PAGE.parent / path).exists() for path in paths)
