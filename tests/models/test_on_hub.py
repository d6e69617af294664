"""From a hub on this machine: the bytes that are needed and no other, whatever lies beside them."""

import json
import shutil
from pathlib import Path

import pytest
from hub_needs import LAYOUTS, needed, sizes, unique
from local_hub import offline

from quantolab.errors import ArgumentError, BrokenModelError, ModelNotFoundError
from quantolab.models.source import find_model
from quantolab.run.asked import check_request
from quantolab.single_file.facts import single_file_facts


@pytest.fixture
def folders(layout_folders):
    return layout_folders


@pytest.fixture
def hub(layout_hub):
    return layout_hub


WAYS = {
    "plan": lambda model: find_model(model, weights=False),
    "load": lambda model: find_model(model, weights=(None,)),
    "compare": lambda model: check_request(model, size=(32, 32)).source,
}


@pytest.mark.parametrize("what", WAYS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_bytes_that_are_sent_are_those_that_are_needed(hub, folders, name, what):
    source = WAYS[what](f"owner/{name}")
    sent, wanted = hub.sent_of(f"owner/{name}"), sizes(folders[name], needed(name, what))
    # What lies under two names is fetched once: copies of a configuration, a second denoiser.
    assert set(sent) <= set(wanted)
    assert sum(sent.values()) == unique(folders[name], wanted)
    assert all((source.folder / path).is_file() for path in wanted)
    assert source.revision == hub.repos[f"owner/{name}"].commit
    hub.forget()
    WAYS[what](f"owner/{name}")
    assert not hub.sent and all(method == "GET" for method, *_ in hub.requests)
    assert len(hub.requests) == 1  # which commit it is now


@pytest.mark.parametrize("name", LAYOUTS)
def test_offline_with_a_full_cache_nothing_is_asked(hub, folders, name, monkeypatch):
    first = find_model(f"owner/{name}")
    offline(monkeypatch)
    hub.forget()
    assert find_model(f"owner/{name}") == first
    assert not hub.requests


def test_offline_with_a_part_of_it_says_what_is_missing(hub, monkeypatch):
    find_model("owner/sharded", weights=(None,))
    offline(monkeypatch)
    hub.forget()
    find_model("owner/sharded", weights=(None,))
    find_model("owner/sharded", weights=False)
    with pytest.raises(ModelNotFoundError) as caught:
        find_model("owner/sharded")
    for part in (
        "HF_HUB_OFFLINE",
        "vae/diffusion_pytorch_model.safetensors (",
        "text_encoder/model",
    ):
        assert part in str(caught.value)
    assert "transformer/diffusion" not in str(caught.value)
    assert not hub.requests


def test_a_cache_without_a_list_of_files_says_what_is_missing(hub, monkeypatch, tmp_path):
    """As other programs leave it."""
    from huggingface_hub import _tree_cache

    find_model("owner/variants", weights=(None,))
    shutil.rmtree(next((tmp_path / "cache").glob("models--*")) / "trees")
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    offline(monkeypatch)
    find_model("owner/variants", weights=(None,))
    with pytest.raises(ModelNotFoundError, match=r"missing: .*tokenizer"):
        find_model("owner/variants")


def test_variants_are_taken_or_refused(hub, folders):
    source = find_model("owner/variants", variant="fp16")
    assert source.variant == "fp16" and {c.variant for c in source.components} == {"fp16"}
    assert not [path for _, path in hub.sent if path.endswith("_model.safetensors")]
    for name in ("fp16-only", "sharded-fp16-only"):
        source = find_model(f"owner/{name}")
        assert source.variant == "fp16"
        assert all("variant 'fp16' alone" in c.note for c in source.components)
        assert find_model(f"owner/{name}", variant="fp16").components[0].note is None
    hub.forget()
    with pytest.raises(ArgumentError, match=r"no variant 'fp17'; there are: fp16"):
        find_model("owner/variants", variant="fp17")
    with pytest.raises(ArgumentError, match=r"no variant 'fp16'; it has plain files only"):
        find_model("owner/renamed", variant="fp16", weights=False)
    assert not any(path.endswith(".safetensors") for _, path in hub.sent)


def test_a_part_that_lacks_the_variant_is_taken_plain_and_said(hub, folders, tmp_path):
    shutil.copytree(folders["fp16-only"], tmp_path / "mixed")
    vae = "vae/diffusion_pytorch_model.safetensors"
    (tmp_path / "mixed" / vae.replace(".safe", ".fp16.safe")).unlink()
    shutil.copy(folders["variants"] / vae, tmp_path / "mixed" / vae)
    encoder = "text_encoder/model.safetensors"
    (tmp_path / "mixed" / encoder.replace(".safe", ".fp16.safe")).unlink()
    shutil.copy(folders["variants"] / encoder, tmp_path / "mixed" / encoder)
    hub.add("owner/mixed", tmp_path / "mixed")
    source = find_model("owner/mixed", variant="fp16")
    notes = {part.name: part.note for part in source.components}
    assert notes["transformer"] is None and "its plain weights are taken" in notes["text_encoder"]
    assert {vae, encoder} <= set(hub.sent_of("owner/mixed"))


def test_revisions(hub, folders):
    commit = hub.repos["owner/variants"].commit
    for name in ("owner/variants@v1", f"owner/variants@{commit}"):
        assert find_model(name, weights=False).revision == commit
    assert find_model("owner/variants", weights=False, revision="v1").model == "owner/variants@v1"
    with pytest.raises(
        ModelNotFoundError, match=r"no revision 'v11'; there are: main, v1; did you"
    ):
        find_model("owner/variants", revision="v11")
    with pytest.raises(ArgumentError, match=r"which is a folder here"):
        find_model(folders["variants"], revision="v1")


def test_a_branch_with_slashes(hub, monkeypatch):
    """As git allows; an address quotes them, people don't."""
    hub.repos["owner/variants"].tags = ("v1", "feature/x")
    hub.repos["owner/single-files"].tags = ("feature/x",)
    for name in ("owner/variants@feature/x", "owner/variants@feature%2Fx",
                 f"{hub.address}/owner/variants/tree/feature/x"):  # fmt: skip
        assert find_model(name, weights=False).pipeline == "FluxPipeline"
    assert find_model("owner/variants", weights=False, revision="feature/x").revision
    part = find_model("owner/variants@feature/x/transformer", weights=False)
    assert part.pipeline is None and part.denoiser == "transformer"
    file = "owner/single-files@feature/x/tiny.safetensors"
    facts = single_file_facts(file)
    assert facts.problem is None and facts.file_bytes
    with pytest.raises(
        ModelNotFoundError, match=r"no revision 'feature'.*did you mean 'feature/x'"
    ):
        find_model("owner/variants@feature", weights=False)
    with pytest.raises(ModelNotFoundError, match=r"has no folder 'y'"):
        find_model("owner/variants@feature/x/y", weights=False)
    offline(monkeypatch)
    hub.forget()
    assert find_model("owner/variants@feature/x", weights=False).pipeline and not hub.requests


FORMS = (
    "owner/variants",
    "owner/variants@v1",
    "{hub}/owner/variants",
    "{hub}/owner/variants/tree/v1",
    "https://huggingface.co/owner/variants/blob/main/model_index.json",
    "hf://owner/variants",
)


@pytest.mark.parametrize("form", FORMS)
def test_pasted_forms(hub, form):
    source = find_model(form.format(hub=hub.address), weights=False)
    assert source.pipeline == "FluxPipeline" and source.hub.repo == "owner/variants"


def test_a_folder_in_a_repository(hub):
    for name in (
        "owner/variants/transformer",
        f"{hub.address}/owner/variants/tree/main/transformer",
    ):
        source = find_model(name)
        assert source.pipeline is None and source.denoiser == "transformer"
    assert not any("text_encoder" in path for _, path in hub.sent)
    with pytest.raises(ModelNotFoundError, match=r"has no folder 'transfromer'.*'transformer'"):
        find_model("owner/variants/transfromer")
    with pytest.raises(ArgumentError, match=r"load_single_file reads one"):
        find_model("owner/single-files/tiny.safetensors")


def test_weights_that_cant_be_read_are_refused_before_any_is_fetched(hub, folders, tmp_path):
    folder = tmp_path / "pickles"
    shutil.copytree(folders["both-formats"], folder)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    hub.add("owner/pickles", folder)
    with pytest.raises(
        BrokenModelError, match=r"owner/pickles/vae holds no \.safetensors.*pickles"
    ):
        find_model("owner/pickles")
    assert not any(path.endswith((".safetensors", ".bin")) for _, path in hub.sent)


def test_a_gated_model_without_a_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelNotFoundError, match=r"is gated and no token was sent") as caught:
        find_model("owner/gated")
    for part in (f"{hub.address}/owner/gated", "hf auth login", "HF_TOKEN"):
        assert part in str(caught.value)


