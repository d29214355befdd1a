"""Work that a late refusal would lose: what cannot be written in the end is refused before the
model is asked.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import cli, files, grids, solvers
from fastsample.schedules import EDM, Flow


@pytest.fixture
def lost(tmp_path, monkeypatch):
    """A folder with a plan, and a command that must not ask the model."""

    class Latent:
        shape = (4, 8, 8)

        def __call__(self, x, t):
            if not Latent.asked:
                raise AssertionError("the model was asked before the refusal")
            return 0.5 * x

    Latent.asked = False
    monkeypatch.chdir(tmp_path)
    model = fs.Model(Latent(), Flow(), "flow")
    monkeypatch.setitem(sys.modules, "m", SimpleNamespace(m=lambda: model))
    solvers.euler(Flow(), grids.uniform(Flow(), 2), prediction="flow").save("p.fsplan")
    return Latent


def test_latents_are_no_picture_before_the_run(lost, capsys):
    run = ["sample", "p.fsplan", "--model", "m:m", "--samples", "3"]
    for picture in ("a.png", "a.PNG"):
        assert cli.main([*run, "--out", "a.npy", "--out", picture]) == 2
        told = "samples of shape [4, 8, 8] are no images, [1 or 3,H,W] or [H,W]; a .npy file"
        assert f"--out {picture}: {told}" in capsys.readouterr().err
        assert not Path("a.npy").exists()
    lost.asked = True
    assert cli.main(run) == 0 and cli.main([*run, "--out", "b.NPY"]) == 0
    assert np.load("samples.npy").shape == (3, 4, 8, 8) == np.load("b.NPY").shape
    assert not Path("samples.png").exists()


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 4, 4), (4, 4)])
def test_images_are(shape):
    from fastsample.report import image_grid, is_image

    assert is_image(shape) and image_grid(np.zeros((2, *shape))).dtype == np.uint8
    for other in ((2, 4, 4), (4,), (1, 0, 4), (3, 1, 4, 4), ()):
        assert not is_image(other)
        with pytest.raises(ValueError, match="image_grid: images of shape"):
            image_grid(np.zeros((2, *other)))


def test_a_folder_that_cannot_be_written_is_seen_before(lost, capsys, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    assert cli.main(["sample", "p.fsplan", "--model", "m:m", "--out", "b.npy"]) == 2
    assert "lies in a folder that cannot be written" in capsys.readouterr().err
    for option in (["--out", "there"], ["--out", "there", "--checkpoint", "deep/er"]):
        assert cli.main(["optimize", "--model", "m:m", *option]) == 2
        assert "is no folder that can be written" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["p.fsplan"]


def test_a_checkpoint_that_is_a_file_is_seen_before(lost, capsys):
    told = "--checkpoint p.fsplan: p.fsplan is no folder that can be written"
    assert cli.main(["optimize", "--model", "m:m", "--checkpoint", "p.fsplan"]) == 2
    assert told in capsys.readouterr().err and not Path("plans").exists()


@pytest.mark.parametrize("name", ["plan-4.fsplan", "search.html", "search.csv", "samples.png"])
@pytest.mark.parametrize("command", ["optimize", "demo"])
def test_what_stands_where_a_search_writes_is_seen_before(lost, capsys, name, command):
    Path("there", name).mkdir(parents=True)
    more = ["--model", "m:m"] if command == "optimize" else []
    assert cli.main([command, *more, "--out", "there"]) == 2
    assert f"save: there/{name} is a folder, or lies in none" in capsys.readouterr().err
    assert [path.name for path in Path("there").iterdir()] == [name]


def test_a_search_looks_at_its_checkpoint_first(tmp_path):
    def asked(x, t):
        raise AssertionError("the model was asked before the refusal")

    model, file = fs.Model(asked, EDM(), "x0"), tmp_path / "file"
    file.write_text("")
    for path in (file, file / "below"):
        told = f"^search: checkpoint {path}: {file} is no folder that can be written"
        with pytest.raises(ValueError, match=told):
            fs.optimize.search(model, torch.randn(2, 4), [2], checkpoint=path)


def test_the_tools_look_at_their_paths_first():
    root = Path(__file__).resolve().parents[1]
    for name, before in (
        ("train_fashion", "load_split(args"),
        ("train_classifier", "load_split(args"),
    ):
        text = (root / "tools" / f"{name}.py").read_text()
        assert 0 < text.index("place(") < text.index(before), name
