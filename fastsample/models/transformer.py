"""The embedded flow model: a diffusion transformer of 28x28 garments, trained on Fashion-MNIST as a
rectified flow.

    x = (1 - s)·x0 + s·eps        out = E[eps - x0 | x]        s in [0, 1]

    x [B,1,28,28] -> 49 patches of 4x4, each to 128 channels -> five blocks -> out [B,1,28,28]

A block with a, b, g of its own for either half, all six from s and label (Peebles & Xie 2023,
adaLN-Zero; one map for all blocks and a table for each, Chen et al. 2023, sec. 2.3):

    h <- h + g·attention(a·norm(h) + b)        h <- h + g·mlp(a·norm(h) + b)

Images and labels as in `fashion.py`. Weights: weights/fashion_flow.safetensors, made by
tools/train_flow.py.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastsample.model import Model
from fastsample.models.fashion import checked, located, read_weights
from fastsample.models.unet import NUM_CLASSES
from fastsample.schedules import Flow

SIDE, PATCH = 28, 4


class Block(nn.Module):
    """Self-attention and a two-layer map, each behind its norm, scale, shift and gate.

    h [B,N,C], modulation [B,6,C] -> [B,N,C].
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.table = nn.Parameter(torch.zeros(6, width))
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, h: torch.Tensor, modulation: torch.Tensor) -> torch.Tensor:
        a, b, g, a_mlp, b_mlp, g_mlp = (modulation + self.table)[:, :, None].unbind(1)
        h = h + g * self.attend(modulated(h, a, b))
        return h + g_mlp * self.narrow(F.gelu(self.wide(modulated(h, a_mlp, b_mlp))))

    def attend(self, h: torch.Tensor) -> torch.Tensor:
        """W·softmax(q·k/sqrt(d))·v over the patches."""
        B, N, C = h.shape
        qkv = self.qkv(h).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        # float32 under autocast too, as in unet.py.
        with torch.autocast(h.device.type, enabled=False):
            y = F.scaled_dot_product_attention(*qkv.float()).to(h.dtype)
        return self.out(y.transpose(1, 2).reshape(B, N, C))


def modulated(h: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(1 + a)·norm(h) + b, the norm over the last axis.   h [B,N,C]; a and b [B,1,C]"""
    return torch.addcmul(b, F.layer_norm(h, h.shape[-1:]).to(h.dtype), 1 + a)


class Transformer(nn.Module):
    """out(x, s, label) [B,1,28,28], of x's dtype.

    width, heads   channels of a patch, and the parts attention takes them in
    depth, hidden  blocks, and the width inside a block's map
    """

    def __init__(self, width: int = 128, depth: int = 5, heads: int = 4, hidden: int = 384) -> None:
        super().__init__()
        self.noise = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(NUM_CLASSES + 1, width)
        self.modulation = nn.Linear(width, 6 * width)
        self.stem = nn.Linear(PATCH**2, width)
        self.place = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.table = nn.Parameter(torch.zeros(2, width))
        self.head = nn.Linear(width, PATCH**2)
        # Every block starts as its skip path, and the output as 0.
        for zero in (self.modulation, self.head):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(
        self, x: torch.Tensor, s: torch.Tensor, label: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x [B,1,28,28]; s [B] in [0,1]; label int64 [B] in 0..10, None or 10: no class."""
        s, label = checked("models.fashion_flow", x, s, label)
        dtype = self.stem.weight.dtype
        # Periods from 4 down to 1/8, in float32 whatever the weights are.
        frequencies = 2 * math.pi * torch.logspace(-2, 3, 16, base=2.0, device=x.device)
        phase = s.float()[:, None] * frequencies
        waves = torch.cat([phase.cos(), phase.sin()], dim=1).to(dtype)
        emb = self.noise(waves) + self.label(label)
        modulation = self.modulation(F.silu(emb)).unflatten(1, (6, -1))
        patches = F.pixel_unshuffle(x.to(dtype), PATCH).flatten(2).transpose(1, 2)
        h = self.stem(patches) + self.place
        for block in self.blocks:
            h = block(h, modulation)
        a, b = (emb[:, None] + self.table)[:, :, None].unbind(1)
        patches = self.head(modulated(h, a, b)).transpose(1, 2)
        return F.pixel_shuffle(patches.unflatten(2, (SIDE // PATCH, -1)), PATCH).to(x.dtype)


@lru_cache(maxsize=4)
def _net(path: Path, changed: int, device: str) -> Transformer:
    tensors, _ = read_weights(path, "fastsample-fashion-flow-1")
    net = Transformer()
    net.load_state_dict(tensors)
    return net.to(device).eval().requires_grad_(False)


def fashion_flow(
    shift: float = 1.0, weights: str | Path | None = None, device: str = "cpu"
) -> Model:
    """The embedded flow model as a fastsample.Model on schedules.Flow(shift), told the shifted
    sigma, with fn(x, s, label=None), see Transformer.forward.

    weights      a safetensors file of tools/train_flow.py; None: the shipped ones. One module per
                 (file, device), shared by its users: in eval mode, parameters without gradients.
    """
    net = _net(*located(weights, "fashion_flow.safetensors"), str(device))
    return Model(net, schedule=Flow(shift), prediction="flow", time=1)
