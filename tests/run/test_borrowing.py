"""Pictures of another run in the reference's place: the same figures, refused where they differ."""

import shutil

import pytest
from PIL import Image

import quantolab as ql
from quantolab.errors import ArgumentError, BrokenModelError, ModelNotFoundError
from quantolab.records import BORROWED
from quantolab.report.grid import grid_content
from quantolab.run.asked import check_request

ASKED = {
    "prompts": ["a cat", "a dog"], "seeds": (0, 1), "steps": 1, "size": (32, 32), "repeats": 1,
    "device": "cpu",
}  # fmt: skip


def quietly(progress):
    """Watch nothing."""


@pytest.fixture(scope="module")
def whole(pipeline_folder, tmp_path_factory):
    """A run that has its own reference."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return ql.compare(pipeline_folder, ["none", "int8"], **ASKED, out=out, watch=quietly)


@pytest.fixture(scope="module")
def judged(pipeline_folder, whole, tmp_path_factory):
    """A run without one, judged by the other's; and a moved folder, gone on with."""
    runs = tmp_path_factory.mktemp("judged")
    lent = shutil.copytree(whole.folder, runs / "lent")
    asked = {**ASKED, "prompts": ASKED["prompts"][::-1]}  # in another order: the same
    first = ql.compare(
        pipeline_folder, "int8", **asked, reference=lent, out=runs / "out", watch=quietly
    )
    shutil.rmtree(lent)
    later = ql.compare(
        pipeline_folder, ["int8", "none"], **asked, out=runs / "out", resume=True, watch=quietly
    )
    return str(lent), first, later


def test_figures_are_those_of_a_run_with_its_own_reference(whole, judged):
    lent, first, _ = judged
    own, borrowed = whole.table.set_index("recipe"), first.table.set_index("recipe")
    for name in ("psnr_db", "ssim", "flip", "psnr_worst_db", "pictures"):
        assert borrowed[name]["int8"] == pytest.approx(own[name]["int8"], abs=1e-9), name
    assert own.reference["int8"] == "none"
    assert own.reference["none"] is None
    assert borrowed.reference["int8"] == lent
    assert borrowed.speedup.isna().all()


def test_the_run_keeps_a_copy_and_goes_on_with_it(judged):
    lent, _, later = judged
    table = later.table.set_index("recipe")
    assert list(table.reference) == [lent, lent]
    assert table.identical_pictures["none"] == 4  # its own are the same, on the same device
    assert table.speed_reference["int8"] == "none"
    kept = ql.load_comparison(later.folder)
    assert kept.judge == BORROWED
    assert sum(key[0] == BORROWED for key in kept.images) == 4
    assert ql.save_comparison(kept, f"{later.folder}-again").joinpath("images", BORROWED).is_dir()


def test_they_stand_in_the_grid_and_below_the_table(judged):
    lent, first, _ = judged
    content = grid_content(first)
    assert [column.label for column in content.columns] == [BORROWED, "int8"]
    assert content.columns[0].rest == lent
    assert len(first.grid().axes) == 8
    said = first._repr_html_()
    assert f"told against the unquantized pictures of another run: {lent}" in said
    assert "no speed, PSNR" not in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": ["a cat"]}, "prompts was"),
        ({"seeds": (0, 2)}, r"seeds was \(0, 1\), now \(0, 2\)"),
        ({"steps": 2}, "steps was 1, now 2"),
        ({"size": (32, 64)}, r"size was \(32, 32\), now \(32, 64\)"),
        ({"guidance": 2.0}, "guidance was None, now 2.0"),
    ],
)
def test_other_pictures_are_refused(pipeline_folder, whole, changes, said):
    with pytest.raises(ArgumentError, match=said):
        check_request(pipeline_folder, "int8", **{**ASKED, **changes}, reference=whole.folder)


def test_what_may_differ(pipeline_folder, whole):
    free = {**ASKED, "repeats": 3, "dtype": "float32", "device": "cuda"}
    request = check_request(pipeline_folder, "int8", **free, reference=whole.folder)
    assert request.reference.trial.label == "none"


def test_a_folder_without_unquantized_pictures_is_refused(pipeline_folder, judged, tmp_path):
    _, first, _ = judged
    ql.save_comparison(first, tmp_path / "int8 alone")
    with pytest.raises(ArgumentError, match=r"no unquantized pictures: its trials are int8 \(ok\)"):
        check_request(pipeline_folder, "int8", **ASKED, reference=tmp_path / "int8 alone")
    with pytest.raises(ModelNotFoundError, match="holds no comparison"):
        check_request(pipeline_folder, "int8", **ASKED, reference=tmp_path)


def test_pictures_of_another_model_are_refused(pipeline_folder, whole, tmp_path):
    other = shutil.copytree(pipeline_folder, tmp_path / "model")
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("{", '{ "_note": "changed",', 1))
    with pytest.raises(ArgumentError, match=r"another model .*scheduler_config\.json"):
        ql.compare(
            other, "int8", **ASKED, reference=whole.folder, out=tmp_path / "out", watch=quietly
        )
    assert not (tmp_path / "out").exists()


def _large(path):
    Image.new("RGB", (3000, 3000)).save(path)


def _other_kind(path):
    Image.new("RGB", (32, 32)).save(path, "BMP")


def _link(path):
    path.rename(path.parents[3] / "elsewhere.png")
    path.symlink_to(path.parents[3] / "elsewhere.png")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_large, "3000x3000 pixels, where the run says 32x32"),
        (_other_kind, "can't be read"),
        (_link, "leads out of its folder"),
        (lambda path: path.unlink(), "isn't there"),
    ],
)
def test_a_strangers_pictures_are_read_within_limits(pipeline_folder, whole, tmp_path, harm, said):
    lent = shutil.copytree(whole.folder, tmp_path / "lent")
    harm(next((lent / "images" / "none").iterdir()))
    with pytest.raises(BrokenModelError, match=said):
        ql.compare(pipeline_folder, "int8", **ASKED, reference=lent, watch=quietly)
