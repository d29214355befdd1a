"""Pipelines of diffusers' flow families with small random weights, and the scheduler configs that
their models are published with.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import diffusers
import torch

from tests.oracle.pipelines import start

MATCH, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"
DPM = "DPMSolverMultistepScheduler"
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 256, "max_image_seq_len": 4096}
FLUX = DYNAMIC | {"base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
QWEN = DYNAMIC | {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "shift": 1.0}
LTX = DYNAMIC | {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "shift": 1.0}
LIGHTNING = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}
COGVIEW = DYNAMIC | {"base_shift": 0.25, "max_shift": 0.75, "time_shift_type": "linear"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "solver_order": 2}

# of each family: (model, scheduler class, its config)
PUBLISHED: dict[str, list[tuple[str, str, dict]]] = {
    "SD3": [("3 and 3.5", MATCH, {"shift": 3.0})],
    "Flux": [
        ("dev", MATCH, FLUX),
        ("schnell", MATCH, FLUX | {"shift": 1.0, "use_dynamic_shifting": False}),
    ],
    "Flux Kontext": [("dev", MATCH, FLUX | {"time_shift_type": "exponential"})],
    "Flux 2": [("dev", MATCH, FLUX)],
    "Wan": [
        ("2.1, 2.2 A14B", UNIPC, FLOW | {"flow_shift": 3.0}),
        ("2.1 720p, 2.2 5B", UNIPC, FLOW | {"flow_shift": 5.0}),
        ("FlowMatch", MATCH, {"shift": 5.0}),
        ("FlowMatch 2.2", MATCH, {"shift": 12.0}),
    ],
    "Qwen-Image": [
        ("base", MATCH, QWEN | {"shift_terminal": 0.02}),
        ("Lightning", MATCH, QWEN | LIGHTNING),
    ],
    "LTX": [
        ("0.9", MATCH, LTX | {"shift_terminal": 0.1}),
        ("distilled", MATCH, {"shift": 1.0, "stochastic_sampling": True}),
    ],
    "LTX Condition": [
        ("0.9.5, 0.9.7", MATCH, {"shift": 1.0}),
        ("0.9.8 distilled", MATCH, {"shift": 1.0, "stochastic_sampling": True}),
    ],
    "Z-Image": [("Turbo", MATCH, {"shift": 3.0}), ("base", MATCH, {"shift": 6.0})],
    "CogView4": [("6B", MATCH, COGVIEW)],
    "Sana": [
        ("1.0, 1.5", DPM, FLOW | {"algorithm_type": "dpmsolver++", "flow_shift": 3.0}),
        ("FlowMatch", MATCH, {"shift": 3.0}),
    ],
    "Mochi": [("1", MATCH, {"invert_sigmas": True})],
    "OmniGen": [("v1", MATCH, {"invert_sigmas": True, "num_train_timesteps": 1})],
    "HunyuanVideo": [("base", MATCH, {"shift": 7.0}), ("Fast", MATCH, {"shift": 17.0})],
}


def made(family: str) -> tuple[diffusers.DiffusionPipeline, dict]:
    """(the pipeline, arguments of a call that gives latents), in float32."""
    torch.manual_seed(0)
    pipe, arguments = BUILDERS[family]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, arguments | {"output_type": "latent", "return_dict": False}


def latents(pipe, arguments: dict, steps: int = 5, **given) -> torch.Tensor:
    """What the pipeline ends with; its noise is that of one seed."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)  # of schedulers that draw and are handed no generator
    return pipe(**arguments | {"num_inference_steps": steps, "generator": generator} | given)[0]


def image_vae(**words) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **words,
    )


# -- inside ----------------------------------------------------------------------------------------
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
IMAGE, MASK = {"height": 64, "width": 64}, torch.ones(1, 5, dtype=torch.long)


def _text(length: int = 5, mask: torch.Tensor | None = None, negative: bool = True) -> dict:
    """Prompt embeddings [1, length, 16] as an encoder would give them, and masks where asked."""
    signs = {"": 1.0, "negative_": -0.5} if negative else {"": 1.0}
    words = {f"{sign}prompt_embeds": v * start(1, length, 16) for sign, v in signs.items()}
    if mask is not None:
        words |= {f"{sign}prompt_attention_mask": mask for sign in signs}
    return words


def _no(*names: str) -> dict:
    return dict.fromkeys(names)


def _sd3():
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        **HEADS,
    )
    encoders = [f"{part}{k}" for part in ("text_encoder", "tokenizer") for k in ("", "_2", "_3")]
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=image_vae(shift_factor=0.1), scheduler=None, **_no(*encoders)
    )
    pooled = start(1, 16)
    pooled = {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": -pooled}
    return pipe, IMAGE | _text() | pooled


def _flux_transformer():
    return diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
        **HEADS,
    )


def _flux(kind=diffusers.FluxPipeline, **words):
    encoders = _no("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    transformer, vae = _flux_transformer(), image_vae(shift_factor=0.1)
    pipe = kind(transformer=transformer, vae=vae, scheduler=None, **encoders)
    words |= {"pooled_prompt_embeds": start(1, 16)}
    return pipe, IMAGE | _text(negative=False) | words


def _kontext():
    image = start(1, 3, 64, 64).sigmoid()
    words = {"image": image, "max_area": 64 * 64, "_auto_resize": False}
    return _flux(diffusers.FluxKontextPipeline, **words)


def _flux2():
    transformer = diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=16,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        **HEADS,
    )
    rest = _no("scheduler", "vae", "text_encoder", "tokenizer")
    pipe = diffusers.Flux2Pipeline(transformer=transformer, **rest)
    return pipe, IMAGE | _text(negative=False)


