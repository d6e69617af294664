"""Videos: compared by all their frames, each on one sheet; refused where frames are unsaid."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity
from tiny_pipelines import ltx, wan

import quantolab as ql
from quantolab.errors import ArgumentError
from quantolab.measure.frames import frames_of, sheet_of

FRAMES, SIDE, PROMPT = 5, 32, "a red cat"
ASKED = {
    "steps": 2, "repeats": 1, "device": "cpu", "dtype": "float32", "size": (SIDE, SIDE),
    "frames": FRAMES, "guidance": 3.0, "watch": lambda progress: None,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("videos") / "wan"
    wan().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    return out, ql.compare(folder, ["none", "int8", "int2"], PROMPT, out=out, **ASKED)


def by_diffusers(folder, **changes):
    """Return the frames that plain Diffusers makes, (frames, height, width, 3)."""
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": 2, "width": SIDE, "height": SIDE, "num_frames": FRAMES}
    made = pipe(
        PROMPT, generator=torch.Generator().manual_seed(0), guidance_scale=3.0, output_type="np",
        **{**asked, **changes},
    )  # fmt: skip
    return (made.frames[0] * 255).round().astype("uint8")


def stacked(picture, frames=FRAMES):
    """Return a sheet's frames, line by line, cut out without the product's own rule."""
    columns = math.ceil(math.sqrt(frames))
    width, height = picture.width // columns, picture.height // math.ceil(frames / columns)
    whole = np.asarray(picture)
    corners = [(n // columns * height, n % columns * width) for n in range(frames)]
    return np.stack([whole[y : y + height, x : x + width] for y, x in corners])


def test_frames_are_those_of_plain_diffusers(run, folder):
    _, result = run
    assert [trial.status for trial in result.trials] == ["ok"] * 3, result.trials
    # It pads prompts to its own 512 tokens there, and here to what its tokenizer takes.
    theirs = by_diffusers(folder, max_sequence_length=20)
    ours = stacked(result.images["none", PROMPT, 0])
    # Its encoder's output lies elsewhere in memory: floats differ in their last digits, and one
    # value of thousands then rounds to the next level.
    apart = np.abs(ours.astype(int) - theirs)
    assert apart.max() <= 1 and np.count_nonzero(apart) <= 5


def test_quality_is_that_of_all_frames(run):
    _, result = run
    ours, theirs = (stacked(result.images[word, PROMPT, 0]) for word in ("int2", "none"))
    error = np.mean((ours.astype(float) - theirs) ** 2)
    row = ql.results_table(result).set_index("recipe").loc["int2"]
    assert row.psnr_db == pytest.approx(10 * math.log10(255**2 / error), abs=1e-6)
    each = [
        structural_similarity(
            b, a, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(ours, theirs, strict=True)
    ]  # fmt: skip
    assert row.ssim == pytest.approx(np.mean(each), abs=1e-6)
    assert row.frames == FRAMES and row["size"] == f"{SIDE}x{SIDE}"
    assert row.psnr_db < ql.results_table(result).set_index("recipe").psnr_db["int8"]


def test_a_run_keeps_its_videos_and_goes_on(run, folder, tmp_path):
    out, result = run
    again = ql.load_comparison(out)
    assert again.workload.frames == FRAMES
    key = ("int2", PROMPT, 0)
    assert np.array_equal(stacked(again.images[key]), stacked(result.images[key]))
    origin = ql.picture_origin(next((out / "images").rglob("000-*.png")))
    assert (origin.frames, origin.size) == (FRAMES, (SIDE, SIDE))
    place = tmp_path / "run"
    shutil.copytree(out, place)
    with pytest.raises(ArgumentError, match="frames was 5, now 9"):
        ql.compare(folder, "int8", PROMPT, out=place, resume=True, **{**ASKED, "frames": 9})
    more = ql.compare(folder, "int4", PROMPT, out=place, resume=True, **ASKED)
    assert [trial.label for trial in more.trials] == ["none", "int8", "int2", "int4"]
    assert more.trials[-1].ok and more.trials[-1].quality
    borrowed = ql.compare(folder, "int2", PROMPT, reference=out, out=tmp_path / "other", **ASKED)
    (lent,) = ql.results_table(borrowed).psnr_db
    assert lent == ql.results_table(result).set_index("recipe").psnr_db["int2"]
    resumed = ql.load_comparison(tmp_path / "other")
    assert resumed.trials[0].quality == borrowed.trials[0].quality


def test_ltx_and_both_denoisers_of_wan(tmp_path):
    for make, frames in ((ltx, 9), (lambda: wan(two_denoisers=True), 5)):
        torch.manual_seed(0)
        place = tmp_path / f"model-{frames}"
        make().save_pretrained(place)
        asked = {**ASKED, "frames": frames}
        result = ql.compare(place, ["none", "int8"], PROMPT, **asked)
        assert [trial.status for trial in result.trials] == ["ok"] * 2, result.trials
        table = ql.results_table(result)
        assert (table.weight_bytes == table.predicted_weight_bytes).all()
        made = stacked(result.images["int8", PROMPT, 0], frames)
        assert made.shape == (frames, SIDE, SIDE, 3)


def test_frames_that_a_class_does_not_make_fail_its_trials_in_one_sentence(folder):
    result = ql.compare(folder, "int8", PROMPT, **{**ASKED, "frames": 4})
    (trial,) = result.trials
    assert trial.status != "ok" and "makes 5 frames where 4 were asked for" in trial.reason


@pytest.mark.parametrize("frames", [0, -1, 2.5, "many", 10_001])
def test_a_number_of_frames_has_limits(folder, frames):
    with pytest.raises(ArgumentError, match="frames"):
        ql.compare(folder, "int8", PROMPT, **{**ASKED, "frames": frames})


def test_the_script_makes_the_same_video(folder):
    script = ql.diffusers_code("none", folder, frames=FRAMES, size=(SIDE, SIDE), prompt=PROMPT)
    assert "num_frames=5," in script and "export_to_video(result.frames[0]" in script
    with pytest.raises(ArgumentError, match="makes pictures"):
        ql.diffusers_code("none", "demo", frames=5)


def test_a_sheet_says_how_many_frames_it_holds():
    frames = np.random.default_rng(0).integers(0, 256, (7, 4, 6, 3), np.uint8)
    sheet = sheet_of(frames)
    assert sheet.size == (3 * 6, 3 * 4)
    assert np.array_equal(stacked(sheet, 7), frames)
    assert np.array_equal(np.stack([np.asarray(frame) for frame in frames_of(sheet)]), frames)
    for said in ("x", "0", "-3", "1e9", "5", str(10**30)):  # a stranger's: its size isn't so
        other = Image.new("RGB", (7, 7))
        other.info["frames"] = said
        assert frames_of(other) == [other]
