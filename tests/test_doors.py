"""One recipe of several words through every door: command line, Python, panel; the same pictures.

On the demo model: int8 transformer, int4 text_encoder_2. What is saved is read in fresh processes.
"""

from __future__ import annotations

import ast

import numpy as np
import pytest
from PIL import Image
from zygote import run_code, run_command

import quantolab as ql
from quantolab.recipes import slug

TEXT = "transformer=int8 text_encoder_2=int4"
PROMPT, STEPS, SEED = "a white house under a sun", 2, 3

FRESH = f"""
import sys
import numpy as np, torch
import quantolab as ql
pictures = []
for folder in sys.argv[2:]:
    pipe = ql.load_saved(folder, device="cpu", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    made = pipe({PROMPT!r}, num_inference_steps={STEPS}, width=128, height=128, output_type="np",
                generator=torch.Generator("cpu").manual_seed({SEED}), max_sequence_length=24)
    pictures.append((made.images[0] * 255).round().astype("uint8"))
    print(ql.weight_bytes(pipe))
np.save(sys.argv[1], pictures)
"""


def fresh(file, *folders):
    """Return what a process makes of saved pipelines, the pictures, and the bytes it held."""
    done = run_code(FRESH, file, *folders)
    assert done.returncode == 0, done.stderr
    return zip(np.load(file), map(int, done.stdout.split()), strict=True)


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """The folder of a run of the command line."""
    out = tmp_path_factory.mktemp("doors") / "run"
    done = run_command(
        "compare", "--weights", "none", "--recipe", TEXT,
        "--prompt", PROMPT, "--steps", STEPS, "--seed", SEED, "--repeats", "1",
        "--device", "cpu", "--dtype", "float32", "--out", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_the_command_line_python_and_the_panel_give_the_same_pictures(by_command, tmp_path):
    from quantolab.widgets import save_panel

    (file,) = (by_command / "images" / slug(TEXT)).glob("*.png")
    wanted = np.asarray(Image.open(file))
    row = ql.load_comparison(by_command).table.set_index("recipe").loc[TEXT]
    assert row.weight_bytes == row.predicted_weight_bytes

    pipe = ql.load_pipeline("demo", TEXT, device="cpu", dtype="float32")
    for name, word in (("transformer", "int8"), ("text_encoder_2", "int4")):
        assert set(getattr(pipe, name).quantize_report.words) == {word}
    by_python = ql.save(pipe, tmp_path / "python")

    panel = save_panel("demo")
    panel.recipe_field.more.selected_index = 1
    assert panel.recipe_field.words.wait(300)
    panel.recipe_field.words.parts["transformer"].value = "int8"
    panel.recipe_field.words.parts["text_encoder_2"].value = "int4"
    panel.recipe_field.device.value = "cpu"
    panel.recipe_field.dtype.value = "float32"
    panel.folder.value = str(tmp_path / "panel")
    assert panel.recipe == ql.Recipe.parse(TEXT) and panel.is_whole
    panel.run(wait=True)
    assert panel.error.value == "" and panel.saved == tmp_path / "panel"
    assert panel.facts.memory_bytes == ql.weight_bytes(pipe) < panel.facts.plain_bytes

    for picture, held in fresh(tmp_path / "pictures.npy", by_python, panel.saved):
        assert np.array_equal(picture, wanted)
        assert held == ql.weight_bytes(pipe)
    _verified_and_loaded(panel, tmp_path)


def _verified_and_loaded(panel, place):
    """The panel's other buttons, and the code that it shows."""
    panel.verify(wait=True)
    assert panel.error.value == "" and len(panel.reports) == 2
    assert all(r.ok and r.weights_difference == 0 for r in panel.reports)
    assert "text_encoder_2" in panel.result.value
    panel.load(wait=True)
    assert panel.error.value == "" and type(panel.module).__name__ == "FluxPipeline"
    panel.folder.value = str(place / "by-code")
    steps = [ast.unparse(node) for node in ast.parse(panel.call).body]
    assert sum("ql.verify_saved" in step for step in steps) == 2
    names = {"ql": ql}
    exec("\n".join(step for step in steps if "verify_saved" not in step), names)
    assert ql.weight_bytes(names["pipe"]) == panel.facts.memory_bytes
