"""models/: the embedded image model, its judge, and the tools that train them."""

from __future__ import annotations

import copy
import gzip
import importlib
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from fastsample import grids, metrics, schedules, solvers
from fastsample.model import PREDICTIONS, to_x0
from fastsample.models import classifier, fashion, fashion_flow
from fastsample.models.fashion import (
    NO_LABEL,
    SIGMA_RANGE,
    WEIGHTS,
    FashionUNet,
    load_net,
    read_weights,
)
from fastsample.models.words import levels

SCHEDULES = {
    "edm": schedules.EDM(),
    "flow": schedules.Flow(),
    "flow-3": schedules.Flow(shift=3.0),
    "trigflow": schedules.TrigFlow(sigma_data=0.7),
    "vp": schedules.VP(),
    "ve": schedules.VE(),
    "linear": schedules.DiscreteVP.linear(),
    "cosine": schedules.DiscreteVP.cosine(100),
    "zero-snr": schedules.DiscreteVP.scaled_linear().zero_terminal_snr(),
}


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- noise levels in torch ---


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_those_of_the_schedule(name):
    schedule = SCHEDULES[name]
    inside = np.linspace(schedule.t_zero, schedule.t_max, 997)
    ends = [schedule.t_zero, schedule.t_min, schedule.t_finite, schedule.t_max]
    t = np.concatenate([inside, ends])
    alpha, sigma = (value.numpy() for value in levels(schedule)(torch.tensor(t)))
    np.testing.assert_allclose(alpha, schedule.alpha(t), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(sigma, schedule.sigma(t), rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(sigma == 0.0, schedule.sigma(t) == 0.0)
    np.testing.assert_array_equal(alpha == 0.0, schedule.alpha(t) == 0.0)


def test_levels_of_a_float32_time_past_the_end_and_of_a_foreign_schedule():
    past = torch.tensor([math.pi / 2], dtype=torch.float32)  # rounds to above pi/2
    assert levels(schedules.TrigFlow())(past)[0].item() == 0.0

    class Halved(schedules.Schedule):
        t_max = 1.0

        def _point(self, t):
            return 1.0 - t / 2, t / 2, t

    alpha, sigma = levels(Halved())(torch.tensor([0.5]))
    assert (alpha.item(), sigma.item(), alpha.dtype) == (0.75, 0.25, torch.float64)


# --- the embedded model ---


def test_shipped_weights_keep_to_their_budget():
    path = WEIGHTS / "fashion.safetensors"
    net, (_, note) = load_net(), read_weights(path, "fastsample-fashion-1")
    assert path.stat().st_size <= 4e6 and 0.4e6 <= sum(p.numel() for p in net.parameters()) <= 0.7e6
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert {"seed", "images", "minutes", "machine", "sigma_data", "data"} <= set(note)
    assert 0.70 < net.sigma_data < 0.71
    assert load_net() is net and fashion().fn.net is net  # loaded once
    assert fashion().identity.startswith("sha256:") and fashion().sigma_data == net.sigma_data


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", ["edm", "flow-3", "trigflow", "vp", "zero-snr"])
def test_every_prediction_on_every_schedule_means_the_same_x0(name, prediction):
    schedule, net = SCHEDULES[name], load_net()
    model = fashion(schedule, prediction)
    t = schedule.time(-np.log([0.01, 0.3, 3.0, 50.0]))  # sigma/alpha
    alpha, sigma = (torch.tensor(value) for value in (schedule.alpha(t), schedule.sigma(t)))
    x = noise(4, 1, 28, 28, dtype=torch.float64) * (alpha + sigma)[:, None, None, None]
    label = torch.tensor([0, 5, 9, NO_LABEL])
    scaled = x * torch.tensor(model.scales(t))[:, None, None, None]
    out = model(scaled, torch.tensor(model.times(t)), label=label)
    assert out.dtype == x.dtype and not out.requires_grad
    jump = to_x0(prediction, alpha.numpy(), sigma.numpy(), model.sigma_data)
    p, q = (torch.tensor(value)[:, None, None, None] for value in jump)
    x0 = net.denoise(x, alpha, sigma, label)
    # The network is float32: its rounding, not the coefficients', is what differs between the
    # routes, and q is what carries it to x0.
    bound = 1e-4 * (1.0 + q.abs() * torch.ones_like(x))
    assert ((p * x + q * out - x0).abs() <= bound).all()


@pytest.mark.parametrize(
    "name, prediction", [(n, p) for n in ("flow-3", "trigflow", "zero-snr") for p in PREDICTIONS]
)
def test_nothing_blows_up_at_the_ends(name, prediction):
    schedule = SCHEDULES[name]
    model, x = fashion(schedule, prediction), noise(2, 1, 28, 28)
    if prediction == "edm":
        out = model(x, torch.tensor([-math.inf, math.inf]))
    else:
        t = model.times([schedule.t_zero, schedule.t_max])
        out = model(x, torch.tensor(t, dtype=torch.float32))
    assert torch.isfinite(out).all() and out.abs().max() < 1e3


def test_limits_without_noise_and_without_signal():
    x, zero, one = noise(2, 1, 28, 28), torch.zeros(2), torch.ones(2)
    label = torch.tensor([3, NO_LABEL])
    net = load_net()
    # No noise: x is the image.
    torch.testing.assert_close(net.denoise(x, one, zero, label), x, rtol=1e-6, atol=1e-6)
    # No signal: x is the noise, and x0 the mean image of the class.
    x0, eps = net.posterior(x, zero, one, label)
    torch.testing.assert_close(eps, x, rtol=1e-6, atol=1e-6)
    assert x0.abs().max() < 1.3
    # A dress: background beside, cloth in the middle.
    assert x0[0, 0, :, :2].mean() < -0.9 and x0[0, 0, 10:18, 12:16].mean() > 0.2


def test_a_trigflow_time_rounded_past_the_end_is_the_end():
    t = torch.full((2,), math.pi / 2)  # float32: above pi/2, where the tangent is negative
    x, net, label = noise(2, 1, 28, 28), load_net(), torch.tensor([3, 7])
    got = -net.sigma_data * fashion(schedules.TrigFlow(), "trigflow")(x, t, label=label)
    want = net.denoise(x, torch.zeros(2), torch.ones(2), label)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_only_the_signal_to_noise_ratio_matters():
    net, x, label = load_net(), noise(3, 1, 28, 28, dtype=torch.float64), torch.tensor([1, 2, 3])
    alpha, sigma = torch.tensor([0.3, 0.6, 0.9]).double(), torch.tensor([0.9, 0.8, 0.1]).double()
    scaled = net.denoise(x / alpha[:, None, None, None], torch.ones(3), sigma / alpha, label)
    torch.testing.assert_close(net.denoise(x, alpha, sigma, label), scaled, rtol=0, atol=1e-4)
    # Past the trained range c_noise stays, and so does the answer.
    at = lambda s: net.denoise(x * s, torch.ones(3), torch.full((3,), s), label)
    assert (at(SIGMA_RANGE[1]) - at(1e4)).abs().max() < 0.2


def test_labels():
    model, x, t = fashion(), noise(3, 1, 28, 28) * 5, torch.full((3,), 5.0)
    plain = model(x, t)
    torch.testing.assert_close(model(x, t, label=None), plain, rtol=0, atol=0)
    torch.testing.assert_close(model(x, t, label=torch.full((3,), NO_LABEL)), plain, rtol=0, atol=0)
    each = model(x, t, label=torch.tensor([7, 7, 7]))
    torch.testing.assert_close(model(x, t, label=7), each, rtol=0, atol=0)
    assert (model(x, t, label=7) - plain).abs().max() > 0.1
    for wrong in (torch.zeros(3), torch.zeros(2).long(), torch.zeros(3, 10).long()):
        with pytest.raises(ValueError, match=r"integers 0\.\.10"):
            model(x, t, label=wrong)
    with pytest.raises(ValueError, match=r"\[B, 1, 28, 28\]"):
        model(x[:, 0], t)


def test_bad_words_and_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="x0, eps, v, flow, edm, trigflow"):
        fashion(prediction="score")
    with pytest.raises(FileNotFoundError, match="train_fashion"):
        fashion(weights=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="fastsample-fashion-1"):
        fashion(weights=WEIGHTS / "fashion_classifier.safetensors")


@pytest.mark.parametrize("name, prediction", [("edm", "x0"), ("flow-3", "flow"), ("linear", "eps")])
def test_the_model_traces_in_one_piece(name, prediction):
    model = fashion(SCHEDULES[name], prediction)
    x, label = noise(2, 1, 28, 28), torch.tensor([1, 2])
    t = torch.tensor(model.times([SCHEDULES[name].t_finite] * 2), dtype=torch.float32)
    torch._dynamo.reset()
    # Tracing only; Inductor is the sampler tests' matter.
    compiled = torch.compile(model.fn, backend="eager", fullgraph=True)
    got, want = compiled(x, t, label=label), model(x, t, label=label)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def heun(denoise, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Karras et al. 2022, Alg. 1, over sigma from 80 to 0.002, then 0; x is unit noise."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    sigmas = [*((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    x = x * sigmas[0]
    for s, s_next in pairwise(sigmas):
        d = (x - denoise(x, s)) / s
        x_next = x + (s_next - s) * d
        if s_next > 0:
            x_next = x + (s_next - s) * 0.5 * (d + (x_next - denoise(x_next, s_next)) / s_next)
        x = x_next
    return x


@pytest.mark.parametrize("make", [fashion, fashion_flow], ids=["U-Net", "transformer"])
def test_a_network_rounded_to_bfloat16_says_nearly_the_same(make):
    """Weights, activations and answers have 8 bits; the same noise level for both."""
    exact = make()
    rounded = replace(exact, fn=copy.deepcopy(exact.fn).to(torch.bfloat16))
    plan = solvers.euler(exact, grids.fine(exact.schedule, 4))
    words = {"cond": {"label": torch.arange(4)}}
    end = metrics.run(plan, exact, z := noise(4, 1, 28, 28), **words)
    near = metrics.run(plan, rounded, z, model_dtype=torch.bfloat16, **words)
    assert 1e-4 < (near - end).norm() / end.norm() < 0.02


def test_samples_are_garments_of_their_class():
    labels, model = torch.arange(100) % 10, fashion()

    def guided(x: torch.Tensor, s: float) -> torch.Tensor:
        t = torch.full((len(x),), s)
        none = model(x, t)
        return none + 1.5 * (model(x, t, label=labels) - none)

    with torch.inference_mode():
        images = heun(guided, noise(100, 1, 28, 28, seed=1), steps=8)
    accuracy, count = classifier.class_accuracy(images, labels)
    # 0.93 with the shipped weights; 0.96 at 35 evaluations.
    assert count == 100 and accuracy >= 0.85
    far = classifier.frechet_distance(noise(100, 1, 28, 28).clamp(-1, 1))
    assert classifier.frechet_distance(images) < 0.1 * far


# --- the judge ---


def test_classifier_budget_and_note():
    path = WEIGHTS / "fashion_classifier.safetensors"
    _, note = read_weights(path, "fastsample-fashion-classifier-1")
    assert sum(p.numel() for p in classifier.load_classifier().parameters()) <= 150_000
    assert float(note["test_accuracy"]) >= 0.92 and "train split" in note["reference"]


def test_frechet_by_hand():
    one, two = np.eye(2), np.diag([4.0, 9.0])
    zero, away = np.zeros(2), np.array([3.0, 4.0])
    apart = lambda a, b: classifier.frechet(zero, a, zero, b)
    assert apart(one, one) == 0.0
    assert classifier.frechet(zero, one, away, one) == pytest.approx(25.0, rel=1e-14)
    assert apart(one, two) == pytest.approx(1.0 + 4.0, rel=1e-14)  # (2-1)² + (3-1)²
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])  # a rotation of both changes nothing
    turned = apart(turn @ one @ turn.T, turn @ two @ turn.T)
    assert turned == pytest.approx(5.0, rel=1e-13)
    skew = np.array([[2.0, 1.0], [1.0, 2.0]])
    assert apart(skew, two) == pytest.approx(apart(two, skew), rel=1e-13)
    # 2x2 matrices: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)), with M = C·C'
    product = skew @ two
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert apart(skew, two) == pytest.approx(np.trace(skew) + np.trace(two) - 2 * root, rel=1e-12)


