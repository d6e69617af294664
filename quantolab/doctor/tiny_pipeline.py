"""The tiny random pipeline that the path matrix runs on, made anew for each run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..devices import resolve_device
from ..models.layers import kept_in_float32, linear_layers
from ..models.skeleton import build_skeleton, dtype_keyword, quiet_libraries
from ..models.source import find_model
from ..processes.jobs import Desk
from .constants import EXTENSIONS
from .jobs import Made, Place
from .published_names import as_published

if TYPE_CHECKING:
    import numpy as np

TRANSFORMER = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 64,
    "num_attention_heads": 4,  # inner width 256: int4 and int2 use groups of 128, int4 TinyGemm
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": [16, 24, 24],
    "guidance_embeds": True,  # as FLUX.1-dev, the model of Diffusers' manual
}
PROMPT = "a red cat"
_WORDS = ("<pad>", "</s>", "<unk>", "a", "red", "cat")
_TOKENS = 16
_PATCHES = 16
_REFERENCES = "references.safetensors"
_PICTURE = 32  # pixels along one side


@dataclass(frozen=True)
class TinyPipeline:
    """The tiny pipeline on disk, and how it is run."""

    folder: Path
    device: str
    dtype_word: str
    """Compute dtype by its name."""

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""
        return getattr(torch, self.dtype_word)

    @property
    def pipeline(self) -> Path:
        """The pipeline in Diffusers layout."""
        return self.folder / "pipeline"

    @property
    def transformer(self) -> Path:
        """Its transformer's folder."""
        return self.pipeline / "transformer"

    @property
    def single_file(self) -> Path:
        """The transformer's weights under Diffusers' names, far from any configuration."""
        return self.folder / "single-file.safetensors"

    @property
    def original_file(self) -> Path:
        """The same weights as FLUX's makers publish theirs."""
        return self.folder / "original-file.safetensors"

    @property
    def extensions(self) -> Path:
        """Where plain Quanto builds its extensions, instead of inside the installed package."""
        return self.folder / EXTENSIONS

    def inputs(self) -> dict[str, torch.Tensor]:
        """Return the transformer's arguments for one forward."""
        noise = torch.Generator("cpu").manual_seed(1)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=noise).to(self.device, self.dtype)

        return {
            "hidden_states": random(1, _PATCHES, TRANSFORMER["in_channels"]),
            "encoder_hidden_states": random(1, _TOKENS, TRANSFORMER["joint_attention_dim"]),
            "pooled_projections": random(1, TRANSFORMER["pooled_projection_dim"]),
            "timestep": torch.tensor([0.5], device=self.device, dtype=self.dtype),
            "guidance": torch.tensor([3.5], device=self.device, dtype=self.dtype),
            "img_ids": torch.zeros(_PATCHES, 3, device=self.device),
            "txt_ids": torch.zeros(_TOKENS, 3, device=self.device),
        }

    def run_transformer(self, transformer: Any) -> torch.Tensor:
        """Return a transformer's output of shape (1, patches, channels)."""
        with torch.no_grad():
            return transformer(**self.inputs(), return_dict=False)[0].cpu()

    def run_encoder(self, encoder: Any) -> torch.Tensor:
        """Return a text encoder's output of shape (1, tokens, width)."""
        tokens = torch.arange(_TOKENS, device=self.device).remainder(len(_WORDS)).unsqueeze(0)
        with torch.no_grad():
            return encoder(input_ids=tokens, return_dict=False)[0].cpu()

    def run_pipeline(self, pipe: Any) -> torch.Tensor:
        """Return a pipeline's picture of shape (height, width, 3), values from 0 to 1."""
        pipe.set_progress_bar_config(disable=True)
        picture: np.ndarray = pipe(
            PROMPT,
            num_inference_steps=2,
            height=_PICTURE,
            width=_PICTURE,
            max_sequence_length=_TOKENS,
            generator=torch.Generator("cpu").manual_seed(0),
            output_type="np",
        ).images[0]
        return torch.from_numpy(picture)

    def reference(self, name: str) -> torch.Tensor:
        """Return an unquantized output: of ``transformer``, ``text_encoder_2`` or ``pipeline``."""
        from safetensors.torch import load_file

        return load_file(self.folder / _REFERENCES)[name]

    def linear_paths(self, component: str = "transformer") -> tuple[str, ...]:
        """Return the paths of a component's Linear layers, without those kept in float32."""
        skeleton = build_skeleton(find_model(self.pipeline).component(component))
        return tuple(
            layer.path
            for layer in linear_layers(skeleton)
            if not kept_in_float32(skeleton, layer.path, self.dtype_word)
        )


def tiny_pipeline(place: Place) -> TinyPipeline:
    """Return the pipeline that lies at a place."""
    return TinyPipeline(place.folder, place.device, place.dtype)


def make_pipeline(asked: Place, desk: Desk) -> Made:
    """Make the pipeline, the single files and the unquantized outputs."""
    from safetensors.torch import save_file

    device = resolve_device(asked.device)
    tiny = tiny_pipeline(dataclasses.replace(asked, device=device))
    torch.manual_seed(0)
    with quiet_libraries():
        pipe = _build_pipeline()
        pipe.save_pretrained(tiny.pipeline)
        state = pipe.transformer.state_dict()
        save_file(state, tiny.single_file)
        save_file(as_published(state), tiny.original_file)
        kind = {dtype_keyword("diffusers"): tiny.dtype}
        pipe = type(pipe).from_pretrained(tiny.pipeline, **kind).to(device)
        outputs = {
            "transformer": tiny.run_transformer(pipe.transformer),
            "text_encoder_2": tiny.run_encoder(pipe.text_encoder_2),
            "pipeline": tiny.run_pipeline(pipe),
        }
    outputs = {name: output.contiguous() for name, output in outputs.items()}
    save_file(outputs, tiny.folder / _REFERENCES)
    return Made(device)


def _build_pipeline() -> Any:
    """Return a random FluxPipeline of a few megabytes that makes 32x32 pictures of noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    width = TRANSFORMER["joint_attention_dim"]
    clip = CLIPTextConfig(
        hidden_size=TRANSFORMER["pooled_projection_dim"],
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        vocab_size=len(_WORDS),
        max_position_embeddings=_TOKENS,
        bos_token_id=3,
        eos_token_id=1,
        pad_token_id=0,
    )
    t5 = T5Config(
        d_model=width, d_ff=128, d_kv=16, num_heads=4, num_layers=1, vocab_size=len(_WORDS)
    )
    tokenizer = _build_tokenizer()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_build_vae(),
        text_encoder=CLIPTextModel(clip).eval(),  # built in training mode, with dropout
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=tokenizer,
        transformer=FluxTransformer2DModel(**TRANSFORMER).eval(),
    )


def _build_vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=_PICTURE,
        block_out_channels=(16,),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    ).eval()


def _build_tokenizer() -> Any:
    """Return a tokenizer of whole words that needs no download."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(_WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=_TOKENS,
    )
