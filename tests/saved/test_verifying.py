"""`verify_saved` says whether a saved model is what was saved, and whether Diffusers loads it."""

import json

import pytest
import torch

import quantolab as ql
from quantolab.errors import BrokenModelError
from quantolab.saved.doors import save
from quantolab.saved.folder import open_saved
from quantolab.saved.verifying import VerifyReport, verify_saved
from quantolab.saved.verifying_child import weights_difference


def test_a_saved_model_against_one_quantized_anew(flux_folder, tmp_path):
    folder = save(ql.load(flux_folder, "int8", device="cpu"), tmp_path / "saved")
    report = verify_saved(folder, flux_folder, device="cpu")
    assert report.ok
    assert (report.weights_difference, report.output_difference) == (0, 0)
    assert report.output_reference == "from quantized anew"
    assert report.diffusers_loads and report.diffusers_output_difference == 0
    assert report.quantize_seconds > 0 and report.load_seconds > 0
    assert report.bytes_on_disk == sum(p.stat().st_size for p in folder.iterdir())
    assert "greatest difference of weights  0\n" in str(report)


def test_a_skip_by_path_against_the_module_itself(flux_folder, tmp_path):
    recipe = ql.Recipe("int4", skip=("single_transformer_blocks.0.proj_out",))
    module = ql.load(flux_folder, recipe, device="cpu")
    report = verify_saved(save(module, tmp_path / "saved"), module, device="cpu")
    assert report.ok and report.output_reference == "from the original"
    assert not report.diffusers_loads
    assert "by leaf name only" in report.diffusers_reason
    with torch.no_grad():  # and another module is told apart
        module.x_embedder.bias.add_(1)
    assert 0.9 < weights_difference(module, open_saved(tmp_path / "saved")) < 1.1


def test_a_damaged_folder_is_the_error_that_load_saved_gives(flux_folder, tmp_path):
    folder = save(ql.load(flux_folder, "int8", device="cpu"), tmp_path / "saved")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "extra": 1}))
    with pytest.raises(BrokenModelError, match="has changed since it was saved"):
        verify_saved(folder, device="cpu")


def test_it_prints_as_a_table():
    report = VerifyReport(
        "f", "FluxTransformer2DModel", "int8", "bfloat16", 0.0, None, "no inputs are known",
        False, "reasons", None, 3_800_000, 0.04, 1.01,
    )  # fmt: skip
    assert str(report).splitlines() == [
        "saved model                     FluxTransformer2DModel, int8, bfloat16",
        "on disk                         3.80 MB",
        "greatest difference of weights  0",
        "greatest difference of outputs  – (no inputs are known)",
        "seconds to load                 40.0 ms (quantizing anew: 1.01 s)",
        "plain Diffusers loads it        no",
        "  why                           reasons",
    ]
