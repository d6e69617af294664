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
        "compare at 1024x1024 fits into 17.2 GB with float8 (14.2 GB), int8 (14.2 GB), int4 "
        "(8.61 GB) or int2 (5.63 GB).",
        "none (1.77 GB) fits with --offload group.",
        "Encoding prompts takes 10.4 GB before: it fits.",
        "The weights of all parts at once fit with int4 or int2.",
        "With the text encoders quantized too: transformer float8 or int8 with the text encoders "
        "float8 or int8 (17.1 GB).",
        "Making pictures counts the denoiser and the VAE, 500 MB of the accelerator's own context, "
        "and activations by arithmetic, not measured; whatever else is on the card comes on top.",
    ]


def test_a_card_that_is_too_small_is_told_what_would_do():
    said = fit_sentences(plan("FLUX.1-dev", ["none", "int8", "int4"], vram="8GB"))
    assert said[:3] == [
        "compare at 1024x1024 fits into 8.59 GB with no recipe while all of it is on the card.",
        "int4 (7.54 GB) fits with a tiled VAE.",
        "none (1.77 GB) and int8 (1.41 GB) fit with --offload group.",
    ]
    assert "it doesn't fit, so the processor encodes" in said[3]
    assert "can't be had there in any way" in fit_sentences(plan("FLUX.1-dev", vram="0.9GB"))[1]


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
    said = fit_sentences(plan("Wan2.1-14B", vram="4GB", frames=5))
    assert said[0].startswith("compare at 1024x1024, 5 frames fits into 4.29 GB with no recipe")
    assert any(s.startswith("The weights of all parts at once do not fit") for s in said)
    assert any(s.startswith("With the text encoder quantized too it takes") for s in said)


def test_no_budget_no_verdict():
    (said,) = fit_sentences(plan("PixArt-Sigma"))
    assert said.startswith("Making pictures counts the denoiser and the VAE")


def test_one_component_alone(flux_folder):
    text = plan_text(plan(flux_folder, ["int8"], vram="1GB"))
    assert "the transformer alone fits as none or int8." in text
    assert "pipeline" not in text.replace(str(flux_folder), "")
