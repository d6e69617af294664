"""Pipelines other than FLUX: prompts encoded ahead give the pictures that plain Diffusers makes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import quantolab as ql

SIZE = 32


def word_tokenizer(length):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", *["a", "cat", "dog", "red", "blue"]]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def clip(cls="CLIPTextModel"):
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=32,
        max_position_embeddings=77,
        projection_dim=32,
        bos_token_id=3,
        eos_token_id=1,
        pad_token_id=0,
    )
    return getattr(transformers, cls)(config).eval()


def t5(width=32):
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=width, d_ff=64, d_kv=8, num_heads=4, num_layers=2, vocab_size=32, dropout_rate=0
    )
    return T5EncoderModel(config).eval()


def vae(channels, levels=1):
    """Return an autoencoder whose pictures are ``2 ** (levels - 1)`` times as wide as latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=SIZE,
        block_out_channels=(16,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        shift_factor=0.0,
        scaling_factor=1.0,
    ).eval()


def stable_diffusion_3():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=SIZE,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=64,
            caption_projection_dim=64,
            pooled_projection_dim=64,
            out_channels=4,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae(4),
        text_encoder=clip("CLIPTextModelWithProjection"),
        tokenizer=word_tokenizer(77),
        text_encoder_2=clip("CLIPTextModelWithProjection"),
        tokenizer_2=word_tokenizer(77),
        text_encoder_3=t5(64),
        tokenizer_3=word_tokenizer(20),
    )


def pixart_sigma():
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    return PixArtSigmaPipeline(
        transformer=PixArtTransformer2DModel(
            sample_size=SIZE,
            patch_size=2,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=4,
            cross_attention_dim=64,
            caption_channels=32,
            use_additional_conditions=False,
        ).eval(),
        scheduler=DPMSolverMultistepScheduler(),
        vae=vae(4, levels=4),  # it makes no picture below 256 pixels
        text_encoder=t5(),
        tokenizer=word_tokenizer(20),
    )


def stable_diffusion_xl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    return StableDiffusionXLPipeline(
        unet=UNet2DConditionModel(
            sample_size=SIZE,
            block_out_channels=(32, 64),
            layers_per_block=1,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
            norm_num_groups=8,
        ).eval(),
        scheduler=EulerDiscreteScheduler(),
        vae=vae(4),
        text_encoder=clip(),
        tokenizer=word_tokenizer(77),
        text_encoder_2=clip("CLIPTextModelWithProjection"),
        tokenizer_2=word_tokenizer(77),
    )


@pytest.mark.parametrize("make", [stable_diffusion_3, pixart_sigma, stable_diffusion_xl])
def test_reference_pictures_are_plain_diffusers(make, tmp_path):
    from diffusers import DiffusionPipeline

    torch.manual_seed(0)
    make().save_pretrained(tmp_path / "model")
    result = ql.compare(
        tmp_path / "model",
        ["none", "int8"],
        ["a red cat"],
        seeds=(3,),
        steps=3,
        repeats=1,
        guidance=4.0,
        dtype="float32",
        watch=lambda progress: None,
    )
    assert [t.status for t in result.trials] == ["ok", "ok"], result.trials
    width, height = result.workload.size
    assert width == height == (256 if make is pixart_sigma else SIZE)
    table = ql.results_table(result)
    assert (table.weight_bytes == table.predicted_weight_bytes).all()
    assert table["encoded"].tolist() == ["ahead", "ahead"]
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    length = {} if make is stable_diffusion_xl else {"max_sequence_length": 20}
    theirs = pipe(
        "a red cat",
        num_inference_steps=3,
        guidance_scale=4.0,
        width=width,
        height=height,
        generator=torch.Generator().manual_seed(3),
        **length,
    ).images[0]
    ours = result.images["none", "a red cat", 3]
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))
