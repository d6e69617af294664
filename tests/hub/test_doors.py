"""What is pasted, at every door: command line, Python, the explorer and the single-file panel."""

import pandas as pd
import pytest
from hub_needs import LAYOUTS, needed, sizes, unique

import quantolab as ql
from quantolab import cli
from quantolab.errors import QuantolabError
from quantolab.single_file.facts import single_file_facts
from quantolab.widgets import compile_explorer, explorer, save_panel, skip_explorer
from quantolab.widgets.single_files import single_file_loader

SMALL = {"steps": 1, "repeats": 1, "size": (32, 32), "dtype": "float32", "device": "cpu"}
REPO = "owner/fp16-only"
FORMS = (
    REPO,
    f"{REPO}@v1",
    "{hub}/" + REPO,
    "{hub}/" + REPO + "/tree/v1",
    "{hub}/" + REPO + "/blob/main/model_index.json",
    "https://huggingface.co/" + REPO + "/resolve/v1/model_index.json?download=true",
    f"huggingface.co/{REPO}/",
    f"hf://{REPO}",
)
FOLDERS = (
    f"{REPO}/transformer",
    f"{REPO}@v1/transformer/",
    "{hub}/" + REPO + "/tree/main/transformer",
    "{hub}/" + REPO + "/blob/v1/transformer/config.json",
)
FILES = (
    "owner/single-files/tiny.safetensors",
    "owner/single-files@v1/tiny.safetensors",
    "{hub}/owner/single-files/blob/main/tiny.safetensors",
    "{hub}/owner/single-files/resolve/v1/tiny.safetensors?download=true",
    "https://huggingface.co/owner/single-files/blob/main/tiny.safetensors",
)
ALONE = "Of the weights the variant 'fp16' alone is there, and taken."


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(layout_hub):
    return layout_hub


def swept(values, *always):
    """Some always, all in the sweep."""
    return [pytest.param(v, marks=() if v in always else pytest.mark.sweep) for v in values]


def check_bytes(hub, folders, name):
    wanted = sizes(folders[name], needed(name, "compare"))
    sent = hub.sent_of(f"owner/{name}")
    assert set(sent) <= set(wanted)
    assert sum(sent.values()) == unique(folders[name], wanted)


@pytest.mark.parametrize("name", swept(LAYOUTS, "sharded-fp16-only"))
def test_a_comparison_fetches_what_it_needs(hub, layout_folders, name):
    comparison = ql.compare(f"owner/{name}", ["none"], **SMALL)
    assert [(trial.status, trial.reason) for trial in comparison.trials] == [("ok", None)]
    check_bytes(hub, layout_folders, name)
    assert (ALONE in comparison.notes) == name.endswith("fp16-only")
    assert comparison.workload.revision == hub.repos[f"owner/{name}"].commit


@pytest.mark.parametrize("form", swept(FORMS, FORMS[3]))
def test_compare_on_the_command_line(hub, layout_folders, form, capsys):
    arguments = "--weights none --steps 1 --repeats 1 --size 32x32 --dtype float32 --device cpu"
    model = form.format(hub=hub.address)
    assert cli.main(["compare", model, *arguments.split(), "--out", "run"]) == 0
    check_bytes(hub, layout_folders, "fp16-only")
    assert ALONE in capsys.readouterr().out
    assert list(pd.read_csv("run/results.csv").recipe) == ["none"]


@pytest.mark.parametrize("form", [*FORMS, *FOLDERS])
def test_plan_and_python(hub, form, capsys):
    model = form.format(hub=hub.address)
    assert cli.main(["plan", model, "--weights", "int4"]) == 0
    assert ALONE in capsys.readouterr().out
    assert ql.plan(model, ["int4"]).attrs["variants"] == ALONE
    assert len(ql.skip_report(model))
    assert not any(path.endswith(".safetensors") for _, path in hub.sent)
    assert ql.load(model, "int8", device="cpu").quantize_report.quantized
    fetched = [path for _, path in hub.sent if path.endswith(".safetensors")]
    assert len(fetched) == 1 and "transformer/" in fetched[0]


def test_plan_says_which_variant(hub, capsys):
    plain, half = ql.plan("owner/variants"), ql.plan("owner/variants", variant="fp16")
    assert plain.attrs["variants"] is None
    assert half.attrs["variants"] == "Of the weights the variant 'fp16' is read, as asked for."
    assert cli.main(["plan", "owner/variants", "--variant", "fp16"]) == 0
    assert half.attrs["variants"] in capsys.readouterr().out


@pytest.mark.parametrize("form", [*FORMS, *FOLDERS[:3:2]])
def test_the_explorers_field_understands(hub, form):
    panel = explorer()
    panel.form.model.name.value = form.format(hub=hub.address)
    assert panel.form.model.wait(60)
    assert panel.problem.value == "" or "component" in panel.problem.value
    assert panel.form.source.hub.repo == REPO and panel.form.source.denoiser == "transformer"
    assert panel.form.variant.placeholder == "fp16, the only one"
    assert not any(path.endswith(".safetensors") for _, path in hub.sent)


