"""docs/servers.md keeps its word: its code runs, and what it points to is there."""

from pathlib import Path

import pages
import torch

import fastsample as fs

PAGE = Path(__file__).resolve().parents[1] / "docs" / "servers.md"
CODE = pages.blocks(PAGE, "python")


def test_the_engine_of_the_page(capsys):
    names = pages.run(CODE[:1])
    assert len(names["images"]) == 10
    assert names["engine"].metrics().ended["result"] == 10
    k, plan, model = 3, names["plans"][1], names["model"]
    own = fs.Sampler(plan, model)(shape=(1, 1, 28, 28), seed=k, cond={"label": torch.tensor([k])})
    assert (names["images"][k] - own).abs().max() <= 1e-5


def test_the_program_of_the_page():
    """With a smaller network than the page's, which takes half a minute to export."""
    net = torch.nn.Conv2d(1, 1, 3, padding=1).requires_grad_(False)
    model = fs.Model(lambda x, t: net(x), fs.schedules.EDM(), "x0")
    names = pages.run(CODE[1:], {"fs": fs, "torch": torch, "model": model})
    assert names["x0"].shape == (5, 1, 28, 28)
