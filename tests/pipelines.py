"""Tiny pipelines of diffusers with random weights, written to a folder: of an unconditional U-Net,
of Stable Diffusion with a CLIP of its own, and of Stable Diffusion 3's flow transformer.
"""

import json

import torch

# the tokens of a CLIP tokenizer that knows two words letter by letter, and how they are merged
LETTERS = [letter + end for letter in "acdgot" for end in ("", "</w>")]
MERGES = ["c a", "ca t</w>", "d o", "do g</w>"]
TOKENS = [*LETTERS, "ca", "cat</w>", "do", "dog</w>", "<|startoftext|>", "<|endoftext|>"]
BEGIN, END = len(TOKENS) - 2, len(TOKENS) - 1
LENGTH = 7  # of a padded prompt


def unconditional(folder):
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder)


def _text(folder, width, projection=None):
    """A CLIP tokenizer of two words, and a text encoder."""
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    names = (folder / "vocab.json", folder / "merges.txt")
    names[0].write_text(json.dumps({token: k for k, token in enumerate(TOKENS)}))
    names[1].write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    tokenizer = transformers.CLIPTokenizer(*map(str, names), model_max_length=LENGTH)
    config = transformers.CLIPTextConfig(
        vocab_size=len(TOKENS),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        projection_dim=projection or width,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=END,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return tokenizer, kind(config)


def _vae(channels):
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, latent_channels=channels
    )


def stable_diffusion(folder, scheduler=None):
    import diffusers

    torch.manual_seed(0)
    tokenizer, encoder = _text(folder.parent / "words", 8)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    sd = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    diffusers.StableDiffusionPipeline(
        vae=_vae(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler or diffusers.DDIMScheduler(**sd, clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def stable_diffusion_3(folder):
    import diffusers

    torch.manual_seed(0)
    parts = [_text(folder.parent / f"words{k}", 8, 8) for k in range(2)]
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )
    diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(4),
        text_encoder=parts[0][1],
        tokenizer=parts[0][0],
        text_encoder_2=parts[1][1],
        tokenizer_2=parts[1][0],
        text_encoder_3=None,
        tokenizer_3=None,
    ).save_pretrained(folder)


def flux(folder):
    """Packed latents, a scale that the network is told, no encoders in the folder."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    diffusers.FluxPipeline(
        transformer=transformer, vae=_vae(4), scheduler=scheduler, **none
    ).save_pretrained(folder)


def stable_diffusion_xl(folder):
    """Two text encoders, and the sizes of a picture beside a pooled embedding."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    parts = [_text(folder.parent / f"words_xl{k}", 8, 8) for k in range(2)]
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 + 6 * 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    diffusers.StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=transformers.CLIPTextModel(parts[0][1].config),
        tokenizer=parts[0][0],
        text_encoder_2=parts[1][1],
        tokenizer_2=parts[1][0],
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear"),
    ).save_pretrained(folder)


def class_labels(folder):
    """DiT: a class and no prompt, and a variance beside the prediction."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=10,
    )
    diffusers.DiTPipeline(transformer, _vae(4), diffusers.DDIMScheduler()).save_pretrained(folder)


def projected_captions(folder):
    """PixArt: embeddings with a mask, projected to the width of the attention; no encoders."""
    import diffusers

    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        patch_size=2,
        cross_attention_dim=16,
        caption_channels=12,
        use_additional_conditions=False,
    )
    none = dict.fromkeys(("text_encoder", "tokenizer"))
    scheduler = diffusers.DPMSolverMultistepScheduler()
    diffusers.PixArtAlphaPipeline(
        transformer=transformer, vae=_vae(4), scheduler=scheduler, **none
    ).save_pretrained(folder)


def image_embeddings(folder):
    """Kandinsky 2.2's decoder: conditions that its call cannot do without, the negative too."""
    import diffusers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=8,
        addition_embed_type="image",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        encoder_hid_dim=8,
        encoder_hid_dim_type="image_proj",
        cross_attention_dim=8,
        attention_head_dim=4,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=4,
    )
    movq = diffusers.VQModel(block_out_channels=(4,), norm_num_groups=2, latent_channels=4)
    diffusers.KandinskyV22Pipeline(
        unet=unet, scheduler=diffusers.DDIMScheduler(), movq=movq
    ).save_pretrained(folder)
