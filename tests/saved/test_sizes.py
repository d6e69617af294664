"""Layers of odd sizes: saved and loaded bit for bit, names checked before anything is written."""

from __future__ import annotations

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from saved_models import QUANTIZED, assert_same_weights

import quantolab as ql

OUT, IN = (1, 2, 3, 15, 16, 127), (1, 16, 127, 128, 129, 256)


class OddTransformer2DModel(ModelMixin, ConfigMixin):
    """A Linear layer of each size."""

    @register_to_config
    def __init__(self, bias: bool = True):
        super().__init__()
        for n in OUT:
            for k in IN:
                setattr(self, f"layer_{n}_{k}", torch.nn.Linear(k, n, bias=bias))


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    import diffusers

    monkeypatch.setattr(diffusers, "OddTransformer2DModel", OddTransformer2DModel, raising=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("word", QUANTIZED)
def test_every_size(tmp_path, word, bias, dtype):
    module, report = ql.quantize(OddTransformer2DModel(bias).to(dtype).eval(), word)
    assert len(report.quantized) == len(OUT) * len(IN)
    saved = ql.save(module, tmp_path / "saved")
    loaded = ql.load_saved(saved, device="cpu")
    assert_same_weights(module, loaded)
    for path in report.quantized:
        layer, other = module.get_submodule(path), loaded.get_submodule(path)
        x = torch.randn(2, layer.in_features, dtype=dtype)
        assert torch.equal(layer(x), other(x)), path


@pytest.mark.parametrize("word", ("none", *QUANTIZED))
@pytest.mark.parametrize("change", ["more", "fewer", "renamed", "other shape"])
def test_names_are_checked_before_anything_is_written(tmp_path, word, change):
    module = OddTransformer2DModel().to(torch.bfloat16).eval()
    if change == "more":
        module.extra = torch.nn.Linear(16, 16).to(torch.bfloat16)
    elif change == "other shape":
        module.layer_16_16 = torch.nn.Linear(32, 16).to(torch.bfloat16)
    else:
        taken = module._modules.pop("layer_16_16")
        if change == "renamed":
            module.layer = taken
    ql.quantize(module, word)
    with pytest.raises(ql.QuantolabError):
        ql.save(module, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
