"""models/transformer.py: the embedded flow model, held to its definition, to the embedded U-Net
that saw the same garments, and to what its weights' file says.
"""

from __future__ import annotations

import copy
import hashlib

import numpy as np
import pytest
import torch

from fastsample import Sampler, grids, schedules, solvers
from fastsample.models import classifier, fashion, fashion_flow
from fastsample.models.fashion import NO_LABEL, WEIGHTS, read_weights
from fastsample.models.transformer import Transformer

FILE = WEIGHTS / "fashion_flow.safetensors"


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def garments() -> tuple[torch.Tensor, torch.Tensor]:
    """40 images [40,1,28,28] and their labels, made by this model."""
    labels, model = torch.arange(40) % 10, fashion_flow()
    plan = solvers.dpmpp_2m(model, grids.uniform(model.schedule, 16))
    sampler = Sampler(plan, model)
    return sampler(noise=noise(40, 1, 28, 28, seed=1), cond={"label": labels}), labels


def test_shipped_weights_keep_to_their_budget():
    net, (_, note) = fashion_flow().fn, read_weights(FILE, "fastsample-fashion-flow-1")
    assert sum(p.numel() for p in net.parameters()) == 960_144 and FILE.stat().st_size <= 4e6
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert {"seed", "images", "minutes", "machine", "test_loss", "data"} <= set(note)
    assert fashion_flow(shift=3.0).fn is net  # loaded once
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in (WEIGHTS / "README.md").read_text()


def test_the_model_is_told_the_shifted_sigma():
    plain, shifted = fashion_flow(), fashion_flow(shift=3.0)
    assert (plain.schedule, shifted.schedule) == (schedules.Flow(), schedules.Flow(shift=3.0))
    t = np.array([0.0, 0.2, 0.5, 1.0])
    sigma = 3 * t / (1 + 2 * t)
    np.testing.assert_allclose(shifted.times(t), sigma, rtol=1e-15)
    np.testing.assert_allclose(plain.times(sigma), sigma, rtol=1e-15)
    assert plain.prediction == shifted.prediction == "flow"


def test_the_network_starts_at_zero_and_its_blocks_as_skips():
    x, net = noise(2, 1, 28, 28), Transformer()
    assert not net(x, torch.tensor([0.2, 0.9]), torch.tensor([3, NO_LABEL])).any()
    h = noise(2, 49, 128)
    torch.testing.assert_close(net.blocks[0](h, torch.zeros(2, 6, 128)), h, rtol=0, atol=0)


