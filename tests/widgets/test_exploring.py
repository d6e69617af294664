"""The explorer driven by program: its form, its run in the background, its table, its exports."""

import dataclasses
import json
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import zygote
from PIL import Image

import quantolab as ql
from quantolab.errors import ArgumentError, ModelNotFoundError
from quantolab.plain_values import to_dict
from quantolab.processes.children import SPARE
from quantolab.recipes import Term
from quantolab.records import Timing
from quantolab.report.files import load_comparison
from quantolab.report.tables import read_table, results_table
from quantolab.run import journal
from quantolab.run.asked import check_request
from quantolab.units import format_bytes
from quantolab.widgets import explorer, exploring, recent
from quantolab.widgets.choosing import Choice, choice_of, read_numbers, read_size
from quantolab.widgets.dropped_picture import DroppedPicture
from quantolab.widgets.estimating import Estimate, Prospect, fit_sentence, judged_seconds
from quantolab.widgets.tabling import ResultsTable, order
from quantolab.widgets.take_away import EXPORTS, export, zip_run

PATIENCE = 600  # seconds; only a run that hangs takes so long


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def saved(comparison, tmp_path):
    """Return the folder of a run in which int2 failed."""
    return journal.save(comparison, tmp_path / "saved")


# --- the settings of a picture -------------------------------------------------------------------


def dropped(panel, name, data):
    """Have the panel take a file, as its script sends it."""
    [drop] = [part for part in panel._buttons.children if isinstance(part, DroppedPicture)]
    drop._handle_custom_msg({"name": name}, [memoryview(data)])


def test_a_dropped_picture_fills_in_the_form(saved, comparison):
    trial = comparison.trials[1]
    path = journal.picture_path(saved, trial, 0, *comparison.workload.pairs[0])
    panel = explorer()
    panel.set(prompts="another", steps=3)
    dropped(panel, "fox.png", path.read_bytes())
    choice, workload = panel.form.choice, comparison.workload
    assert choice.recipes == (ql.Recipe("none"), trial.recipe)
    assert (choice.prompts, choice.seeds) == ((workload.prompts[0],), (workload.seeds[0],))
    assert "Taken from fox.png: prompt, seed" in _unescaped(panel.status.value)
    assert panel.error.value == ""


def test_a_picture_that_says_nothing_changes_nothing(tmp_path):
    panel = explorer()
    before = panel.form.choice
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for data in (b"", b"<img>", (tmp_path / "a.png").read_bytes()):
        dropped(panel, "<b>x", data)
        assert panel.form.choice == before
        assert "picture" in panel.error.value and "<b>" not in panel.error.value


# --- the form ------------------------------------------------------------------------------------

INT4_TWICE = ("none", ql.Recipe("int4"), ql.Recipe("int4", ("proj_out",)))
MIXED = (ql.Recipe("int8", ("proj_out",)), ql.Recipe("int4", (), ("text_encoder",)))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"recipes": ("none", "int8"), "steps": 2, "repeats": 1, "seeds": 3},
        {"prompts": ("a white house", 'the word "sun"'), "size": (64, 96), "guidance": 2.5},
        {"recipes": INT4_TWICE, "dtype": "float32", "device": "cpu", "compile": True},
        {"recipes": MIXED, "out": "somewhere", "seeds": (0, 7)},
        {"recipes": (ql.Recipe("int8", (), ("transformer", "text_encoder_2")),)},
    ],
)
def test_the_form_and_its_code_say_what_compare_takes(arguments):
    panel = explorer()
    panel.set(**arguments)
    choice = panel.form.choice
    wanted = dict(arguments)
    if isinstance(wanted.get("seeds"), int):
        wanted["seeds"] = (wanted["seeds"],)
    for name, value in wanted.items():
        if name == "recipes":
            value = tuple(ql.Recipe(r) if isinstance(r, str) else r for r in value)
        assert getattr(choice, name) == value
    assert choice.arguments().keys() == arguments.keys()

    said = {}
    names = {
        "ql": types.SimpleNamespace(
            compare=lambda model, **options: said.update(model=model, **options),
            results_table=lambda comparison: None,
            Recipe=ql.Recipe,
        )
    }
    exec(panel.call.removeprefix("import quantolab as ql"), names)
    ours = check_request(panel.form.source, **_without(choice.arguments(), "out"))
    theirs = check_request(**_without(said, "out"))
    assert (ours.workload, ours.recipes) == (theirs.workload, theirs.recipes)


