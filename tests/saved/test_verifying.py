"""`verify_saved` says whether a saved model is what was saved, and whether Diffusers loads it."""

import dataclasses
import json
import math

import pytest
import torch

import quantolab as ql
from quantolab.errors import BrokenModelError
from quantolab.saved.doors import save
from quantolab.saved.folder import open_saved
from quantolab.saved.verifying import VerifyReport, _difference, verify_saved
from quantolab.saved.verifying_child import LoadFound, weights_difference


def test_a_saved_model_against_one_quantized_anew(flux_folder, tmp_path):
    folder = save(ql.load(flux_folder, "int8", device="cpu"), tmp_path / "saved")
    told = []
    report = verify_saved(folder, flux_folder, device="cpu", watch=lambda *said: told.append(said))
    assert report.ok and report.not_compared == ()
    assert [(done, total) for _, done, total in told] == [(0, 3), (1, 3), (2, 3)]
    assert "anew" in told[2][0]
    assert report.output_relative_difference == report.diffusers_relative_difference == 0
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


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize(
    ("ours", "reference", "greatest", "relative"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0, 0),
        ([3.0, 4.1], [3.0, 4.0], 0.1, 0.02),
        ([6.0, 8.0], [3.0, 4.0], 4, 1),
        ([float("nan"), 4.0], [3.0, 4.0], math.inf, math.inf),
        ([1.0], [3.0, 4.0], math.inf, math.inf),
    ],
)
def test_differences_are_told_in_relation_to_the_reference(
    tmp_path, ours, reference, greatest, relative, scale
):
    """0.4 of outputs around 40 is rounding, of outputs around 1 it is another model."""
    found = []
    for name, values in (("ours", ours), ("reference", reference)):
        torch.save(torch.tensor(values, dtype=torch.float64) * scale, tmp_path / name)
        found.append(LoadFound("M", "int8", "bfloat16", 0.0, tmp_path / name))
    apart = _difference(*found)
    assert apart.greatest == pytest.approx(greatest * scale)
    assert apart.relative == pytest.approx(relative)


def test_without_an_original_it_says_what_was_not_compared(pipeline_folder, tmp_path, capfd):
    pipe = ql.load_pipeline(pipeline_folder, "transformer=int8 text_encoder_2=int8", device="cpu")
    folder = save(pipe, tmp_path / "saved")
    report = verify_saved(folder, component="transformer", device="cpu")
    assert report.ok and report.diffusers_loads
    original, others = report.not_compared
    assert original.startswith("the original:")
    assert others == "other parts, each by component=: text_encoder and text_encoder_2"
    assert str(report).splitlines()[-2] == f"not compared                    {original}"
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if " of 2  " in line] == [
        "  0 of 2  reloading the folder in a fresh process",
        "  1 of 2  loading it with plain Diffusers",
    ]


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
    values = {"output_difference": 0.438, "output_relative_difference": 0.0123}
    values |= {"diffusers_output_difference": 2.0, "diffusers_relative_difference": 0.5}
    lines = str(dataclasses.replace(report, **values, not_compared=("one", "two"))).splitlines()
    assert lines[3:5] == [
        "greatest difference of outputs  0.438 (no inputs are known)",
        "  relative, by norms            0.0123",
    ]
    assert "  relative, by norms            0.5" in lines
    assert lines[-2:] == [f"not compared                    {what}" for what in ("one", "two")]