def test_the_reference_is_at_distance_zero_from_itself():
    _, mean, cov = classifier._load()
    assert mean.shape == (64,) and cov.shape == (64, 64)
    assert classifier.frechet(mean, cov, mean, cov) < 1e-9


def test_accuracy_counts_and_refuses():
    images = noise(5, 1, 28, 28)
    said = classifier.load_classifier()(images).argmax(1)
    assert classifier.class_accuracy(images, said) == (1.0, 5)
    said[0] = (said[0] + 1) % 10
    assert classifier.class_accuracy(images, said) == (0.8, 5)
    with pytest.raises(ValueError, match="class_accuracy: labels"):
        classifier.class_accuracy(images, said[:4])
    with pytest.raises(ValueError, match="frechet_distance: 1 images"):
        classifier.frechet_distance(images[:1])
    with pytest.raises(ValueError, match=r"\[B, 1, 28, 28\]"):
        classifier.frechet_distance(images[:, 0])


# --- the tool ---


def write_split(folder: Path, split: str, count: int) -> None:
    """Random pixels in the idx format: two headers of 16 and 8 bytes, then bytes."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 784), dtype=np.uint8)
    images = gzip.compress(bytes(16) + pixels.tobytes())
    labels = gzip.compress(bytes(8) + bytes(i % 10 for i in range(count)))
    (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(images)
    (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(labels)


@pytest.mark.parametrize(
    "name, form", [("fashion", "fastsample-fashion-1"), ("flow", "fastsample-fashion-flow-1")]
)
def test_the_tools_train_stop_and_go_on(name, form, tmp_path, monkeypatch):
    write_split(tmp_path, "train", 12), write_split(tmp_path, "t10k", 4)
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "tools")
    tool = importlib.import_module(f"train_{name}")
    out, checkpoint = tmp_path / "w.safetensors", tmp_path / "c.pt"
    files = {"--data": tmp_path, "--out": out, "--checkpoint": checkpoint}
    sizes = {"--batch": 4, "--device": "cpu", "--minutes": 9}
    words = [str(word) for pair in (files | sizes).items() for word in pair] + ["--no-bf16"]

    # Two steps, a checkpoint after each.
    tool.main([*words, "--images", "8", "--save-minutes", "0"])
    tool.main([*words, "--images", "12", "--resume"])
    state = torch.load(checkpoint, weights_only=True)
    average, note = read_weights(out, form)
    assert state["step"] == 2 and note["images"] == "12"
    assert all(torch.isfinite(value).all() for value in average.values())
    # The third step moved the average.
    assert any(not torch.equal(average[name], state["ema"][name]) for name in average)
    assert not list(tmp_path.glob("*.part"))
    if name == "flow":
        assert torch.equal(fashion_flow(weights=out).fn.place, average["place"])
    else:  # uniform pixels: 2/sqrt(12)
        assert fashion(weights=out).sigma_data == pytest.approx(0.58, abs=0.02)


def test_the_network_starts_as_the_linear_denoiser():
    net, x = FashionUNet(sigma_data=0.5), noise(2, 1, 28, 28)
    got = net.denoise(x, torch.ones(2), torch.full((2,), 0.5), torch.tensor([0, 1]))
    torch.testing.assert_close(got, x / 2)  # F = 0: alpha·sd²/n² with sd = sigma