def _without(arguments, name):
    return {key: value for key, value in arguments.items() if key not in (name, "model")}


@pytest.mark.parametrize(
    ("control", "typed", "said"),
    [
        ("size", "127x128", "size 127x128 can't be made by 'demo': width and height must be "
         "multiples of 16; did you mean 128x128?"),
        ("size", "wide", "size 'wide' can't be made by 'demo'"),
        ("steps", "two", "steps must be a whole number of 1 or more, not 'two'"),
        ("seeds", "0, x", "seed must be a whole number of 0 or more, not 'x'"),
        ("guidance", "-1", "guidance must be a number of 0 or more, not -1.0"),
        ("repeats", "0", "repeats must be a whole number of 1 or more, not 0"),
        ("prompts", " \n", "prompts must be one or more texts"),
        ("out", "taken", "'taken' already holds a comparison"),
    ],
)  # fmt: skip
def test_bad_input_is_said_in_the_librarys_words(control, typed, said, comparison):
    journal.write_run(journal.usable_folder("taken"), comparison)
    panel = explorer()
    assert not panel.run_button.disabled
    field = getattr(panel.form, control)
    before, field.value = field.value, typed
    assert said in _unescaped(panel.problem.value)
    assert panel.run_button.disabled
    with pytest.raises(ArgumentError) as error:
        panel.run()
    assert said in str(error.value)
    field.value = before
    assert panel.problem.value == ""
    assert not panel.run_button.disabled


def _unescaped(text):
    return text.replace("&#x27;", "'")


def test_marks_choose_dtypes_and_parts():
    panel = explorer()
    panel.form.weights["int2"].value = panel.form.weights["float8"].value = False
    panel.form.parts["text_encoder_2"].value = True
    both = ("text_encoder_2", "transformer")
    assert panel.form.choice.recipes == (
        ql.Recipe("none"), ql.Recipe("int8", (), both), ql.Recipe("int4", (), both),
    )  # fmt: skip
    for box in panel.form.parts.values():
        box.value = False
    assert "no part of the model is marked; at least one of text_encoder" in panel.problem.value
    for box in panel.form.weights.values():
        box.value = False
    assert "recipes is empty; at least one is needed" in panel.problem.value


def test_words_of_other_backends_are_offered_where_their_libraries_are(monkeypatch):
    from quantolab import backends

    monkeypatch.setattr(backends, "is_installed", lambda name: name in ("quanto", "sdnq"))
    form = explorer().form
    groups = [row.children[0].value for row in form.others.children]
    assert groups == ["SDNQ"] and form.others.layout.display == "none"
    assert not any(box.value for word, box in form.weights.items() if ":" in word)
    form.weights["sdnq:uint4-g128"].value = True
    assert form.others.layout.display is None and form.others.button.description.endswith(": 1")
    assert ql.Recipe("sdnq:uint4-g128") in form.choice.recipes
    assert "sdnq:int8" in form.words.word.options
    monkeypatch.setattr(backends, "is_installed", lambda name: name == "quanto")
    form = explorer().form
    assert form.others.button.layout.display == "none" and not form.others.children
    assert all(":" not in word for word in (*form.weights, *form.words.word.options))


