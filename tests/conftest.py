"""Shared fixtures: tiny models made by the tests, offline libraries, one environment a session."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a network
os.environ.setdefault("MPLBACKEND", "agg")
# Tests import SDNQ themselves to see whether it is there: else it compiles then, for half a minute,
# and later each layer of another shape.
os.environ.setdefault("SDNQ_USE_TORCH_COMPILE", "0")
# What the processor is told to have, the compiler is believed to know: every process that compiles
# would build seven little libraries first to find out.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")

import gc
import json
import re
import signal
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

# What Jupyter's libraries check addresses in schemas by takes seconds to be imported, and may be
# missing; see also ``hook``, which is for processes that tests start.
sys.modules.setdefault("rfc3987_syntax", None)

HERE = Path(__file__).parent

# Folders and files that take long: more than ten seconds of a processor, measured, for they start
# processes, compile, train, open a browser or try many models; the longest first. `pytest -m quick`
# leaves them out, and workers begin with them, so that none is left to one worker at the end.
# Whatever isn't named here is quick, but for single tests that are marked `long`.
SLOW = (
    "notebooks",
    "browser",
    "doctor/test_matrix.py",
    "run/test_engine.py",
    "run/test_guards.py",
    "run/test_rounds.py",
    "run/test_workers.py",
    "run/test_borrowing.py",
    "run/test_lora.py",
    "run/test_videos.py",
    "run/test_encoding.py",
    "run/test_kills.py",
    "run/test_mutations.py",
    "experiments",
    "card",
    "planning/test_load_peaks.py",
    "processes",
    "backends/test_compiling.py",
    "saved",
    "backends/test_citizens.py",
    "demo/test_training.py",
    "demo/test_pipeline.py",
    "demo/test_reading.py",
    "hub/test_doors.py",
    "widgets/test_compiling.py",
    "widgets/test_exploring.py",
    "widgets/test_large_runs.py",
    "run/test_pipelines.py",
    "report/test_code.py",
    "test_cli.py",
    "test_selection.py",
    "test_doors.py",
    "test_typed_lines.py",
    "test_earlier_versions.py",
    "test_docs.py",
    "doctor/test_children.py",
    "backends/test_others.py",
    "backends/test_architectures.py",
    "planning/test_needs.py",
    "planning/test_plan.py",
    "report/test_planned.py",
    "loading",
    "models/test_on_hub.py",
    "report/test_figures.py",
    "report/test_files.py",
    "planning/test_skips.py",
    "single_file",
    "models/test_known.py",
)

# Quick, but that workers begin with the longest here too.
LONGEST_OF_THE_QUICK = (
    "widgets/test_skipping.py",
    "test_house.py",
    "widgets/test_strangers.py",
    "models",
    "report",
)


@cache
def rank(path: Path) -> int:
    """Return the place of a test's file in `SLOW`, or one from that after the last on."""
    inside = path.relative_to(HERE)
    names = (*SLOW, *LONGEST_OF_THE_QUICK)
    return next((i for i, name in enumerate(names) if inside.is_relative_to(name)), len(names))


# Markers of tests that take many minutes: they run where an expression names them, as `-m kills` or
# `-m "sweep or not sweep"` do, and nowhere else.
HEAVY = ("kills", "mutations", "sweep")


def left_out(expression: str) -> set[str]:
    """Return the heavy markers that an expression for ``-m`` doesn't name."""
    return {*HEAVY} - {*re.findall(r"\w+", expression)}


def pytest_ignore_collect(collection_path, config):
    """Leave out of the quick lane what isn't in it before it is even imported."""
    if config.option.markexpr == "quick" and rank(collection_path) < len(SLOW):
        return True
    return None


