"""export: a whole sampler as one program of torch's own operators, for processes without Python.

sampler = fs.Sampler(plan, model)
program = fs.export(sampler, noise=torch.randn(2, 1, 28, 28))
torch._inductor.aoti_compile_and_package(program, package_path="sampler.pt2")
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..model import Model
from ..plan import Plan
from . import arguments, images, inpainting, sources
from .conditions import branches_of
from .sampler import Sampler

_TENSOR = object()  # what stands for a tensor among the leaves of conditions


def export(
    sampler: Sampler,
    *,
    noise: Tensor | None = None,
    latent: Tensor | None = None,
    draws: Tensor | None = None,
    cond: dict | None = None,
    uncond: dict | None = None,
    guidance: float | Tensor | None = None,
    mask: Tensor | None = None,
    known: Tensor | None = None,
    start: int | None = None,
    strength: float | None = None,
    level: float | None = None,
    dynamic_batch: bool = True,
    strict: bool = False,
) -> torch.export.ExportedProgram:
    """The whole run, from noise or latent to x0 [B,*], as an ExportedProgram: the definition in
    plain torch with the model in it once for each row that asks it, and no operator of ours.

    The arguments are an example, of a batch of two or more. What the program takes are the tensors
    among them, in this order: noise or latent [B,*]; draws [n,B,*] where the plan draws, unit
    normals in the order of first draw, by default made up for the example; those of cond and of
    uncond, in the order of their keys; guidance; mask; known. All else, such as a guidance that is
    a number, is part of the program, as are start, strength and level (as in a Sampler's call).

    dynamic_batch: the program takes any B of two or more, and what goes with samples B long (a mask
    or known of 1 stays 1); else the example's alone. strict: as for torch.export.export.

    The numbers are a Sampler's in eager mode up to how the model's operators are compiled. The
    model has to be one that torch.export takes. Raises ValueError or TypeError, one sentence, for
    arguments that do not fit, and torch's own errors for such a model.
    """
    x = latent if noise is None else noise
    with arguments.named("export"):
        _check_start(noise, latent, dynamic_batch)
        plan = images.plan_for("export", sampler.plan, latent, start, strength, level)
        trees = branches_of("export", cond, uncond, None, len(x), x.device)
        draws = _draws(plan, draws, x, noise, mask is not None)
        inpainting.blend(plan, mask, known, x.shape, x.dtype, x.device)
    own = {k: v for k, v in sampler._options.items() if k != "backend"}
    traced = Sampler(plan, sampler.models, differentiable=True, **own)
    whole = _Whole(traced, trees, guidance, start)
    batch = torch.export.Dim("batch") if dynamic_batch else None
    guided = guidance.detach() if isinstance(guidance, Tensor) else None
    given = {"noise": noise, "latent": latent, "draws": draws, "told": whole.told}
    given |= {"guidance": guided, "mask": mask, "known": known}
    given = {name: value for name, value in given.items() if value is not None and value != []}
    shapes = {name: _open(name, value, batch) for name, value in given.items()}
    return torch.export.export(whole, (), given, dynamic_shapes=shapes, strict=strict)


class _Whole(nn.Module):
    """The sampler as a module that owns the model's weights. told: tensors of the conditions."""

    def __init__(self, sampler: Sampler, trees: dict, guidance, start: int | None) -> None:
        super().__init__()
        networks = [m.fn if isinstance(m, Model) else m for m in sampler.models]
        self.networks = nn.ModuleList(m for m in networks if isinstance(m, nn.Module))
        self._sampler, self._names = sampler, [*trees]
        self._words = {"guidance": guidance, "start": start, "check": None}
        leaves, self._form = pytree.tree_flatten([*trees.values()])
        self._leaves = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        # a tensor that stands in two places is two inputs, which torch.export tells by the object
        self.told = [leaf.detach() for leaf in leaves if isinstance(leaf, Tensor)]

    def forward(
        self, noise=None, latent=None, draws=None, told=(), guidance=None, mask=None, known=None
    ) -> Tensor:
        left, words = iter(told), dict(self._words)
        leaves = [next(left) if leaf is _TENSOR else leaf for leaf in self._leaves]
        trees = pytree.tree_unflatten(leaves, self._form)
        words |= dict(zip(self._names, trees, strict=True)) | {"noise": noise, "latent": latent}
        words |= {"mask": mask, "known": known}
        if guidance is not None:
            words["guidance"] = guidance
        if draws is not None:
            words["noise_source"] = list(draws)
        return self._sampler(**words)


def _check_start(noise: object, latent: object, dynamic_batch: bool) -> None:
    """Refuse what is no one tensor of enough samples."""
    given, least = [v for v in (noise, latent) if v is not None], 1 + bool(dynamic_batch)
    if len(given) == 1 and isinstance(given[0], Tensor) and given[0].dim():
        if len(given[0]) >= least:
            return
        got = f"a batch of {len(given[0])} with dynamic_batch={dynamic_batch}"
    else:
        got = f"noise is a {type(noise).__name__}, latent a {type(latent).__name__}"
    raise ValueError(f"export: {got}; one tensor of {least} samples or more is accepted")


def _draws(
    plan: Plan, given: Tensor | None, x: Tensor, noise: Tensor | None, masked: bool
) -> Tensor | None:
    """The draws [n,B,*] of the example, None where the plan draws nothing that is not noise."""
    drawn = {k for row in sources.ids(plan, masked) for k in row if k is not None}
    n = len(drawn - ({0} if noise is not None else set()))
    if given is None and n:
        unit = torch.Generator().manual_seed(0)
        return torch.randn(n, *x.shape, generator=unit, device="cpu").to(x.device, x.dtype)
    if given is not None and (not isinstance(given, Tensor) or given.shape != (n, *x.shape)):
        got = [*given.shape] if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"export: draws is {got}; {[n, *x.shape]} is accepted")
    return given if n else None


def _open(name: str, value: object, batch: object) -> object:
    """Which axes of an argument may be of other length."""
    if name == "told":
        return [{0: batch} if leaf.dim() and batch else None for leaf in value]
    if batch is None or not value.dim() or (name in ("mask", "known") and len(value) == 1):
        return None
    return {1 if name == "draws" else 0: batch}