def test_a_shown_choice_opens_the_other_backends(monkeypatch):
    from quantolab import backends

    monkeypatch.setattr(backends, "is_installed", lambda name: name in ("quanto", "torchao"))
    form = explorer().form
    recipes = (ql.Recipe("none"), ql.Recipe("torchao:int8"))
    form.show(dataclasses.replace(form.choice, recipes=recipes))
    assert form.recipes == recipes and not form.more.value
    assert form.others.button.value and form.weights["torchao:int8"].value


def test_bytes_of_another_backend_are_told_before_a_term_is_added(monkeypatch):
    from quantolab import backends

    monkeypatch.setattr(backends, "is_installed", lambda name: name in ("quanto", "sdnq"))
    form = explorer().form
    form.mixed.value = True
    assert form.words.wait(PATIENCE)
    form.words.pattern.value, form.words.word.value = "proj_out", "sdnq:uint4-g128"
    report = ql.skip_report("demo", recipe="none proj_out=sdnq:uint4-g128")
    held = int(report[report["term"] == "proj_out=sdnq:uint4-g128"]["bytes"].sum())
    assert f"{format_bytes(held)} in sdnq:uint4-g128" in form.words.hint.value
    form.words.add.click()
    assert str(form.words.recipe) == "proj_out=sdnq:uint4-g128"


def test_a_recipe_of_several_words_is_put_together_and_compared():
    panel = explorer()
    form = panel.form
    for word, box in form.weights.items():
        box.value = word == "none"
    assert form.mixed_box.layout.display == "none" and form.add_mixed.disabled
    form.mixed.value = True
    assert form.words.wait(PATIENCE)
    form.words.parts["transformer"].value = "int8"
    form.words.parts["text_encoder_2"].value = "int4"
    assert form.choice.recipes == (ql.Recipe("none"),)  # not before it is asked for
    form.add_mixed.click()
    mixed = ql.Recipe({"transformer": "int8", "text_encoder_2": "int4"})
    assert form.choice.recipes == (ql.Recipe("none"), mixed)
    assert 'ql.Recipe({"text_encoder_2": "int4", "transformer": "int8"})' in panel.call
    form.add_mixed.click()
    assert "is among those that are compared" in form.words.error.value
    form.words.terms = (Term("proj_out", "none"),)
    form.add_mixed.click()
    assert len(form.choice.recipes) == 3
    form.more.value = form.more.value[1:]  # taken away again
    assert form.choice.recipes == (ql.Recipe("none"), form.words.recipe)


def test_another_model_brings_its_own_defaults(pipeline_folder):
    panel = explorer()
    panel.form.steps.value = "7"
    panel.set(model=pipeline_folder)
    assert (panel.form.steps.value, panel.form.size.value) == ("7", "32x32")
    assert "red fox" in panel.form.prompts.value
    panel.set(model="dmeo")
    assert "did you mean 'demo'?" in _unescaped(panel.problem.value)
    assert panel.run_button.disabled
    panel.set(model=None)
    assert panel.problem.value == ""
    assert (panel.form.steps.value, panel.form.size.value) == ("7", "128x128")
    with pytest.raises(ArgumentError, match=r"'step' is not known; .*did you mean 'steps'"):
        panel.set(step=3)


def test_what_is_typed_is_read():
    assert read_numbers("0, 7 x,") == (0, 7, "x")
    assert [read_size(t) for t in ("64 x 32", "64×32", "64", "")] == [
        (64, 32),
        (64, 32),
        "64",
        None,
    ]


# --- the run -------------------------------------------------------------------------------------


