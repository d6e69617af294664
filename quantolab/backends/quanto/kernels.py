"""Which code multiplies by a quantized weight, and the one product that we write ourselves."""

from __future__ import annotations

import torch
from optimum.quanto import QTensor
from optimum.quanto.tensor.weights.tinygemm import TinyGemmWeightQBitsTensor
from optimum.quanto.tensor.weights.tinygemm.qbits import TinyGemmQBitsLinearFunction

_BY_CLASS = {
    "TinyGemmWeightQBitsTensor": "int4 packed kernel (TinyGemm)",
    "AWQWeightQBitsTensor": "int4 packed kernel (AWQ)",
    "MarlinInt4WeightQBitsTensor": "int4 packed kernel (Marlin)",
    "MarlinF8QBytesTensor": "float8 packed kernel (Marlin)",
}
PLAIN = "dequantize, then matmul"


class TinyGemmProduct(TinyGemmQBitsLinearFunction):
    """``input @ weight.T + bias`` by TinyGemm, which ``torch.compile`` can trace.

    Quanto's own forward asks whether ``type(input) is torch.Tensor``, which isn't so while a
    graph is traced; see `cures.TINYGEMM_TRACED`. The gradient is Quanto's.
    """

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, weight: TinyGemmWeightQBitsTensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the product for x of shape (..., in_features)."""
        ctx.save_for_backward(x, weight)
        if isinstance(x, QTensor):
            x = x.dequantize()
        on_cpu = x.device.type == "cpu"
        multiply = torch._weight_int4pack_mm_for_cpu if on_cpu else torch._weight_int4pack_mm
        rows = x.reshape(-1, x.shape[-1])
        out = multiply(rows, weight._data._data, weight._group_size, weight._scale_shift)
        out = out.reshape(*x.shape[:-1], weight.shape[0])
        return out if bias is None else out + bias


def kernel_of(linear: torch.nn.Module) -> str:
    """Return what multiplies by a layer's weight, in words.

    Read from the dispatch of optimum-quanto 0.2.7: the class of the weight for int4, and for
    int8 ``library/qbytes_mm.py``, where only a CPU (and Apple's MPS) has a packed kernel, for
    bfloat16 inputs.

    Parameters
    ----------
    linear : torch.nn.Module
        A layer of `quantize`, or an ordinary Linear layer.
    """
    weight = linear.weight
    if not isinstance(weight, QTensor):
        return "torch's own"  # a layer in training quantizes it on the way
    name = type(weight).__name__
    inputs = getattr(linear, "inputs", None)
    if inputs is not None and inputs.word == "int8" and weight.qtype.name == "qint8":
        return "int8 by int8, inputs quantized"
    if inputs is not None:
        return f"inputs rounded to {inputs.word}; {_BY_CLASS.get(name, PLAIN)}"
    if name in _BY_CLASS:
        return _BY_CLASS[name]
    device, in_features = weight.device.type, linear.in_features
    step = {"cpu": 4, "mps": 32}.get(device, 0)
    packed = (
        weight.qtype.name == "qint8"
        and weight.dtype == torch.bfloat16
        and step
        and in_features % step == 0
        and (device != "mps" or linear.out_features % step == 0)
        and not getattr(linear, "plain_product", False)
    )
    return "int8 packed kernel" if packed else PLAIN
