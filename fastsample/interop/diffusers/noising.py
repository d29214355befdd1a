"""What an FsScheduler does to samples outside its steps: noise of the level of a timestep, where a
run begins, which of them it goes on with. Imports no diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels import transforms
from ...plan import Plan
from ...plan.given import integer
from ...plan.provenance import on_schedule
from .config import trained_levels
from .inverse import DDIM as DDIM_INVERSE
from .loops import Loops
from .sources import UNINDEXED


class Noising:
    """add_noise, scale_noise, get_velocity, set_begin_index and select of a scheduler's contract
    (see `Readings`).
    """

    config: Mapping
    _loops: Loops
    _settings: dict
    _given: Plan | None
    _begin: int | None
    _scale: str
    _exact: bool

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha·original + sigma·noise at the timesteps [B], or at one; where a begin index was
        set, at it or the step that runs next, as diffusers.

        Before set_timesteps, and at timesteps that are not the run's, the levels of the source's
        noise schedule.
        """
        timesteps = transforms.bare("FsScheduler.add_noise", torch.as_tensor(timesteps))
        with transforms.beneath():
            levels = self._levels_at(timesteps)
        alpha, sigma = self._like("add_noise", original_samples, noise, levels)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """add_noise by the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Where the run begins (img2img): the plan is compiled from there when the first step
        comes.
        """
        loop, begin = self._owned().get(), integer(begin_index)
        if begin is None:
            raise TypeError(
                f"FsScheduler.set_begin_index: {begin_index!r}; a whole number is accepted"
            )
        if loop is None:
            self._begin = begin
            return
        if begin > 0:
            on_schedule("FsScheduler.set_begin_index", loop.plan, f"begin_index = {begin}")
        loop.begin = begin

    def select(self, index: Sequence[int] | np.ndarray | Tensor) -> None:
        """Between two steps: go on with samples index [n], whole numbers in any order, some left
        out or repeated. What the loop keeps of them moves, as in `fastsample.Run.select`; the
        sample of the next step is the caller's to index, and so is a list of generators.
        """
        self._owned().get("select").select(index)

    # -- inside ------------------------------------------------------------------------------------
    def _velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha·noise - sigma·sample, alpha² + sigma² = 1, at the training timesteps [B], or at
        one: what a model that predicts v learns (Salimans, Ho 2022, arXiv:2202.00512, App. D).
        """
        timesteps = transforms.bare("FsScheduler.get_velocity", torch.as_tensor(timesteps))
        with transforms.beneath():
            levels = trained_levels("vp", self._settings, timesteps)
        alpha, sigma = self._like("get_velocity", sample, noise, levels)
        return alpha * noise - sigma * sample

    def _like(self, name: str, sample: Tensor, noise: Tensor, levels) -> list[Tensor]:
        """(alpha, sigma) as tensors [n,1,..] in the dtype that both samples fit in, or a ValueError
        where the three do not broadcast.
        """
        axes = [len(levels[0]), *[1] * (noise.dim() - 1)]
        try:
            fits = sample.dim() == noise.dim()
            torch.broadcast_shapes(sample.shape, noise.shape, axes)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"FsScheduler.{name}: noise {list(noise.shape)}, samples {list(sample.shape)} and "
                f"{axes[0]} timesteps; shapes that broadcast, and a timestep for each sample or "
                "one for all, are accepted"
            )
        kept = {"device": noise.device, "dtype": torch.result_type(sample, noise)}
        return [torch.tensor(v, **kept).view(axes) for v in levels]

    def _levels_at(self, timesteps: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) for add_noise, [n] each."""
        loop = self._loops.get()
        indexed = self._given is not None or self.config.source not in UNINDEXED
        told = self._given is None and self.config.source == DDIM_INVERSE  # where a step ends
        # looks its timesteps up in its betas, whatever the run's levels
        betas = self._given is None and self.config.source == "SASolverScheduler"
        betas = betas and not self._exact
        found = None
        if loop is not None and not told and not betas:
            found = loop.levels(timesteps, by_index=indexed)
        if found is not None:
            # diffusers takes noise times 1 - sigma there
            turned = loop.compat and self._settings.get("invert_sigmas")
            return found[::-1] if turned else found
        if self._given is not None:
            raise ValueError(
                f"FsScheduler.add_noise: timesteps {timesteps.tolist()!r:.60}; the plan's own are "
                "accepted"
            )
        if loop is None and indexed and self._begin is not None:
            timesteps = self.timesteps[self._begin].expand(timesteps.shape)
        return trained_levels("vp" if betas else self._scale, self._settings, timesteps)