def test_a_run_gives_the_table_of_compare(tmp_path):
    arguments = {
        "recipes": ["none", "int8"], "prompts": "a white house", "steps": 2, "repeats": 1,
        "dtype": "float32",
    }  # fmt: skip
    panel = explorer("demo")
    panel.set(**arguments)
    panel.run(wait=True)
    assert panel.error.value == ""
    theirs = ql.results_table(ql.compare("demo", watch=lambda progress: None, **arguments))
    same = ["recipe", "status", "weight_bytes", "predicted_weight_bytes", "file_bytes",
            "psnr_db", "ssim", "model", "steps", "seeds", "size", "prompts"]  # fmt: skip
    pd.testing.assert_frame_equal(panel.table[same], theirs[same])
    assert panel.table.recipe.tolist() == ["none", "int8"]
    assert panel.comparison.images.keys() == {(r, "a white house", 0) for r in ("none", "int8")}
    assert Path(panel.folder).parent == tmp_path / "quantolab-runs"
    assert f"Results in quantolab-runs/{Path(panel.folder).name}<" in panel.results.value
    assert read_table(Path(panel.folder) / "results.csv").equals(panel.table)
    assert "Done: 2 trials." in panel.status.value
    assert "<table" in panel.static_html()
    # Run once more it says how long it will take, and it knows the model's run.
    assert panel.wait_for_estimate(PATIENCE)
    assert "Time: about" in panel.estimate.value
    assert recent.recent_runs() == (Path(panel.folder),)


@pytest.fixture
def servers():
    """Return what lists the servers started since; earlier panels keep theirs for a minute."""
    SPARE.close()  # one that an earlier run left would be taken over, and not be seen
    before = {*zygote.servers()}
    return lambda: {*zygote.servers()} - before


def test_killed_cancelled_and_resumed(pipeline_folder, servers):
    panel = explorer(pipeline_folder)
    panel.set(recipes=["none", "int8"], prompts="a red cat", steps=2, repeats=20, dtype="float32")
    assert panel.wait_for_estimate(PATIENCE)
    assert "20 more" not in panel.estimate.value
    assert "2 pictures to compare and 40 more" in panel.estimate.value
    allowed = []  # whether the button can be clicked, and whether nothing is in its way
    panel.run_button.observe(
        lambda change: allowed.append((not change["new"], not panel.work.running)), "disabled"
    )
    panel.run()
    with pytest.raises(ArgumentError, match="this panel is at work"):
        panel.run()
    panel.run_button.click()
    assert "this panel is at work" in panel.error.value

    _wait_until(lambda: "int8: timing" in panel.status.value, panel)
    assert panel.table.recipe.tolist() == ["none", "int8"]  # before the run has ended
    panel.cancel()
    assert panel.cancel_button.disabled
    assert "Cancelling" in panel.status.value
    assert panel.wait(PATIENCE)
    assert "2 of 2 trials are kept" in panel.status.value
    assert not servers()

    assert [trial.status for trial in panel.comparison.trials] == ["ok", "ok"]
    first = panel.comparison.trials[0].timing.samples
    assert len(first) < 20
    assert panel.resume_button.layout.display is None
    panel.resume(wait=True)
    assert [trial.status for trial in panel.comparison.trials] == ["ok", "ok"]
    assert panel.comparison.trials[0].timing.samples[: len(first)] == first
    assert {len(trial.timing.samples) for trial in panel.comparison.trials} == {20}
    assert panel.resume_button.layout.display == "none"
    panel.resume_button.click()
    assert "there is no run to resume" in panel.error.value
    assert [free for button, free in allowed if button] == [True, True]