def test_one_block_by_hand():
    """In float64, one head at a time, from the parameters."""
    net = copy.deepcopy(fashion_flow().fn).double()
    block, h, modulation = net.blocks[2], noise(2, 49, 128).double(), noise(2, 6, 128).double()
    a, b, g, a2, b2, g2 = (modulation + block.table)[:, :, None].unbind(1)

    def norm(h: torch.Tensor) -> torch.Tensor:
        away = h - h.mean(-1, keepdim=True)
        return away / (away.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()

    q, k, v = (norm(h) * (1 + a) + b).matmul(block.qkv.weight.T).add(block.qkv.bias).split(128, -1)
    heads = []
    for head in range(4):
        own = slice(32 * head, 32 * head + 32)
        weights = torch.softmax(q[..., own] @ k[..., own].mT / 32**0.5, dim=-1)
        heads.append(weights @ v[..., own])
    want = h + g * (torch.cat(heads, -1) @ block.out.weight.T + block.out.bias)
    wide = (norm(want) * (1 + a2) + b2) @ block.wide.weight.T + block.wide.bias
    wide = wide * 0.5 * (1 + torch.erf(wide / 2**0.5))
    want = want + g2 * (wide @ block.narrow.weight.T + block.narrow.bias)
    # Attention itself is taken in float32.
    torch.testing.assert_close(block(h, modulation), want, rtol=1e-5, atol=1e-4)


def test_a_patch_comes_out_where_it_went_in():
    """Two patches and their places exchanged, in every pixel of them, exchange the outputs."""
    net, x = copy.deepcopy(fashion_flow().fn), noise(2, 1, 28, 28)
    s, label = torch.tensor([0.3, 0.8]), torch.tensor([1, 7])
    upper, lower = (..., slice(4, 8), slice(8, 12)), (..., slice(20, 24), slice(0, 4))

    def exchanged(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        y[upper], y[lower] = x[lower], x[upper]
        return y

    want, plain = exchanged(net(x, s, label)), net(exchanged(x), s, label)
    net.place.data[[7 * 1 + 2, 7 * 5 + 0]] = net.place.data[[7 * 5 + 0, 7 * 1 + 2]]
    torch.testing.assert_close(net(exchanged(x), s, label), want, rtol=0, atol=1e-5)
    assert (plain - want).abs().max() > 0.01  # the places do matter


def test_labels_and_what_is_refused():
    model, x, s = fashion_flow(), noise(3, 1, 28, 28), torch.full((3,), 0.8)
    plain = model(x, s)
    torch.testing.assert_close(model(x, s, label=torch.full((3,), NO_LABEL)), plain, rtol=0, atol=0)
    each = model(x, s, label=torch.tensor([7, 7, 7]))
    torch.testing.assert_close(model(x, s, label=7), each, rtol=0, atol=0)
    assert (each - plain).abs().max() > 0.1
    for wrong in (torch.zeros(3), torch.zeros(2).long()):
        with pytest.raises(ValueError, match=r"fashion_flow: label is .* integers 0\.\.10"):
            model(x, s, label=wrong)
    with pytest.raises(ValueError, match=r"fashion_flow: x is .*\[B, 1, 28, 28\]"):
        model(x[:, 0], s)
    with pytest.raises(ValueError, match="fastsample-fashion-flow-1"):
        fashion_flow(weights=WEIGHTS / "fashion.safetensors")


def test_a_sample_knows_nothing_of_its_batch():
    net, s = fashion_flow().fn, torch.linspace(0.05, 1, 8)
    x, label = noise(8, 1, 28, 28), torch.arange(8)
    together = net(x, s, label)
    alone = torch.cat([net(x[i : i + 1], s[i : i + 1], label[i : i + 1]) for i in range(8)])
    # Matrix products of another shape may add in another order: at most 512 terms, 5 blocks.
    torch.testing.assert_close(alone, together, rtol=0, atol=5 * 512 * 2.0**-24)


def test_other_dtypes():
    net, x, s = fashion_flow().fn, noise(4, 1, 28, 28), torch.tensor([0.01, 0.3, 0.7, 1.0])
    out = net(x, s)
    assert net(x.double(), s).dtype == torch.float64
    torch.testing.assert_close(net(x.double(), s).float(), out, rtol=0, atol=0)
    half = copy.deepcopy(net).bfloat16()
    rounded = half(x.bfloat16(), s)
    assert rounded.dtype == torch.bfloat16
    # A rounding of 2^-9 after each of some 5·6 operations, as a random walk: 2 %.
    assert (rounded - out).pow(2).mean() < 0.02**2 * out.pow(2).mean()
    # s itself is not rounded: 0.7 and 0.7005 are one number in bfloat16.
    near = (half(x.bfloat16(), torch.full((4,), s)) for s in (0.7, 0.7005))
    assert not torch.equal(*near)


def test_it_traces_in_one_piece():
    net = Transformer(depth=1)  # what it does outside its blocks, and a block
    net.load_state_dict(fashion_flow().fn.state_dict(), strict=False)
    x, s, label = noise(2, 1, 28, 28), torch.tensor([0.5, 1.0]), torch.tensor([1, 2])
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, s, label=label), net(x, s, label=label))


def test_limits_without_noise_and_without_signal(garments):
    images, labels = garments
    model, x = fashion_flow(), noise(40, 1, 28, 28)
    # s = 0: x is the image and nothing is known of eps. out = -x, but training drew s < 0.02 once
    # in 20,000: of the power 1 of eps, 0.19 is guessed.
    out = model(images, torch.zeros(40), label=labels)
    assert (out + images).pow(2).mean() < 0.25
    # A little noise: more than half of its power is taken away.
    near = torch.lerp(images, x, 0.05)
    x0 = near - 0.05 * model(near, torch.full((40,), 0.05), label=labels)
    assert (x0 - images).pow(2).mean() < 0.05**2 / 2
    # s = 1: x is the noise. x0 = x - out is the mean image of the class, whatever x of deviation 1.
    mean = x - model(x, torch.ones(40), label=3)
    assert mean.std(dim=0).mean() < 0.15
    # A dress: background beside, cloth in the middle.
    assert mean[:, 0, :, :2].mean() < -0.9 and mean[:, 0, 10:18, 12:16].mean() > 0.2


def test_it_agrees_with_the_other_network_on_the_velocity(garments):
    """Two networks of the same data, another architecture and loss: one conditional mean."""
    images, labels = garments
    flow, unet, eps = fashion_flow(), fashion(schedules.Flow(), "flow"), noise(40, 1, 28, 28)
    for s in (0.2, 0.5, 0.8):
        x, at = torch.lerp(images, eps, s), torch.full((40,), s)
        out, theirs = (model(x, at, label=labels) for model in (flow, unet))
        unknown = (out - (eps - images)).pow(2).mean()  # the loss
        # What a Gaussian of the pixels' variance 1/2 would leave: 1 / (2 s² + (1 - s)²).
        assert unknown < 0.5 / (2 * s**2 + (1 - s) ** 2)
        assert (out - theirs).pow(2).mean() < 0.2 * unknown


def test_samples_are_garments_of_their_class(garments):
    images, labels = garments
    accuracy, count = classifier.class_accuracy(images, labels)
    assert count == 40 and accuracy >= 0.75
    far = classifier.frechet_distance(noise(40, 1, 28, 28).clamp(-1, 1))
    assert classifier.frechet_distance(images) < 0.1 * far