def pytest_configure(config):
    """Tell workers how many they are, and begin what all servers fork off; see ``zygote``."""
    if hasattr(config, "workerinput"):
        return
    # Tests start dozens of processes, each of which would compile all of quantolab anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Whoever starts this with `&` has all below it ignore Ctrl-C, which tests send.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.numprocesses:
        # Workers of pytest-xdist share the machine: one thread for each and for what each starts,
        # by both names, as the distributed engine has it, and no helpers of the compiler, each of
        # which imports torch first.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
            os.environ.setdefault(name, "1")
    quick = config.option.markexpr == "quick"
    if quick or config.option.collectonly or sys.platform != "linux":
        return
    import zygote

    paths = (str(HERE / "hook"), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    config.add_cleanup(zygote.start(Path(tempfile.mkdtemp(prefix="zygote"))))

    if config.option.numprocesses:
        zygote.fork_workers()
    else:  # this process tests, and started before the hook could be there
        from quantolab.processes import children

        zygote.insert(children)


def pytest_xdist_make_scheduler(config, log):
    """Give a file's tests to one worker, and all that need the browser: it is started once."""
    if config.option.dist != "loadfile":  # somebody asked for another way
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tests/browser" if file.startswith("tests/browser/") else file

    return Scheduling(config, log)


@pytest.fixture
def real_servers(monkeypatch):
    """Have servers of jobs started in earnest, for tests of their start and their family."""
    monkeypatch.delenv("QUANTOLAB_TESTS_ZYGOTE", raising=False)


def pytest_collection(session):
    """Collect no garbage while all is imported: there is none, and it takes a quarter more."""
    config = session.config
    if hasattr(config, "workerinput") or not config.option.numprocesses:  # who collects tests
        gc.disable()


def pytest_collection_finish():
    """Collect garbage again, but never look through what is imported, which stays."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config, items):
    """Mark what is quick, put what takes long first, leave out the heavy that nobody asked for."""
    names = left_out(config.option.markexpr)
    heavy = [i for i in items if any(mark.name in names for mark in i.iter_markers())]
    if heavy:
        items[:] = [item for item in items if item not in {*heavy}]
        config.hook.pytest_deselected(items=heavy)
    items.sort(key=lambda item: rank(item.path))
    for item in items:
        if rank(item.path) >= len(SLOW) and not item.get_closest_marker("long"):
            item.add_marker("quick")


FLUX = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 64,
    "num_attention_heads": 4,  # inner width 256: int4 and int2 use their group size of 128
    "joint_attention_dim": 64,
    "pooled_projection_dim": 64,
    "axes_dims_rope": [16, 24, 24],
    "guidance_embeds": False,
}


@pytest.fixture(autouse=True)
def _seeded():
    import sys

    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory):
    """A tiny random FLUX transformer on disk, in float32."""
    import torch
    from diffusers import FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    FluxTransformer2DModel(**FLUX).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A tiny random FluxPipeline on disk that makes 32x32 pictures of noise."""
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        PreTrainedTokenizerFast,
        T5Config,
        T5EncoderModel,
    )

    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    words = ["<pad>", "</s>", "<unk>", "a", "cat", "dog", "red", "blue", "on", "photo", "of"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=16,
    )
    clip = CLIPTextConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=32,
        max_position_embeddings=77,
        bos_token_id=3,
        eos_token_id=1,
        pad_token_id=0,
    )
    t5 = T5Config(
        d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2, vocab_size=32, dropout_rate=0
    )
    FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_tiny_vae((16,)),
        text_encoder=CLIPTextModel(clip).eval(),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(t5).eval(),
        tokenizer_2=tokenizer,
        transformer=FluxTransformer2DModel(**FLUX).eval(),
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shallow_pipeline(pipeline_folder, tmp_path_factory):
    """The tiny pipeline with one block in its denoiser, for tests that compile one.

    It was made for the smallest picture that it can make: none is half as wide, for which the
    block would be compiled once more.
    """
    import shutil

    import torch
    from diffusers import FluxTransformer2DModel

    folder = tmp_path_factory.mktemp("shallow") / "pipeline"
    shutil.copytree(pipeline_folder, folder)
    torch.manual_seed(0)
    shallow = FluxTransformer2DModel(**{**FLUX, "num_single_layers": 0})
    shallow.save_pretrained(folder / "transformer")
    _tiny_vae((4,) * 5).save_pretrained(folder / "vae")
    return folder


def _tiny_vae(channels):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )


@pytest.fixture(scope="session")
def layout_folders(pipeline_folder, tmp_path_factory):
    """Ten repositories of the tiny pipeline, as people publish them: folders by layout."""
    from hub_server import layouts

    return layouts(pipeline_folder, tmp_path_factory.mktemp("layouts"))


@pytest.fixture
def layout_hub(monkeypatch, tmp_path, layout_folders):
    """A hub on this machine with all of them, as ``owner/LAYOUT``; a token is set."""
    from hub_server import TOKEN
    from local_hub import local_hub

    with local_hub(monkeypatch, tmp_path / "cache") as server:
        for name, folder in layout_folders.items():
            server.add(f"owner/{name}", folder, gated=name == "gated")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def pytest_generate_tests(metafunc):
    """Run tests that take `architecture` once for each of `architectures.ARCHITECTURES`."""
    if "architecture" in metafunc.fixturenames:
        from architectures import ARCHITECTURES

        metafunc.parametrize(
            "architecture", ARCHITECTURES.values(), ids=ARCHITECTURES, scope="session"
        )


@pytest.fixture(scope="session")
def architecture_folder(architecture, tmp_path_factory):
    """The folder of a saved component of this architecture, in float32."""
    folder = tmp_path_factory.mktemp(architecture.name)
    architecture.make().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def architectures():
    """All of them by name, for tests of one."""
    from architectures import ARCHITECTURES

    return ARCHITECTURES


# As black-forest-labs/FLUX.1-dev publishes it.
FLUX_DEV = {
    "_class_name": "FluxTransformer2DModel",
    "_diffusers_version": "0.30.0.dev0",
    "attention_head_dim": 128,
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}


def write_json(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def flux_dev(tmp_path_factory):
    """A folder with the configuration of FLUX.1-dev's transformer and no weights."""
    folder = tmp_path_factory.mktemp("flux-dev")
    write_json(folder / "config.json", FLUX_DEV)
    return folder


@pytest.fixture
def write_pipeline(tmp_path):
    """Return a function that writes a pipeline's JSON files and returns the folder."""

    def write(pipeline, configs, folder="model"):
        index = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
        for name, config in configs.items():
            library = "transformers" if name.startswith("text") else "diffusers"
            index[name] = [library, config.get("_class_name", "Anything")]
            write_json(tmp_path / folder / name / "config.json", config)
        write_json(tmp_path / folder / "model_index.json", index)
        return tmp_path / folder

    return write