def test_near_names_from_the_cache(hub):
    find_model("owner/variants", weights=False)
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'owner/variants'"):
        find_model("owner/variant")


def test_a_single_file(hub, folders):
    from quantolab.single_file.reading import load_single_file

    forms = ["owner/single-files/tiny.safetensors",
             f"{hub.address}/owner/single-files/blob/main/tiny.safetensors"]  # fmt: skip
    size = (folders["single-files"] / "tiny.safetensors").stat().st_size
    facts = single_file_facts(forms[0])
    assert facts.file_bytes == size and facts.problem is None and not facts.path.exists()
    assert 0 < hub.sent["owner/single-files", "tiny.safetensors"] < size
    hub.forget()
    for form in forms:
        module = load_single_file(form, "int8", device="cpu")
        assert module.quantize_report.quantized
    sent = hub.sent_of("owner/single-files")
    assert sent == {"tiny.safetensors": size}  # its configuration was there: the facts needed it
    assert single_file_facts(forms[1]).path.is_file()
    with pytest.raises(ModelNotFoundError, match=r"has no file 'tinny.safetensors'; did you mean"):
        load_single_file("owner/single-files/tinny.safetensors")
    with pytest.raises(ArgumentError, match=r"is a repository or a folder"):
        load_single_file(f"{hub.address}/owner/single-files")
    with pytest.raises(ArgumentError, match=r"is a pickle"):
        load_single_file("owner/both-formats/vae/diffusion_pytorch_model.bin")


