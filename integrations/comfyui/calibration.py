"""Calibrate: a search on the model and the conditioning that a guider holds.

It stands where a SAMPLER does: the guider loads the model, prepares the conditions and calls
`sample` with its denoiser, guidance and patches included, and the search asks that.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import comfy.sample
import comfy.utils
import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastsample as fs
from fastsample.interop import k_model
from fastsample.metrics import psnr_each
from fastsample.optimize.search import Stopped

from . import store
from .sampling import kind_of, of_unit_noise

LOOKS = 3  # noise levels at which the model's answers are kept
# of an empty LATENT: pixels, and frames, of one of its numbers, where they may not be the model's
RATIOS = "downscale_ratio_spacial", "downscale_ratio_temporal"
SAME = 0.02  # relative: answers of one model, in half precision, on one machine


class Effort(NamedTuple):
    """What a search may cost. noises: searched with, the first `fitted` of them by the fit, the
    rest by the polish; held_out: that judge; steps: of the grid that is searched; parts: that the
    teacher cuts each of them in, None: as many as bring its end points to 60 dB; beam: of the fit.
    """

    noises: int
    fitted: int
    held_out: int
    steps: int
    parts: int | None
    beam: int


EFFORTS = {
    "quick": Effort(8, 8, 8, 20, 2, 1),
    "normal": Effort(16, 16, 16, 40, 2, 3),
    "thorough": Effort(208, 16, 64, 40, None, 3),
}


class Bar:
    """The host's progress bar in tqdm's place."""

    def __init__(self, total: int, unit: str = "", desc: str = "") -> None:
        self.total, self._done, self._bar = total, 0, comfy.utils.ProgressBar(max(total, 1))

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.update_absolute(max(self.total, 1), max(self.total, 1))

    def update(self, n: int = 1) -> None:
        self._done += n
        self._bar.update_absolute(self._done, max(self.total, self._done))

    def set_postfix_str(self, text: str) -> None:
        """The host's bar has no place for words."""


@dataclass
class Calibration:
    """A SAMPLER that searches. rows: as `fastsample.optimize.search` takes it. before: a SAMPLER
    and SIGMAS to compare with, or None.

    Once it was sampled: `search`, what was found, and `reached`, how near `before` came, in dB.
    """

    evaluations: int
    effort: Effort
    rows: str
    by_hand: bool
    minutes: float
    seed: int
    folder: Path
    identity: Callable[[torch.nn.Module | None], str]
    before: tuple[Any, Tensor] | None = None
    search: fs.optimize.Search | None = field(default=None, init=False)
    reached: float | None = field(default=None, init=False)

    def max_denoise(self, model_wrap: Any, sigmas: Tensor) -> bool:
        return True

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict,
        callback: Callable | None,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Search; noise [b,*] says the shape of a sample, and how many the model is asked at once.
        It is handed back.
        """
        words, sampling = dict(extra_args), model_wrap.inner_model.model_sampling
        kind = kind_of(sampling, noise)
        unit = of_unit_noise(model_wrap, kind.size)

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return unit(x, sigma, **words)

        network = getattr(model_wrap.inner_model, "diffusion_model", None)
        schedule = schedule_of(sampling, kind.state)
        model = k_model(denoiser, schedule, model_id=self.identity(network))
        generator = torch.Generator().manual_seed(self.seed % 2**64)
        drawn = lambda n: torch.randn(n, *noise.shape[1:], generator=generator).to(noise.device)
        z, held_out = drawn(self.effort.noises), drawn(self.effort.held_out)
        answers = self._looked(denoiser, schedule, noise)
        ends = self._before(model_wrap, words, held_out, len(noise))
        store.keep_answers(self.folder, answers)
        try:
            self.search = self._searched(model, z, held_out, len(noise))
        except Stopped as stopped:  # what was finished is in the folder
            raise stopped.__cause__ from None
        except ValueError as error:
            raise self._told(error) from None
        finally:
            store.forget(self.folder)
        if ends is not None:
            target = self.search.target
            self.reached = float(psnr_each(ends[: len(target)] / kind.size, target).mean())
        return noise

    def _looked(
        self, denoiser: Callable, schedule: fs.schedules.Schedule, like: Tensor
    ) -> np.ndarray:
        """What the model answers at a few levels [LOOKS,*]. ValueError where a search of this name
        was begun and had other answers: patches, ControlNets and hooks have no name of their own.
        """
        z = torch.randn(1, *like.shape[1:], generator=torch.Generator().manual_seed(0)).to(like)
        sigmas = z.new_tensor(schedule.sigma(fs.grids.fine(schedule, LOOKS))[:-1])
        answers = torch.cat([denoiser(s * z, s.expand(1)) for s in sigmas]).float().cpu().numpy()
        kept = store.answers(self.folder)
        other = kept is not None and kept.shape == answers.shape and np.isfinite(answers).all()
        if other and np.linalg.norm(kept - answers) > SAME * np.linalg.norm(kept):
            raise ValueError(
                f"fastsample: the plan {self.folder.name} belongs to another search (its model "
                "answered otherwise: prompt, guidance, weights, patches or ControlNets are others)"
                "; another name, or the inputs that it was begun with, are accepted"
            )
        return answers

    def _told(self, error: ValueError) -> ValueError:
        """What the search refused, in the words of the node's inputs."""
        if "is of another search" in str(error):
            return ValueError(
                f"fastsample: the plan {self.folder.name} belongs to another search ({error}); "
                "another name, or the inputs that it was begun with, are accepted"
            )
        if str(self.folder) in str(error):
            return ValueError(
                f"fastsample: what is kept of the search for the plan {self.folder.name} cannot be "
                f"read ({error}); another name is accepted"
            )
        seconds = re.search(r"a time_limit above (\S+) s", str(error))
        if seconds is None:
            return error
        needed = math.ceil(float(seconds[1]) / 60)  # whole, as the host rounds what is typed in
        return ValueError(
            f"fastsample: minutes is {self.minutes:g}, and the model alone takes up to {needed} of "
            "them for what the plan is compared with; more minutes, 0 for no limit, or a smaller "
            "effort is accepted"
        )

    def _searched(
        self, model: fs.Model, z: Tensor, held_out: Tensor, batch: int
    ) -> fs.optimize.Search:
        effort = self.effort
        grid = fs.grids.fine(model.schedule, effort.steps)
        words = {"teacher": grid}
        if effort.parts is not None:
            times = fs.grids.refined(model.schedule, grid, effort.parts)
            words = {"teacher": fs.solvers.dpmpp_3m(model, times), "grid": grid}
        return fs.optimize.search(
            model,
            z,
            [self.evaluations],
            searched=effort.fitted,
            rows=self.rows,
            beam=effort.beam,
            by_hand=self.by_hand,
            held_out=held_out,
            time_limit=60.0 * self.minutes or None,
            checkpoint=self.folder,
            batch_size=batch,
            state_device="cpu",
            progress=Bar,
            **words,
        )

    def _before(
        self, model_wrap: Any, words: dict, held_out: Tensor, batch: int
    ) -> np.ndarray | None:
        """Where the host's own sampler ends from the noises held out; what it refuses it refuses
        before the search.
        """
        if self.before is None:
            return None
        (sampler, sigmas), ends = self.before, []
        top = float(model_wrap.inner_model.model_sampling.sigma_max)
        if len(sigmas) < 2 or sigmas[0] < top / 2 or sigmas[-1] > top / 100:
            listed = ", ".join(f"{v:.4g}" for v in sigmas[[0, -1]].tolist()) if len(sigmas) else ""
            raise ValueError(
                f"fastsample: before_sigmas are {len(sigmas)}, first and last [{listed}]; SIGMAS "
                f"from noise, which is {top:.4g} for this model, down to 0, or nearly, are accepted"
            )
        for noise in held_out.split(batch):
            given = sigmas.to(noise.device), {**words}, None, noise, torch.zeros_like(noise)
            ends.append(sampler.sample(model_wrap, *given, None, True).float().cpu())
        return torch.cat(ends).numpy()