def _wan():
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    rest = _no("scheduler", "vae", "text_encoder", "tokenizer")
    pipe = diffusers.WanPipeline(transformer=transformer, **rest)
    return pipe, {"height": 32, "width": 32, "num_frames": 5} | _text()


def _qwen():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
        **HEADS,
    )
    rest = _no("scheduler", "vae", "text_encoder", "tokenizer")
    pipe = diffusers.QwenImagePipeline(transformer=transformer, **rest)
    masks = {"prompt_embeds_mask": MASK, "negative_prompt_embeds_mask": MASK}
    return pipe, IMAGE | _text() | masks | {"true_cfg_scale": 4.0}


def _ltx(kind=diffusers.LTXPipeline, vae=None, **words):
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=16,
        **HEADS,
    )
    rest = _no("scheduler", "text_encoder", "tokenizer")
    pipe = kind(transformer=transformer, vae=vae, **rest)
    return pipe, IMAGE | {"num_frames": 9} | _text(mask=MASK) | words


def _ltx_condition():
    """With an image as the first frame: its tokens stay clean, at timesteps of their own."""
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    )
    image = diffusers.utils.pt_to_pil(start(1, 3, 64, 64).clamp(-1, 1))[0]
    return _ltx(diffusers.LTXConditionPipeline, vae, image=image, strength=0.8)


def _z_image():
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[64, 32, 32],
    )
    rest = _no("scheduler", "text_encoder", "tokenizer")
    pipe = diffusers.ZImagePipeline(transformer=transformer, vae=image_vae(), **rest)
    words = {name: list(value) for name, value in _text().items()}
    return pipe, IMAGE | words | {"guidance_scale": 3.0}


def _cogview4():
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        text_embed_dim=16,
        time_embed_dim=16,
        condition_dim=8,
        pos_embed_max_size=16,
        sample_size=16,
        rope_axes_dim=(16, 16),
        **HEADS,
    )
    rest = _no("scheduler", "vae", "text_encoder", "tokenizer")
    pipe = diffusers.CogView4Pipeline(transformer=transformer, **rest)
    return pipe, IMAGE | _text(16)


def _sana():
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        **HEADS,
    )
    rest = _no("scheduler", "vae", "text_encoder", "tokenizer")
    pipe = diffusers.SanaPipeline(transformer=transformer, **rest)
    words = {"use_resolution_binning": False, "negative_prompt": None}
    return pipe, {"height": 256, "width": 256} | _text(mask=MASK) | words


def _mochi():
    transformer = diffusers.MochiTransformer3DModel(
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=4,
        text_embed_dim=16,
        time_embed_dim=4,
        max_sequence_length=16,
        **HEADS,
    )
    rest = _no("scheduler", "vae", "text_encoder", "tokenizer")
    pipe = diffusers.MochiPipeline(transformer=transformer, **rest)
    words = _text(16, mask=torch.ones(1, 16, dtype=torch.bool))
    return pipe, IMAGE | {"num_frames": 7} | words


def _omnigen():
    """Its processor is imported where torchvision is; the part for text needs none of it."""
    from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

    factors = {"long_factor": [1, 1, 1, 1], "short_factor": [1, 1, 1, 1], "type": "su"}
    transformer = diffusers.OmniGenTransformer2DModel(
        in_channels=4,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        num_layers=1,
        pad_token_id=0,
        vocab_size=64,
        max_position_embeddings=128,
        original_max_position_embeddings=128,
        rope_scaling=factors,
        pos_embed_max_size=16,
        time_step_dim=16,
    )
    reader = mock.MagicMock(model_max_length=32)
    reader.side_effect = lambda text, **k: SimpleNamespace(input_ids=[1, 2, 3, 4, 5])
    processor = processor_omnigen.OmniGenMultiModalProcessor
    with (
        mock.patch.object(processor_omnigen, "transforms", mock.MagicMock(), create=True),
        mock.patch.object(pipeline_omnigen, "OmniGenMultiModalProcessor", processor, create=True),
    ):
        pipe = diffusers.OmniGenPipeline(
            transformer=transformer, vae=image_vae(), scheduler=None, tokenizer=reader
        )
    return pipe, IMAGE | {"prompt": "any"}


def _hunyuan():
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    encoders = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    rest = _no("scheduler", "vae", *encoders)
    pipe = diffusers.HunyuanVideoPipeline(transformer=transformer, **rest)
    words = {"pooled_prompt_embeds": start(1, 8), "prompt_attention_mask": MASK}
    return pipe, {"height": 32, "width": 32, "num_frames": 9} | _text(negative=False) | words


BUILDERS: dict[str, Callable] = {
    "SD3": _sd3,
    "Flux": _flux,
    "Flux Kontext": _kontext,
    "Flux 2": _flux2,
    "Wan": _wan,
    "Qwen-Image": _qwen,
    "LTX": _ltx,
    "LTX Condition": _ltx_condition,
    "Z-Image": _z_image,
    "CogView4": _cogview4,
    "Sana": _sana,
    "Mochi": _mochi,
    "OmniGen": _omnigen,
    "HunyuanVideo": _hunyuan,
}
