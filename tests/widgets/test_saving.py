"""The save panel: saved, verified in fresh processes, loaded; nothing foreign is overwritten."""

import pytest
import torch

import quantolab as ql
from quantolab.widgets.saving import save_panel


@pytest.fixture(scope="module")
def panel(flux_folder, tmp_path_factory):
    panel = save_panel(flux_folder)
    panel.recipe_field.weights.value = "int4"
    panel.recipe_field.device.value = "cpu"
    panel.folder.value = str(tmp_path_factory.mktemp("saving") / "saved")
    panel.run(wait=True)
    assert panel.error.value == ""
    return panel


def test_sizes_are_those_of_the_library(panel, flux_folder):
    module = ql.load(flux_folder, "int4", device="cpu")
    plain = ql.load(flux_folder, "none", device="cpu")
    facts = panel.facts
    assert facts.memory_bytes == ql.weight_bytes(module)
    assert facts.plain_bytes == ql.weight_bytes(plain)
    assert facts.disk_bytes == sum(p.stat().st_size for p in panel.saved.iterdir())
    assert f"{facts.memory_bytes / facts.plain_bytes:.2f}x" in panel.static_html()
    loaded = ql.load_saved(panel.saved, device="cpu")
    assert loaded.quantize_report.recipe == panel.recipe


@pytest.mark.long
def test_verify_then_load(panel):
    panel.verify(wait=True)
    assert panel.report.ok and panel.report.weights_difference == 0
    assert panel.report.quantize_seconds > 0
    assert "quantizing anew" in panel.result.value
    panel.load(wait=True)
    assert panel.error.value == ""
    assert type(panel.module).__name__ == "FluxTransformer2DModel"
    assert ql.weight_bytes(panel.module) == panel.facts.memory_bytes


def test_verifying_can_be_cancelled(panel):
    panel.verify()
    assert not panel.cancel_button.disabled and panel.save_button.disabled
    panel.cancel_button.click()
    assert panel.wait(10)
    assert "Cancelled" in panel.status.value
    assert panel.cancel_button.disabled and not panel.save_button.disabled


def test_a_foreign_folder_is_left_alone(flux_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    panel = save_panel(flux_folder)
    panel.folder.value = str(tmp_path)
    panel.run(wait=True)
    assert "isn&#x27;t a model saved by quantolab" in panel.error.value
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    assert panel.saved is None
    panel.load(wait=True)
    assert panel.module is None and "config.json" in panel.error.value


def test_the_code_does_the_same(panel, tmp_path, monkeypatch):
    before, monkeypatch_folder = panel.folder.value, str(tmp_path / "by-code")
    panel.folder.value = monkeypatch_folder
    names = {"ql": ql}
    lines = [line for line in panel.call.splitlines() if "verify_saved" not in line]
    exec("\n".join(lines), names)
    panel.folder.value = before
    ours = ql.load_saved(panel.saved, device="cpu")
    for (name, one), (_, other) in zip(
        ours.named_buffers(), names["transformer"].named_buffers(), strict=True
    ):
        assert torch.equal(one, other), name
    assert ql.weight_bytes(names["transformer"]) == panel.facts.memory_bytes
