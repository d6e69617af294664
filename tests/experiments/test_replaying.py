"""Half of the work: blocks before the first changed layer give what they gave."""

import pytest
import torch

from quantolab.experiments.replaying import Replay, blocks_of, first_output_of
from quantolab.models.layers import linear_layers


@pytest.mark.parametrize("name", ("flux", "sd3", "sdxl"))
def test_outputs_are_those_of_the_whole_model(architectures, name):
    architecture = architectures[name]
    module = architecture.make()
    call = ((), architecture.inputs(torch.float32) | {"return_dict": False})
    replay, ran = Replay(module, call), []
    for block in blocks_of(module):
        module.get_submodule(block).register_forward_hook(lambda m, a, o: ran.append(1))
    assert torch.equal(replay.output(()), first_output_of(module, call))
    layers = linear_layers(module)
    for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
        linear = module.get_submodule(layer.path)
        kept = linear.weight.data
        linear.weight.data = kept + 0.1 * torch.randn_like(kept)
        assert torch.equal(replay.output([layer.path]), first_output_of(module, call)), layer.path
        linear.weight.data = kept


def test_what_lies_before_is_not_computed(architectures):
    architecture = architectures["flux"]
    module = architecture.make()
    call = ((), architecture.inputs(torch.float32) | {"return_dict": False})
    replay, ran = Replay(module, call), []
    module.transformer_blocks[0].attn.register_forward_hook(lambda *_: ran.append("first"))
    module.single_transformer_blocks[-1].attn.register_forward_hook(lambda *_: ran.append("last"))
    replay.output(["single_transformer_blocks.0.proj_mlp"])
    assert "first" not in ran and "last" in ran
    replay.output(["proj_out"])
    assert ran.count("last") == 1
    replay.output(["x_embedder"])
    assert ran.count("first") == 1
