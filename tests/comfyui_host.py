"""A host of our own, written from ComfyUI's contract, for the node pack of integrations/comfyui:
what the pack imports of `comfy` and `comfy_api`, and how its nodes are called. With s for sigma:

              scaled noise           asked with            x0 of the network's output f
    EPS       latent + s·noise       x/sqrt(s² + 1)        x - s f
    V                                                      x/(s² + 1) - s f/sqrt(s² + 1)
    EDM                              x/sqrt(s² + d²)       x d²/(s² + d²) + s d f/sqrt(s² + d²)
    CONST     (1-s) latent + s·noise x                     x - s f

with noise scaled by sqrt(1 + s²) in place of s where s is the model's largest, but for CONST, whose
result is divided by 1 - s at the end.
"""

import inspect
import math
from types import ModuleType, SimpleNamespace

import torch


# -- comfy.model_sampling --------------------------------------------------------------------------
class EPS:
    """alpha = 1, sigma_data = 1."""

    data = 1.0

    def __init__(self, sigma_min=0.03, sigma_max=14.6):
        self.sigma_min, self.sigma_max = torch.tensor(sigma_min), torch.tensor(sigma_max)

    def timestep(self, sigma):
        return 0.25 * sigma.log()

    def size(self, sigma):
        return torch.sqrt(sigma**2 + self.data**2)

    def calculate_input(self, sigma, x):
        return x / self.size(sigma)

    def calculate_denoised(self, sigma, f, x):
        return x - f * sigma

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return latent_image + noise * (torch.sqrt(1.0 + sigma**2) if max_denoise else sigma)

    def inverse_noise_scaling(self, sigma, latent):
        return latent


class V(EPS):
    sign = -1.0

    def calculate_denoised(self, sigma, f, x):
        kept = self.data**2 / self.size(sigma) ** 2
        return kept * x + self.sign * f * sigma * self.data / self.size(sigma)


class EDM(V):
    sign, data = 1.0, 0.5

    def __init__(self, sigma_min=0.002, sigma_max=80.0, data=0.5):
        super().__init__(sigma_min, sigma_max)
        self.data = data


class CONST:
    """Rectified flow, sigma = shift·t/(1 + (shift - 1) t)."""

    def __init__(self, shift=3.0, noise_scale=1.0):
        self.shift, self.sigma_min, self.sigma_max = shift, self.at(1e-3, shift), torch.tensor(1.0)
        self.noise_scale = noise_scale

    @staticmethod
    def at(t, shift):
        return torch.tensor(shift * t / (1.0 + (shift - 1.0) * t))

    def percent_to_sigma(self, percent):
        return float(self.at(1.0 - percent, self.shift))

    def timestep(self, sigma):
        return sigma

    def calculate_input(self, sigma, x):
        return x

    def calculate_denoised(self, sigma, f, x):
        return x - f * sigma

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return sigma * (self.noise_scale * noise) + (1.0 - sigma) * latent_image

    def inverse_noise_scaling(self, sigma, latent):
        return latent / (1.0 - sigma)


class Loud(CONST):
    """HiDream O1, whose noise is eight times as large."""

    def __init__(self):
        super().__init__(3.0, 8.0)


class Other(EPS):
    """A model sampling that nobody knows: made(sigma, noise, latent)."""

    def __init__(self, made):
        self.made = made

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        return self.made(sigma, noise, latent_image)


# -- comfy.samplers --------------------------------------------------------------------------------
class NestedTensor:
    """Several tensors as one latent."""

    is_nested = True

    def __init__(self, tensors):
        self.tensors = list(tensors)

    def unbind(self):
        return self.tensors


class Sampler:
    def max_denoise(self, model_wrap, sigmas):
        top, first = float(model_wrap.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return first > top or math.isclose(top, first, rel_tol=1e-5)


class Inpainted:
    """The denoiser that a sampler function is handed: where the mask is 0 the latent stays."""

    def __init__(self, model_wrap, latent_image, noise):
        self.inner_model, self.latent_image, self.noise = model_wrap, latent_image, noise

    def __call__(self, x, sigma, denoise_mask=None, model_options=None, seed=None):
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options=model_options, seed=seed)
        moved, sampling = (
            model_options.get("denoise_mask_function"),
            self.inner_model.inner_model.model_sampling,
        )
        denoise_mask = moved(sigma, denoise_mask) if moved else denoise_mask
        wide = sigma.view(-1, *[1] * (x.dim() - 1))
        known = sampling.noise_scaling(wide, self.noise, self.latent_image)
        x = denoise_mask * x + (1.0 - denoise_mask) * known
        out = self.inner_model(x, sigma, model_options=model_options, seed=seed)
        return denoise_mask * out + (1.0 - denoise_mask) * self.latent_image