def test_pictures_show_as_they_are_made_and_stay_when_cancelled(pipeline_folder, monkeypatch):
    monkeypatch.setattr(exploring, "_LIVE_SECONDS", 0)
    panel = explorer(pipeline_folder)
    panel.set(
        recipes=["none", "int8"],
        prompts=[f"cat {i}" for i in range(8)],
        steps=12,
        repeats=1,
        dtype="float32",
    )
    seen = []  # of each state of the grid: notes of the cells, column by column

    def look(change):
        columns = zip(*change["new"]["cells"], strict=True)
        seen.append([[cell["note"] for cell in column] for column in columns])
        if seen[-1][1:] and seen[-1][1].count("") == 2:
            panel.cancel()

    panel.viewer.observe(look, "_sheet")
    panel.run(wait=True)
    assert [trial.label for trial in panel.comparison.trials] == ["none"]
    making = [notes for notes, _ in seen if "being made" in notes]
    assert making[0] == ["", "being made", *["waiting"] * 6]
    assert [notes.count("") for notes in making] == sorted({n.count("") for n in making})
    assert len(making) > 3
    kept, cancelled = seen[-1]
    assert kept == [""] * 8
    made = cancelled.count("")
    assert 2 <= made < 8 and cancelled[made:] == ["not made yet"] * (8 - made)
    assert "1 of 2 trials are kept" in panel.status.value


def test_nothing_is_left_of_a_run_that_is_cancelled_at_once(pipeline_folder, tmp_path, servers):
    panel, other = explorer(pipeline_folder), explorer(pipeline_folder)
    panel.run()
    other.run()  # in the same second: folders of their own
    assert panel.folder != other.folder
    for one in (panel, other):
        one.cancel()
    for one in (panel, other):
        assert one.wait(PATIENCE)
        assert "Cancelled before the first trial" in one.status.value
        assert one.comparison is one.table is None
    assert list((tmp_path / "quantolab-runs").iterdir()) == []
    assert not servers()


def _wait_until(came_true, panel):
    end = time.monotonic() + PATIENCE
    while not came_true():
        assert time.monotonic() < end and panel.work.running, panel.status.value + panel.error.value
        time.sleep(0.005)


def _job_of(servers):
    jobs = [job for server in servers for job in server.children()]
    assert len(jobs) == 1
    return jobs[0]


# --- an earlier run ------------------------------------------------------------------------------


