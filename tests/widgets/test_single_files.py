"""The panel for single files: what a header says, what loading gives; no browser."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import quantolab as ql
from quantolab.doctor.published_names import as_published
from quantolab.errors import ArgumentError
from quantolab.widgets.single_files import single_file_loader

PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def own_file(flux_folder):
    return flux_folder / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def prefixed_file(own_file, tmp_path_factory):
    """The same tensors under ComfyUI's prefix, with no configuration beside them."""
    path = tmp_path_factory.mktemp("prefixed") / "model.safetensors"
    save_file({PREFIX + name: tensor for name, tensor in load_file(own_file).items()}, path)
    return path


@pytest.fixture
def panel():
    return single_file_loader()


def show(panel, path):
    panel.path.value = str(path)
    assert panel.wait(120)
    return panel.facts


def test_a_file_beside_its_configuration(panel, own_file, flux_folder):
    facts = show(panel, own_file)
    tensors = load_file(own_file)
    assert (facts.tensors, facts.layout, facts.problem) == (len(tensors), "Diffusers' own", None)
    assert facts.stored_bytes == {"float32": sum(t.nbytes for t in tensors.values())}
    assert facts.file_bytes == own_file.stat().st_size
    panel.recipe_field.picker.value = ("proj_out",)
    panel.run(wait=True)
    assert panel.error.value == ""
    twin = ql.load(flux_folder, ql.Recipe("int8", skip=("proj_out",)))
    assert panel.report.quantized == twin.quantize_report.quantized
    assert panel.report.weight_bytes == ql.weight_bytes(panel.module) == ql.weight_bytes(twin)
    assert panel.seconds > 0
    assert f"{len(panel.report.quantized)} quantized, 2 kept" in panel.static_html()
    assert 'ql.Recipe("int8", skip=("proj_out",))' in panel.call


def test_a_missing_configuration_is_asked_for(panel, prefixed_file, flux_folder):
    facts = show(panel, prefixed_file)
    assert "config is needed" in str(facts.problem)
    assert "config is needed" in panel.about.value
    panel.config.name.value = str(flux_folder)
    assert panel.wait(120)
    assert panel.facts.layout == f"Diffusers' own under {PREFIX!r}"
    assert panel.facts.problem is None
    assert f'config="{flux_folder}"' in panel.call


def test_what_is_no_model_says_so(panel, own_file, tmp_path, flux_folder):
    pickle = tmp_path / "model.ckpt"
    torch.save({"weight": torch.zeros(2)}, pickle)
    assert show(panel, pickle) is None
    assert "is a pickle (.ckpt), which can hold code" in panel.error.value
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(own_file.read_bytes()[:1000])
    assert show(panel, broken) is None
    assert "read as safetensors" in panel.error.value
    shutil.copy(flux_folder / "config.json", tmp_path)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, foreign)
    assert "isn&#x27;t the FluxTransformer2DModel" in (show(panel, foreign), panel.about.value)[1]
    panel.run(wait=True)
    assert panel.module is None
    assert "isn&#x27;t the FluxTransformer2DModel" in panel.error.value


def test_files_are_chosen_in_a_list(panel, own_file, tmp_path):
    with pytest.raises(ArgumentError, match="no file is chosen"):
        panel.run()
    (tmp_path / "inner").mkdir()
    shutil.copy(own_file, tmp_path / "one.safetensors")
    (tmp_path / "notes.txt").write_text("no model")
    panel.path.value = str(tmp_path)
    names = [name for name, _ in panel.files.options]
    assert names[:2] == ["../", "inner/"]
    assert [name.split(" ")[0] for name in names[2:]] == ["one.safetensors"]
    panel.files.value = str(tmp_path / "inner")
    assert panel.path.value == str(tmp_path)  # a folder waits for its button
    panel.open_button.click()
    assert [name for name, _ in panel.files.options] == ["../"]
    panel.show_folder(tmp_path)
    panel.files.value = str(tmp_path / "one.safetensors")
    assert panel.path.value == str(tmp_path / "one.safetensors")
    assert panel.wait(120)


def test_the_configuration_that_it_looks_like_is_a_click_away(panel, own_file, tmp_path):
    published = tmp_path / "model.safetensors"
    save_file(as_published(load_file(own_file)), published)
    facts = show(panel, published)
    assert facts.published_as in panel.take_config.description
    assert panel.take_config.layout.display is None
    panel.take_config.click()
    assert panel.wait(120)
    assert panel.config.model == facts.published_as
    assert panel.take_config.layout.display == "none"
    # This tiny one isn't that model, which is said where it is looked at, and once when it is run.
    assert "can&#x27;t be loaded so" in panel.about.value or "be loaded so" in panel.about.value
    panel.run(wait=True)
    assert panel.module is None and panel.error.value
    assert "role='alert'" not in panel.about.value