class KSAMPLER(Sampler):
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.function, self.options = sampler_function, extra_options or {}

    def sample(
        self,
        model_wrap,
        sigmas,
        extra_args,
        callback,
        noise,
        latent_image=None,
        denoise_mask=None,
        disable_pbar=False,
    ):
        extra_args["denoise_mask"] = denoise_mask
        sampling, model = (
            model_wrap.inner_model.model_sampling,
            Inpainted(model_wrap, latent_image, noise),
        )
        x = sampling.noise_scaling(
            sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas)
        )
        total = len(sigmas) - 1
        tell = callback and (lambda told: callback(told["i"], told["denoised"], told["x"], total))
        words = {"extra_args": extra_args, "callback": tell, "disable": disable_pbar}
        x = self.function(model, x, sigmas, **words, **self.options)
        return sampling.inverse_noise_scaling(sigmas[-1], x)


class Guider:
    """Model, conditions and guidance: out = uncond + cfg (cond - uncond)."""

    pixels = 8

    def __init__(self, network, sampling, positive=None, negative=None, cfg=1.0, **options):
        self.options = {"transformer_options": {}, **options}
        self.model = SimpleNamespace(model_sampling=sampling, diffusion_model=network)
        self.model_patcher, self.cfg = self, cfg
        self.original_conds = {
            "positive": [{"cross_attn": positive}],
            "negative": [{"cross_attn": negative}],
        }

    def get_model_object(self, name):
        return getattr(self.model, name)

    def __call__(self, x, sigma, model_options=None, seed=None):
        assert model_options == self.options, "they are the host's, and passed on"
        told = [self.original_conds[name][0]["cross_attn"] for name in ("positive", "negative")]
        cond = self.predicted(x, sigma, told[0])
        if self.cfg == 1.0:  # then the other is not asked
            return cond
        uncond = self.predicted(x, sigma, told[1])
        return uncond + self.cfg * (cond - uncond)

    def predicted(self, x, sigma, words):
        sampling = self.inner_model.model_sampling
        wide = sigma.view(-1, *[1] * (x.dim() - 1))
        words = () if words is None else (words.expand(len(x), *words.shape[1:]),)
        f = self.inner_model.diffusion_model(
            sampling.calculate_input(wide, x), sampling.timestep(sigma), *words
        )
        return sampling.calculate_denoised(wide, f, x)

    def sample(
        self,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        disable_pbar=False,
        seed=None,
    ):
        """Several tensors are packed into one [B, 1, N]."""
        shapes = None
        if latent_image.is_nested:
            shapes = [part.shape for part in latent_image.unbind()]
            noise, latent_image = (
                torch.cat([part.reshape(len(part), 1, -1) for part in v.unbind()], -1)
                for v in (noise, latent_image)
            )
        self.inner_model = self.model
        extra = {"model_options": self.options, "seed": seed}
        given = sigmas, extra, callback, noise, latent_image, denoise_mask, disable_pbar
        x = sampler.sample(self, *given)
        if shapes is None:
            return x
        parts = x.split([math.prod(shape[1:]) for shape in shapes], -1)
        return NestedTensor(p.reshape(s) for p, s in zip(parts, shapes, strict=True))


def fix_empty_latent_channels(patcher, latent, downscale_ratio_spacial=None):
    """An empty latent of so many pixels a number, in the size that the model has for it."""
    if downscale_ratio_spacial is None or latent.any():
        return latent
    size = [round(n * downscale_ratio_spacial / patcher.pixels) for n in latent.shape[-2:]]
    return latent.new_zeros(*latent.shape[:-2], *size)


# -- comfy.model_management and comfy.utils --------------------------------------------------------
class InterruptProcessingException(Exception):
    pass