def test_an_earlier_run_opens_without_torch(saved):
    code = (
        "import sys\n"
        "from quantolab import widgets\n"
        f"panel = widgets.explorer(run={str(saved)!r})\n"
        "assert panel.static_html() and panel.table is not None\n"
        "print(len(panel.comparison.images), *panel.table.recipe)\n"
        "print(*{m.partition('.')[0] for m in sys.modules} & {'torch', 'diffusers', 'optimum'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["20 none float8 int8 int8 compiled int4 int2", ""]


def test_an_unfinished_run_says_what_is_missing(comparison, saved):
    run = json.loads((saved / "run.json").read_text())
    run["asked"].append({"recipe": to_dict(ql.Recipe("int8", ("proj_out",))), "compiled": False})
    (saved / "run.json").write_text(json.dumps(run))
    panel = explorer(run=saved)
    assert "Missing: int2, int8 proj_out=none." in panel.status.value
    assert panel.form.choice.recipes == (
        *dict.fromkeys(trial.recipe for trial in comparison.trials),
        ql.Recipe("int8", ("proj_out",)),
    )
    assert panel.form.compile.value
    with pytest.raises(ModelNotFoundError, match="holds no comparison"):
        explorer(run=saved.parent / "nowhere")


def test_a_run_of_an_earlier_version_opens_too(comparison, saved):
    run = json.loads((saved / "run.json").read_text())
    del run["asked"]
    (saved / "run.json").write_text(json.dumps(run))
    assert journal.read_asked(saved) == comparison.trials


# --- the table -----------------------------------------------------------------------------------


def test_the_table_sorts_and_keeps_the_absent_last(comparison):
    shown = ResultsTable(results_table(comparison))
    asked = ("none", "float8", "int8", "int8 compiled", "int4", "int2")
    assert shown.recipes == asked
    shown.sort("PSNR")
    assert shown.recipes == ("int4", "float8", "int8 compiled", "int8", "none", "int2")
    shown.sort("PSNR", descending=True)
    assert shown.recipes == ("int8", "int8 compiled", "float8", "int4", "none", "int2")
    shown.update(results_table(dataclasses.replace(comparison, trials=comparison.trials[:3])))
    assert shown.recipes == ("int8", "float8", "none")  # the order stays when rows come
    shown.all_columns.value = True
    assert "weight_bytes" in shown.sheet.content["headers"]
    assert "6620160" in shown.sheet.content["rows"][0]
    with pytest.raises(ArgumentError, match="heading 'psnr' is not known"):
        shown.sort("psnr")
    assert order([2, None, 1, 2], True) == [0, 3, 2, 1]


# --- before the start ----------------------------------------------------------------------------


def test_time_is_judged_by_runs_alike_only(comparison):
    """Worked out by hand: 20 steps measured, 10 asked for."""
    machine = comparison.trials[0].conditions.device_name
    timed = tuple(
        dataclasses.replace(t, timing=Timing((4.0, 4.0), (4.0,)), load_seconds=1.0)
        for t in comparison.trials[:2]
    )  # none and float8: 13 s each, so of 60 s other things took 34, 17 a trial
    run = dataclasses.replace(comparison, trials=timed, folder="run")
    size = {"size": (128, 128), "dtype": "float32", "device": "cpu", "steps": 10, "repeats": 3}
    request = check_request("demo", ["none", "int4"], "a sun", **size)
    seconds, by = judged_seconds(request, machine, [run])
    assert (seconds, by) == (2 * (1 + 2.0 * 4 + 17), "run")
    assert judged_seconds(request, "another machine", [run]) is None
    assert judged_seconds(request, machine, []) is None
    smaller = check_request("demo", ["none"], "a sun", **{**size, "size": (64, 64)})
    assert judged_seconds(smaller, machine, [run]) is None
    compiled = check_request("demo", ["none"], "a sun", **size, compile=True)
    assert judged_seconds(compiled, machine, [run]) is None


def test_what_does_not_fit_is_named():
    request = check_request("demo", ["none", "int8", "int4"])
    needs = {"none": 30_000_000_000, "int8": 15_000_000_000, "int4": 8_000_000_000}
    prospect = Prospect("cuda", "NVIDIA H100", 16_000_000_000, needs)
    said = "Memory: none doesn't fit into the 16.0 GB free on NVIDIA H100."
    assert fit_sentence(Estimate(request, prospect)) == said
    request = check_request("demo", ["int8", "int4"])
    said = "Memory: int8 would leave little of the 16.0 GB free on NVIDIA H100."
    assert fit_sentence(Estimate(request, prospect)) == said
    request = check_request("demo", ["int4"])
    said = "Memory: fits; 16.0 GB free on NVIDIA H100."
    assert fit_sentence(Estimate(request, prospect)) == said
    unknown = dataclasses.replace(prospect, free_bytes=None)
    assert "doesn't say how much" in fit_sentence(Estimate(request, unknown))


def test_recent_models_and_runs(tmp_path, pipeline_folder):
    recent.remember("demo", tmp_path / "gone")
    recent.remember("owner/name", tmp_path)
    recent.remember(str(pipeline_folder), tmp_path)
    assert recent.recent_models() == (str(pipeline_folder), "owner/name")
    assert recent.recent_runs() == (tmp_path,)
    assert {"demo", "owner/name", str(pipeline_folder)} <= set(explorer().form.model.name.options)
    (tmp_path / "cache/quantolab/recent.json").write_text("[")
    assert recent.recent_models() == ()


# --- taking along --------------------------------------------------------------------------------


def test_exports_are_what_they_say(saved, comparison, tmp_path):
    run = journal.read(saved)
    written = {kind: export(kind, run) for kind in EXPORTS}
    table = results_table(comparison)
    assert read_table(written["CSV"]).equals(table)
    assert read_table(written["Parquet"]).equals(table)
    assert written["grid PNG"].read_bytes()[:4] == b"\x89PNG"
    assert written["Markdown"].read_text().startswith("| recipe")
    assert written["whole run (zip)"] == tmp_path / "saved.zip"
    with zipfile.ZipFile(written["whole run (zip)"]) as archive:
        archive.extractall(tmp_path / "unpacked")
    again = journal.read(tmp_path / "unpacked" / "saved")
    assert again.trials == comparison.trials
    assert len(again.images) == len(comparison.images)
    assert (tmp_path / "unpacked/saved/results.csv").read_bytes() == written["CSV"].read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    elsewhere = export("CSV", run, tmp_path / "elsewhere")
    assert elsewhere == tmp_path / "elsewhere" / "results.csv"
    with pytest.raises(ArgumentError, match="export 'csv' is not known"):
        export("csv", run)
    with pytest.raises(ArgumentError, match="lies in no folder"):
        export("CSV", comparison)


def test_an_export_says_where_it_is_and_offers_it(saved):
    panel = explorer(run=saved)
    panel.take_away.export("CSV", wait=True)
    said = panel.take_away.written.value
    assert f"<code>{saved / 'results.csv'}</code>" in said
    assert "download='results.csv' href='data:text/csv;base64," in said
    panel.take_away.folder.value = str(saved / "run.json" / "inside")
    panel.take_away.export("CSV", wait=True)
    assert "results can't be written to" in _unescaped(panel.take_away.written.value)


def test_the_script_and_the_call_belong_to_the_run(saved, comparison):
    panel = explorer(run=saved)
    assert panel.take_away.call.code == choice_of(comparison).code()
    assert choice_of(comparison) == Choice(
        recipes=tuple(dict.fromkeys(t.recipe for t in comparison.trials)),
        prompts=comparison.workload.prompts,
        seeds=(0, 1), steps=20, size=(128, 128), dtype="float32", device="cpu", repeats=7,
        compile=True,
    )  # fmt: skip
    panel.take_away.recipe.value = "int4"
    panel.take_away.make_script(wait=True)
    assert panel.take_away.script.code == ql.diffusers_code(
        "int4", "demo", dtype="float32", prompt=comparison.workload.prompts[0], seed=0, steps=20,
        size=(128, 128),
    )  # fmt: skip
    panel.take_away.recipe.value = "int8"
    assert panel.take_away.script.code == ""
    panel.close()


def test_a_packed_run_holds_nothing_that_links_lead_to(saved, tmp_path):
    (tmp_path / "key").write_text("secret")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "id").write_text("secret")
    (saved / "notes.txt").symlink_to(tmp_path / "key")
    (saved / "images" / "more").symlink_to(tmp_path / "keys")
    with zipfile.ZipFile(zip_run(load_comparison(saved))) as archive:
        names = archive.namelist()
    assert "saved/run.json" in names
    assert not any("notes" in name or "more" in name or "id" in name.split("/") for name in names)


def test_resume_says_where_the_form_says_otherwise(saved):
    panel = explorer(run=saved)
    assert panel.resume_button.layout.display is None
    assert panel.resume_note.value == ""
    own = panel.comparison.workload
    panel.form.steps.value = str(own.steps + 1)
    assert f"steps {own.steps}, not {own.steps + 1}" in panel.resume_note.value
    panel.form.steps.value = str(own.steps)
    assert panel.resume_note.value == ""


def test_unknown_words_are_suggested_away(saved):
    panel = explorer("demo")
    panel.form.prompts.value = "a Dog on a dogma\na red sqare"
    hints = panel.form.hints
    assert "doesn&#x27;t know &#x27;dog&#x27;; nor dogma, sqare" in hints.said.value
    next(b for b in hints.buttons.children if b.description == "boat").click()
    assert panel.form.prompts.value == "a boat on a dogma\na red sqare"
    panel.form.prompts.value = "a red sqare"
    assert hints.buttons.children[0].description == "square"
    hints.buttons.children[0].click()
    assert hints.layout.display == "none"
