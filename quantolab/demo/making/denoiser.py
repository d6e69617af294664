"""The demo model's transformer and text encoders, and how the transformer is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import mse_loss, pad

from ...quietly import quiet_imports
from .loop import Training, autocast, save
from .words import END, LENGTH, PAD, word_tokenizer

with quiet_imports():
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

LENGTHS = ((LENGTH, 0.93, 1), (64, 0.04, 1), (160, 0.02, 2), (512, 0.01, 4))
"""Padded text lengths to train with: the length, how often, and by what the batch is divided.

FluxPipeline pads to 512 tokens unless told otherwise, and nothing masks the padding: a model that
only ever saw short texts would fail there."""

_NOISY = 3.0
"""How far training times lean towards the noisy end; 1 would be not at all."""


class Denoiser(torch.nn.Module):
    """The transformer and both text encoders: all that makes latents of noise and words.

    Parameters
    ----------
    latent_channels
        Channels of the autoencoder's latents.
    width
        Inner width of the transformer and of the second text encoder; half of it is that of the
        first. Above 128, so that int4 and int2 weights are quantized in groups.
    doubles, singles
        Transformer blocks of each kind.
    """

    def __init__(
        self, latent_channels: int, width: int = 256, doubles: int = 1, singles: int = 3
    ) -> None:
        super().__init__()
        tokenizer = word_tokenizer()
        # Layers whose sizes are multiples of 16 suit every quantized kernel.
        vocabulary = -len(tokenizer) // 16 * -16
        padding, end = tokenizer.convert_tokens_to_ids([PAD, END])
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=4 * latent_channels,
            num_layers=doubles,
            num_single_layers=singles,
            attention_head_dim=64,
            num_attention_heads=width // 64,
            joint_attention_dim=width,
            pooled_projection_dim=width // 2,
            axes_dims_rope=(16, 24, 24),
            guidance_embeds=False,
        )
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=vocabulary,
                d_model=width,
                d_kv=32,
                d_ff=width // 2,
                num_layers=2,
                num_heads=width // 32,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=padding,
                eos_token_id=end,
            )
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width // 2,
                intermediate_size=width,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=LENGTH,
                projection_dim=width // 2,
                bos_token_id=padding,
                eos_token_id=end,
                pad_token_id=padding,
            )
        )
        self._start_still()
        self._start_at_neighbours()

    @property
    def word_order(self) -> torch.nn.Parameter:
        """The only place where the second text encoder knows the order of words."""
        block = self.text_encoder_2.encoder.block[0]
        return block.layer[0].SelfAttention.relative_attention_bias.weight

    def _start_at_neighbours(self) -> None:
        """Point most attention heads of the second text encoder at one neighbour each.

        Which colour belongs to which shape is a matter of neighbouring words. Left at Transformers'
        initial values, heads take thousands of steps to find that out.
        """
        heads = self.word_order.shape[1]
        # Buckets of T5: n words back is n, n words ahead is 16 + n.
        for head, bucket in zip(range(heads), (1, 17, 2, 18, 3, 19, 0), strict=False):
            with torch.no_grad():
                self.word_order[bucket, head] = 5.0

    def _start_still(self) -> None:
        """Zero the modulations and the output: blocks start as identities, which trains faster."""
        for name, layer in self.transformer.named_modules():
            modulation = isinstance(layer, torch.nn.Linear) and ".norm" in name
            if modulation or name in ("proj_out", "norm_out.linear"):
                torch.nn.init.zeros_(layer.weight)
                torch.nn.init.zeros_(layer.bias)

    def forward(
        self, latents: torch.Tensor, time: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Predict the velocity.

        Parameters
        ----------
        latents
            Noisy packed latents, of shape (batch, places, channels).
        time
            How noisy they are, from 0 to 1.
        tokens
            Token ids of the captions, padded to at least :data:`words.LENGTH`.
        """
        places = round(latents.shape[1] ** 0.5)
        rows = torch.arange(places, dtype=torch.float32)
        places_ids = torch.zeros(latents.shape[1], 3)
        places_ids[:, 1] = rows.repeat_interleave(places)
        places_ids[:, 2] = rows.repeat(places)
        return self.transformer(
            hidden_states=latents,
            timestep=time,
            encoder_hidden_states=self.text_encoder_2(tokens).last_hidden_state,
            pooled_projections=self.text_encoder(tokens[:, :LENGTH]).pooler_output,
            img_ids=places_ids,
            txt_ids=torch.zeros(tokens.shape[1], 3),
            return_dict=False,
        )[0]


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Fold 2x2 places into channels, as FluxPipeline does."""
    n, c, h, w = latents.shape
    folded = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return folded.reshape(n, h * w // 4, c * 4)


def _optimizers(
    transformer: FluxTransformer2DModel,
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon for the matrices of the blocks, AdamW for everything else.

    Each comes with its highest learning rate.
    """
    matrices = [
        p
        for name, p in transformer.named_parameters()
        if p.ndim == 2 and "transformer_blocks" in name and ".norm" not in name
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in transformer.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    return [(muon, 2e-3), (adam(others), 1e-3)]


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of everything that is no matrix of the transformer's blocks."""
    return torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01)