class Host:
    """interrupt_after: looks at whether to go on, until one says no. bars: (value, total) told."""

    interrupt_after, looks, bars = None, 0, []

    @classmethod
    def reset(cls, interrupt_after=None):
        cls.interrupt_after, cls.looks, cls.bars = interrupt_after, 0, []


def throw_exception_if_processing_interrupted():
    Host.looks += 1
    if Host.interrupt_after is not None and Host.looks > Host.interrupt_after:
        raise InterruptProcessingException


class ProgressBar:
    def __init__(self, total):
        self.total = total

    def update_absolute(self, value, total=None, preview=None):
        Host.bars.append((value, total or self.total))


# -- comfy_api.latest ------------------------------------------------------------------------------
class Typed:
    """A type of connections: its inputs, widgets where they have a value, and outputs."""

    class Input:
        def __init__(self, id, optional=False, tooltip=None, options=None, **words):
            self.id, self.optional, self.options, self.words = id, optional, options, words
            self.tooltip = tooltip
            if options:
                words.setdefault("default", options[0])

    class Output:
        def __init__(self, display_name=None, tooltip=None):
            self.display_name, self.tooltip = display_name, tooltip

    @classmethod
    def named(cls, name):
        """The type of this name, which its outputs know."""
        return type(name, (cls,), {"Output": type("Output", (cls.Output,), {"type": name.upper()})})


NAMES = (
    "Boolean",
    "Combo",
    "Float",
    "Guider",
    "Image",
    "Int",
    "Latent",
    "Sampler",
    "Sigmas",
    "String",
)


class Schema:
    def __init__(self, node_id, display_name, category, description, inputs, outputs, **words):
        self.node_id, self.inputs, self.outputs, self.words = node_id, inputs, outputs, words


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class PreviewImage:
    def __init__(self, image, cls):
        assert image.dim() == 4 and image.shape[-1] == 3 and 0 <= image.min() <= image.max() <= 1
        self.image = image


class ComfyExtension:
    pass


class Refused(Exception):
    """The host's word before a workflow runs."""


def run(node, **given):
    """Outputs of a node: inputs by its schema, its own validation, then execute, all in inference
    mode.
    """
    schema, values = node.define_schema(), {}
    validate = getattr(node, "validate_inputs", None)
    own = inspect.signature(validate).parameters if validate else {}
    for each in schema.inputs:
        if each.id not in given and "default" not in each.words:
            assert each.optional, f"{each.id} is not connected"
            continue
        value = values[each.id] = given.pop(each.id, each.words.get("default"))
        if each.id in own:
            continue
        low, high = (each.words.get(word) for word in ("min", "max"))
        if not (low is None or low <= value <= high) or each.options and value not in each.options:
            raise Refused(f"{each.id} = {value!r}")
    assert not given, f"{schema.node_id} has no {', '.join(given)}"
    said = validate(**{name: values[name] for name in own}) if validate else True
    if said is not True:
        raise Refused(said)
    with torch.inference_mode():
        out = node.execute(**values)
    assert len(out.args) == len(schema.outputs)
    return out.args


def modules():
    """What `import comfy...` finds."""
    comfy = {
        "samplers": {"Sampler": Sampler, "KSAMPLER": KSAMPLER},
        "sample": {"fix_empty_latent_channels": fix_empty_latent_channels},
        "utils": {"ProgressBar": ProgressBar},
        "model_management": {
            "InterruptProcessingException": InterruptProcessingException,
            "throw_exception_if_processing_interrupted": throw_exception_if_processing_interrupted,
        },
    }
    io = {name: Typed.named(name) for name in NAMES}
    io |= {"Schema": Schema, "NodeOutput": NodeOutput, "ComfyNode": object}
    latest = {"ComfyExtension": ComfyExtension, "io": SimpleNamespace(**io)}
    latest["ui"] = SimpleNamespace(PreviewImage=PreviewImage)
    found = {f"comfy.{name}": words for name, words in comfy.items()}
    found |= {"comfy": {}, "comfy_api": {}, "comfy_api.latest": latest}
    made = {name: ModuleType(name) for name in found}
    for name, words in found.items():
        made[name].__dict__.update(words)
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(made[parent], own, made[name])
    return made