def test_the_explorer_runs_it(hub, layout_folders):
    panel = explorer()
    panel.form.model.name.value = f"{hub.address}/{REPO}/tree/v1"
    assert panel.form.model.wait(60)
    panel.set(recipes=("none",), **SMALL)
    panel.run(wait=True)
    assert panel.error.value == "" and panel.comparison.trials[0].status == "ok"
    check_bytes(hub, layout_folders, "fp16-only")
    assert ALONE in panel.comparison.notes


@pytest.mark.parametrize("form", FILES)
def test_a_single_file(hub, layout_folders, form):
    file = form.format(hub=hub.address)
    panel = single_file_loader()
    panel.path.value = file
    assert panel.wait(60) and panel.error.value == ""
    size = (layout_folders["single-files"] / "tiny.safetensors").stat().st_size
    assert panel.facts.file_bytes == size and panel.facts.problem is None
    assert "by owner/single-files@" in panel.about.value and "snapshots" not in panel.about.value
    hub.forget()
    panel.run(wait=True)
    assert panel.error.value == "" and panel.report.quantized
    assert "the file)" in panel.result.value
    assert hub.sent_of("owner/single-files") == {"tiny.safetensors": size}
    assert ql.load_single_file(file, "int8", device="cpu").quantize_report.quantized


def test_a_file_without_a_configuration_isnt_fetched(hub, layout_folders, tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "x.safetensors").write_bytes(
        (layout_folders["single-files"] / "tiny.safetensors").read_bytes()
    )
    hub.add("owner/bare", tmp_path / "bare")
    with pytest.raises(QuantolabError, match=r"config is needed: .*'owner/bare/x\.safetensors'"):
        ql.load_single_file("owner/bare/x.safetensors")
    assert not hub.sent
    problem = str(single_file_facts("owner/bare/x.safetensors").problem)
    assert "config is needed" in problem and "snapshots" not in problem
    config = f"{hub.address}/{REPO}/blob/main/transformer/config.json"
    assert ql.load_single_file("owner/bare/x.safetensors", config=config, device="cpu")


def test_panels_take_variant_and_revision(hub, tmp_path):
    """What they say is what they do."""
    named = {"variant": "fp16", "revision": "v1"}
    saving = save_panel("owner/variants", **named)
    assert saving.wait(60) and saving.error.value == ""
    assert saving.call.count('variant="fp16", revision="v1"') == 2  # to load, and to verify
    saving.folder.value = str(tmp_path / "saved")
    saving.run(wait=True)
    assert saving.error.value == "" and saving.saved
    weights = {path for _, path in hub.sent if path.endswith(".safetensors")}
    assert weights == {"transformer/diffusion_pytorch_model.fp16.safetensors"}
    saving.verify(wait=True)
    assert saving.error.value == "" and saving.report.ok
    assert weights == {path for _, path in hub.sent if path.endswith(".safetensors")}

    skipping = skip_explorer("owner/variants", **named)
    assert skipping.wait(60) and skipping.picker.loaded
    assert 'variant="fp16", revision="v1"' in skipping.call
    compiling = compile_explorer("owner/variants", **named)
    assert compiling.wait(60)
    for panel in (skipping, compiling):
        assert 'variant="fp16"' in panel.call and 'revision="v1"' in panel.call
        panel.model_field.variant_field.value = "fp17"
        assert panel.wait(60)
        assert "no variant &#x27;fp17&#x27;; there are: fp16" in panel.error.value
        panel.model_field.variant_field.value = ""
        assert panel.wait(60) and panel.error.value == "" and "variant=" not in panel.call


ODD = (
    "owner/variants@", "owner/variants@ v1", "owner/variants@v1@v2", "owner/ variants",
    "owner//variants", "datasets/owner/pictures", "https://huggingface.co/datasets/a/b",
    "{hub}/spaces/a/b", "https://civitai.com/models/618692", "http://[bad/x", "https://",
    "ftp://huggingface.co/owner/variants", "{hub}/owner", "{hub}/owner/variants/nonsense",
    "{hub}/owner/variants/tree/v2", "{hub}/owner/variants/tree/main/nothing", "owner/variants/../x",
    "owner/variant", "owner/variants\nowner/sharded", "owner/" + "b" * 200, "", "  ", "öwner/name",
    "{hub}/owner/single-files/blob/main/tiny.safetensors", "owner/a--b", "from_pretrained('a/b')",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD)
def test_odd_things_are_a_sentence_each(hub, text, capsys):
    text = text.format(hub=hub.address)
    for command in ("compare", "plan"):
        assert cli.main([command, text]) == 2
        out, said = capsys.readouterr()
        assert out == "" and len(said.strip().splitlines()) == 1 and "Traceback" not in said
    doors = [ql.plan, ql.load, ql.skip_report, ql.compare]
    doors += [] if text.endswith(".safetensors") else [ql.load_single_file]
    for door in doors:
        with pytest.raises(QuantolabError):
            door(text)
    panel = explorer()
    if text.strip():  # an empty field means the demo
        panel.form.model.name.value = text
        assert panel.form.model.wait(60) and panel.problem.value
    assert not any(path.endswith(".safetensors") for _, path in hub.sent)
