"""Report: tables, image grids and PNG files to the byte, pictures that open, what a missing package
is told.
"""

import builtins
import io
import re
import struct
import zlib
from importlib import metadata
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import fastsample as fs
from fastsample import report
from fastsample.kernels.backend import KERNELS, select


def test_table():
    assert report.table(("name", "dB"), [("a", "1.00"), ("longer", "12.50")]) == (
        "name       dB\n-------------\na        1.00\nlonger  12.50"
    )
    assert (
        report.table(("name", "dB"), [("a|b", 3)], markdown=True)
        == "| name | dB |\n| --- | ---: |\n| a\\|b | 3 |"
    )
    assert report.table(("x",), [("\x1b[31mred\n",)]).splitlines()[2] == "\\x1b[31mred\\n"
    with pytest.raises(ValueError, match="another length"):
        report.table(("a", "b"), [("1",)])


def test_image_grid():
    images = torch.tensor([-1.0, 1.0, 0.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    sheet = report.image_grid(images, columns=2, pad=1)
    assert sheet.shape == (7, 7) and sheet.dtype == np.uint8
    assert (sheet[1:3, 1:3] == 0).all() and (sheet[1:3, 4:6] == 255).all()
    assert (sheet[4:6, 1:3] == 128).all()
    assert (sheet[0] == 255).all() and (sheet[4:6, 4:6] == 255).all()
    wild = np.array([np.nan, np.inf, -np.inf, 5.0]).reshape(4, 1, 1)
    assert report.image_grid(wild, columns=4, pad=0).ravel().tolist() == [0, 255, 0, 255]
    colour = report.image_grid(np.stack([np.full((1, 1), v) for v in (-1, 0, 1)])[None], pad=0)
    assert colour.tolist() == [[[0, 128, 255]]]


@pytest.mark.parametrize("shape", [(2, 2), (3, 2, 4, 4), (0, 1, 2, 2), (1, 1, 0, 2)])
def test_image_grid_refuses(shape):
    with pytest.raises(ValueError, match="is accepted"):
        report.image_grid(np.zeros(shape))


def read_png(data):
    """Pixels of a PNG as `report.png` writes it, checking every chunk: an independent reader."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        (check,) = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert check == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0]) and chunks[b"IEND"] == b""
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:].reshape(height, width, 3) if colour == 2 else lines[:, 1:]


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (4, 6, 3)])
def test_png(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.testing.assert_array_equal(read_png(report.png(pixels)), pixels)


def test_save_images_and_npy(tmp_path):
    images = torch.linspace(-1, 1, 8).reshape(2, 1, 2, 2)
    report.save_images(tmp_path / "a.png", images, columns=2, zoom=2)
    got = read_png((tmp_path / "a.png").read_bytes())[::2, ::2]
    np.testing.assert_array_equal(got, report.image_grid(images, 2))
    got = np.load(io.BytesIO(report.npy(images)), allow_pickle=False)
    np.testing.assert_array_equal(got, images.numpy())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def plans():
    s = fs.schedules.Flow()
    return {n: fs.solvers.euler(s, fs.grids.uniform(s, n), prediction="flow") for n in (2, 5)}


def test_pictures_are_png_files(tmp_path):
    from matplotlib.image import imread

    images = {"a": torch.zeros(4, 1, 8, 8), "b": torch.ones(4, 1, 8, 8)}
    report.samples_picture(tmp_path / "samples.png", images, "title", columns=4)
    drawn = {f"{n}": plan for n, plan in plans().items()}
    report.schedules_picture(tmp_path / "schedules.png", drawn, "title")
    curves = {"a": {4: 20.0, 8: 30.0}, "b": {4: 22.0, 8: float("inf")}}
    report.error_picture(tmp_path / "error.png", curves, "title")
    for path in tmp_path.iterdir():
        pixels = imread(path)
        assert pixels.shape[0] > 100 and pixels.shape[1] > 300
        assert 0.01 < (pixels[..., :3].mean(-1) < 0.9).mean() < 0.9
    assert len(list(tmp_path.iterdir())) == 3


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"fastsample\[demo\]"):
        report.error_picture(tmp_path / "error.png", {"a": {4: 20.0}}, "title")
    assert not list(tmp_path.iterdir())


def test_doctor_names_every_part_and_a_remedy(monkeypatch):
    found = dict(report.doctor())
    packages = ["fastsample", "numpy", "torch", "matplotlib", "tqdm", "scipy", "diffusers"]
    assert {"python", *packages, "native code"} <= set(found)
    pyproject = (Path(report.__file__).parents[2] / "pyproject.toml").read_text()
    for extra, names in report.EXTRAS.items():  # that is what the command it tells installs
        installed = re.search(rf"^{extra} = \[(.*)\]$", pyproject, re.MULTILINE)[1]
        assert set(names) <= set(re.findall(r'"([\w-]+)', installed)), extra
    assert "safetensors" in found  # without it the embedded model cannot be read
    for kernel, dtype in product(KERNELS, (torch.float32, torch.float64)):
        choice = select(kernel, "cpu", dtype)
        where = f"{kernel}, cpu, {str(dtype).removeprefix('torch.')}"
        assert found[where] == f"{choice.name} ({choice.reason})"

    def version(name):
        if name in ("matplotlib", "scipy"):
            raise metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(metadata, "version", version)
    found = dict(report.doctor())
    assert "pip install 'fastsample[demo]'" in found["matplotlib"]
    assert "pip install 'fastsample[optimize]'" in found["scipy"]
    where = f"{fs.__version__}, of {Path(fs.__file__).parent}; "  # as PYTHONPATH may put it first
    assert found["fastsample"] == f"{where}1.0 is installed beside it"
    monkeypatch.setattr(metadata, "version", lambda name: version("scipy"))
    assert dict(report.doctor())["fastsample"] == f"{where}none is installed"
