"""A Linear layer in Quanto's form: quantized from a weight, or waiting for its tensors."""

from __future__ import annotations

from typing import Any

import torch
from optimum.quanto import QLinear

from ...errors import ArgumentError
from ...shapes import Layer
from ...weights import weights_of
from . import activations, cures, writes
from .kernels import kernel_of as kernel_of
from .offloading import (
    WithWeight,
    check_adapter_names,
    check_casts,
    check_group_offloading,
    check_pipeline_casts,
    let_flux_find_weights,
    loaded_weight,
)
from .products import multiplied_by
from .quantizing import ScaleOfRows, quantized_weight

cures.use_no_compiler()
writes.install()
check_casts()
check_pipeline_casts()
check_group_offloading()
let_flux_find_weights()
check_adapter_names()


class QuantoLinear(QLinear):
    """Quanto's QLinear with a forward that neither crashes nor computes garbage.

    Weight, scales and state dict are those of `QLinear`; only how the product is computed is
    decided here (see `cures`).
    """

    plain_product = False
    """Whether to multiply by the dequantized weight instead of calling a kernel."""

    inputs: activations.Inputs | None = None
    """How what flows into it is quantized, if it is."""

    def reset_parameters(self) -> None:
        """Draw new values, as a Linear layer does; while it is built there are none to draw."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ``input @ weight.T + bias`` for an input of shape (..., in_features)."""
        x = input.contiguous()  # cures.CONTIGUOUS
        if self.inputs is not None:
            return activations.product(self, x)
        return multiplied_by(x, self.qweight, self.bias, self.plain_product)

    @property
    def _hf_hook(self) -> Any:
        """Accelerate's hook, which looks for "weight" in what it has offloaded."""
        if "_hook" not in self.__dict__:
            raise AttributeError("_hf_hook")
        return self.__dict__["_hook"]

    @_hf_hook.setter
    def _hf_hook(self, hook: Any) -> None:
        for one in getattr(hook, "hooks", (hook,)):
            if getattr(one, "weights_map", None) is not None:
                one.weights_map = WithWeight(one.weights_map, self)
        self.__dict__["_hook"] = hook

    @_hf_hook.deleter
    def _hf_hook(self) -> None:
        del self.__dict__["_hook"]

    def _load_from_state_dict(
        self,
        state_dict,
        prefix,
        local_metadata,
        strict,
        missing_keys,
        unexpected_keys,
        error_msgs,
    ) -> None:
        """Load a quantized weight's tensors, or quantize an unquantized weight."""
        rest = {n: v for n, v in state_dict.items() if not n.startswith(f"{prefix}weight")}
        given = {n: v for n, v in state_dict.items() if n.startswith(f"{prefix}weight")}
        try:
            weight = loaded_weight(self, given, prefix, missing_keys)
        except ArgumentError as error:
            error_msgs.append(str(error))
            weight = None
        if weight is not None:
            if local_metadata.get("assign_to_params_buffers", False):
                self.weight = torch.nn.Parameter(weight, requires_grad=False)
            elif self.weight.is_meta and not weight.is_meta:
                error_msgs.append(
                    f"{prefix}weight is on the meta device, where nothing can be written: "
                    "load_state_dict(..., assign=True)"
                )
            else:
                self.weight.data = weight.to(self.weight.device)
        rest[f"{prefix}weight"] = self.weight
        if f"{prefix}weight" in given:  # an unquantized layer has no scales of activations
            rest.setdefault(f"{prefix}input_scale", self.input_scale)
            rest.setdefault(f"{prefix}output_scale", self.output_scale)
        torch.nn.Module._load_from_state_dict(
            self, rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def quantize_linear(
    layer: Layer,
    word: str,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    training: bool = False,
    dtype: torch.dtype | None = None,
) -> tuple[QuantoLinear, tuple[str, ...]]:
    """Return one layer quantized, and the names of the cures that it needed.

    Parameters
    ----------
    layer : Layer
        Its shape and path.
    word : str
        Weights word, one of Quanto's.
    weight : torch.Tensor
        Of shape (out_features, in_features), on the device that will run.
    bias : torch.Tensor or None
        Of shape (out_features,); kept as it is.
    training : bool
        Mode that the new layer starts in.
    dtype : torch.dtype, optional
        Compute dtype; by default the weight's own.
    """
    dtype = dtype or weight.dtype
    quantized = empty_linear(layer, word, dtype)
    cure = cures.cure_for(layer, word, dtype, weight.device.type)
    quantized.plain_product = cure == cures.INT8_PLAIN
    with torch.no_grad():
        packed, zero_rows = quantized_weight(
            weight.detach(),
            quantized.weight_qtype,
            quantized.weight_group_size,
            dtype,
            for_kernel=cure != cures.INT4_GENERIC,
            name=layer.path,
        )
    set_tensors(quantized, packed, bias, dtype)
    names = [cure] if cure else []
    if zero_rows:
        names.append(cures.FLOAT8_ZERO_ROWS)
    return quantized.train(training), tuple(names)


def empty_linear(layer: Layer, word: str, dtype: torch.dtype) -> QuantoLinear:
    """Return a layer on the meta device, waiting for its tensors."""
    linear = QuantoLinear(
        layer.in_features,
        layer.out_features,
        layer.bias,
        dtype=dtype,
        device="meta",
        weights=weights_of(word).name,
        optimizer=None if weights_of(word).grouped else ScaleOfRows(),
    )
    linear.name = layer.path
    return linear


def set_tensors(
    linear: QuantoLinear, packed: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> None:
    """Put a quantized weight and a bias into a waiting layer; activation scales are 1."""
    linear.weight = torch.nn.Parameter(writes.own(packed), requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    for name in ("input_scale", "output_scale"):
        linear._buffers[name] = torch.ones((), dtype=dtype, device=packed.device)