def test_errors_name_the_model_and_no_folder_of_the_cache(hub, tmp_path, folders):
    from quantolab.loading.component import load

    shutil.copytree(folders["variants"], tmp_path / "broken")
    config = tmp_path / "broken" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 1', '"num_layers": 2'))
    hub.add("owner/broken", tmp_path / "broken")
    with pytest.raises(BrokenModelError) as caught:
        load("owner/broken", "int8")
    assert "owner/broken/transformer" in str(caught.value)
    assert "snapshots" not in str(caught.value) and str(tmp_path) not in str(caught.value)


def test_local_folders_have_variants_too(folders):
    source = find_model(folders["fp16-only"])
    assert source.variant == "fp16" and "alone" in source.components[0].note
    assert find_model(folders["variants"]).variant is None
    assert find_model(folders["variants"], variant="fp16").variant == "fp16"
    with pytest.raises(ArgumentError, match=r"no variant 'bf16'; there are: fp16"):
        find_model(folders["variants"], variant="bf16")


def test_a_known_model_needs_nothing(hub):
    assert find_model("black-forest-labs/FLUX.1-dev", weights=False).pipeline == "FluxPipeline"
    assert not hub.requests
    assert isinstance(Path(find_model("FLUX.1-dev", weights=False).folder), Path)


def test_the_documented_call_in_the_notebook(hub, capsys):
    """Notebook 02's cell for a file of the Hub, with an address as a browser shows it."""
    import quantolab as ql
    from quantolab.units import format_bytes

    notebook = Path(__file__).parents[2] / "notebooks" / "02_single_file.ipynb"
    cells = json.loads(notebook.read_text())["cells"]
    (cell,) = (
        "".join(c["source"]) for c in cells if c["source"][:1] == ["if HUB_FILE is not None:\n"]
    )
    address = f"{hub.address}/owner/single-files/blob/main/tiny.safetensors"
    exec(cell, {"ql": ql, "format_bytes": format_bytes, "HUB_FILE": address})
    assert capsys.readouterr().out.startswith("float8 from the Hub: ")