def schedule_of(sampling: Any, state: str) -> fs.schedules.Schedule:
    """EDM between the model's smallest and largest sigma, or Flow of the shift that its middle
    says: sigma = shift/(1 + shift) after half of the time.
    """
    if state == "sigma":
        return fs.schedules.EDM(float(sampling.sigma_min), float(sampling.sigma_max))
    middle = float(sampling.percent_to_sigma(0.5))
    return fs.schedules.Flow(middle / (1.0 - middle))


def identity_of(guider: Any) -> Callable[[torch.nn.Module | None], str]:
    """network -> a name for its form with this guider's numbers and conditions: a search that was
    begun goes on with these alone. Its weights are known by what it answers: a LoRA is in them or
    beside them, by how much memory the host has.
    """
    numbers = {k: v for k, v in vars(guider).items() if isinstance(v, (bool, int, float, str))}
    told = hashlib.sha256(repr([type(guider).__name__, sorted(numbers.items())]).encode())
    for leaf in tree_leaves(getattr(guider, "original_conds", {})):
        if isinstance(leaf, Tensor):
            told.update(leaf.detach().float().cpu().contiguous().numpy().tobytes())
        elif isinstance(leaf, (bool, int, float, str)):
            told.update(repr(leaf).encode())

    def named(network: torch.nn.Module | None) -> str:
        identity = fs.Model(network, fs.schedules.EDM(), "x0").identity  # of None: "unknown"
        form = identity.split("/")[1] if "/" in identity else identity
        return f"comfyui:{told.hexdigest()[:16]}/{form}"

    return named


def one_prompt(guider: Any) -> None:
    """Refuse conditions of several prompts: which one a sample gets depends on the batch that it is
    asked in, and a search asks in many.
    """
    for name, conditions in getattr(guider, "original_conds", {}).items():
        for one in conditions:
            words = one.get("cross_attn") if isinstance(one, dict) else None
            if isinstance(words, Tensor) and len(words) > 1:
                raise ValueError(
                    f"fastsample: the {name} conditioning holds {len(words)} prompts as a batch; "
                    "one prompt is accepted"
                )


def calibrate(guider: Any, latent: dict, calibration: Calibration) -> fs.optimize.Search:
    """Have the guider run the search, from an empty latent of this LATENT's shape, as the host
    fits it to the model. Returns what was found; raises what the model raised, the host's
    interruption too.
    """
    one_prompt(guider)
    ratios = {name: latent[name] for name in RATIOS if name in latent}
    latent = comfy.sample.fix_empty_latent_channels(
        guider.model_patcher, latent["samples"], **ratios
    )
    sampling = guider.model_patcher.get_model_object("model_sampling")
    sigmas = torch.tensor([float(sampling.sigma_max), 0.0])
    noise, empty = zeros(latent), zeros(latent)
    guider.sample(noise, empty, calibration, sigmas, disable_pbar=True, seed=calibration.seed)
    return calibration.search


def zeros(latent: Any) -> Any:
    """Zeros like a latent of one tensor, or of several (audio and video), which the host packs."""
    if isinstance(latent, Tensor):
        return torch.zeros_like(latent)
    return type(latent)([torch.zeros_like(part) for part in latent.unbind()])
