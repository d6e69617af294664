"""A plan in words: every figure is the table's, and what is said to fit does."""

import pytest

from quantolab.planning.plan import PIPELINE, plan
from quantolab.report.planned import combinations, fit_sentences, plan_text


@pytest.fixture(scope="module")
def flux():
    return plan("FLUX.1-dev", vram="16GB")


def cells(text, start):
    line = next(line for line in text.splitlines() if line.startswith(start))
    return line.removeprefix(start).split("  ")[1:]


def test_a_line_a_part(flux):
    text = plan_text(flux)
    figures = [cell.strip() for cell in cells(text, "transformer") if cell.strip()]
    assert figures == ["23.8 GB", "11.9 GB", "11.9 GB", "6.33 GB", "3.35 GB"]
    figures = [cell.strip() for cell in cells(text, "vae") if cell.strip()]
    assert figures == ["168 MB", "–", "–", "–", "–"]
    figures = [cell.strip() for cell in cells(text, "all, transformer quantized") if cell.strip()]
    assert figures == ["33.7 GB", "21.8 GB", "21.8 GB", "16.3 GB", "13.3 GB"]
    assert max(map(len, text.splitlines())) <= 100


def test_what_fits_16_gb(flux):
    assert fit_sentences(flux) == [
        "Into 16.0 GB the transformer alone fits as float8, int8, int4 or int2.",
        "The whole pipeline at once fits with int2.",
        "With the text encoders quantized too: transformer float8 or int8 with the text encoders "
        "int4 (14.9 GB); transformer int4 with the text encoders float8 or int8 (11.6 GB).",
        "Not counted: activations, the accelerator's own context, and whatever else is on it.",
    ]


def test_combinations_are_sums_of_the_table(flux):
    held = {(r.component, r.recipe): r.weight_bytes for r in flux.itertuples()}
    pairs = {(c.denoiser, c.others): c.weight_bytes for c in combinations(flux)}
    assert len(pairs) == 25
    for (own, others), total in pairs.items():
        assert total == (
            held["transformer", own] + held["text_encoder", others]
            + held["text_encoder_2", others] + held["vae", "none"]
        )  # fmt: skip
    for recipe in ("none", "int8"):
        assert pairs[recipe, "none"] == held[PIPELINE, recipe]


def test_what_never_fits_is_said():
    said = fit_sentences(plan("Wan2.1-14B", vram="4GB"))
    assert said[0].startswith("Of the transformer alone nothing fits into 4.00 GB: the least is ")
    assert said[1].startswith("The whole pipeline at once does not fit; the least is ")
    assert said[2].startswith("With the text encoder quantized too it takes at least ")


def test_no_budget_no_verdict():
    assert fit_sentences(plan("PixArt-Sigma")) == [
        "Not counted: activations, the accelerator's own context, and whatever else is on it."
    ]


def test_one_component_alone(flux_folder):
    text = plan_text(plan(flux_folder, ["int8"], vram="1GB"))
    assert "the transformer alone fits as none or int8." in text
    assert "pipeline" not in text.replace(str(flux_folder), "")