def _loss(
    predict: Callable[..., torch.Tensor], clean: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """Flow-matching loss at random times, mostly noisy ones."""
    mixed, time, wanted = noisy(clean)
    with autocast():
        velocity = predict(mixed, time, tokens)
    return mse_loss(velocity.float(), wanted)


def noisy(clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return latents with noise at random times, mostly late ones; the times; the velocities."""
    time = torch.sigmoid(torch.randn(len(clean)))
    # Flat pictures show through a lot of noise: their layout is decided at times close to 1.
    time = _NOISY * time / (1 + (_NOISY - 1) * time)
    noise = torch.randn_like(clean)
    return clean + time[:, None, None] * (noise - clean), time, noise - clean


def train_denoiser(
    model: Denoiser,
    latents: torch.Tensor,
    captions: list[str],
    steps: int,
    folder: Path,
    batch: int = 64,
    horizon: int = 0,
    compiled: bool = False,
    preview: Callable[[Denoiser, int], None] | None = None,
    preview_every: int = 1000,
    weak_step: int = 0,
) -> float:
    """Train the transformer, or go on where an interrupted run stopped.

    Leaves the averaged weights in `model`.

    Parameters
    ----------
    model
        What to train.
    latents
        Scaled latents of the training pictures, of shape (n, channels, height, width).
    captions
        Their captions.
    steps
        Optimizer steps.
    folder
        Where checkpoints are kept.
    batch
        Pictures in a step.
    horizon
        Where the learning rate's cosine ends, if the training is cut short before it.
    compiled
        Compile the model for the usual text length (needs a C++ compiler; a fifth faster).
    preview
        Called with the averaged model and the step now and then.
    preview_every
        How often.
    weak_step
        After how many steps the averaged weights are kept as ``weak.pt``, what
        `guidance.distil_guidance` guides away from.

    Returns
    -------
    float
        Seconds spent.
    """
    tokenizer = word_tokenizer()
    tokens = tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
    clean = pack(latents)
    # The text encoders can read by now, and noise would teach them to forget it.
    model.requires_grad_(False)
    model.transformer.requires_grad_(True)
    training = Training(
        "denoiser", model, _optimizers(model.transformer), folder, steps, horizon, average=0.999
    )
    # Nothing here behaves differently in training mode; one mode spares compiling twice.
    model.eval()
    fast = torch.compile(model) if compiled else model
    weights = torch.tensor([weight for _, weight, _ in LENGTHS])
    while not training.done:
        length, _, divisor = LENGTHS[int(torch.multinomial(weights, 1))]
        picks = torch.randint(len(clean), (max(1, batch // divisor),))
        text = pad(tokens[picks], (0, length - LENGTH), value=tokenizer.pad_token_id)
        training.update(_loss(fast if length == LENGTH else model, clean[picks], text))
        if preview and training.step % preview_every == 0 and not training.done:
            training.look(lambda: preview(model, training.step))
        if training.step == weak_step:
            training.look(lambda: save(folder / "weak.pt", model.state_dict()))
    return training.finish()
