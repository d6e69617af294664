"""The one place that imports torchao, without its lines about kernels for other machines."""

from __future__ import annotations

from ...quietly import quiet_imports

with quiet_imports():
    from torchao.core.config import config_to_dict
    from torchao.prototype.safetensors.safetensors_utils import (
        TensorSubclassAttributeJSONEncoder,
    )
    from torchao.quantization import (
        Float8Tensor,
        Float8WeightOnlyConfig,
        FqnToConfig,
        Int8Tensor,
        Int8WeightOnlyConfig,
    )
    from torchao.quantization.granularity import PerGroup, PerRow

__all__ = [
    "Float8Tensor",
    "Float8WeightOnlyConfig",
    "FqnToConfig",
    "Int8Tensor",
    "Int8WeightOnlyConfig",
    "PerGroup",
    "PerRow",
    "TensorSubclassAttributeJSONEncoder",
    "config_to_dict",
]
