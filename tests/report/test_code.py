"""`diffusers_code` writes scripts that give quantolab's own weights and pictures."""

import json
import os
import warnings
from fnmatch import fnmatchcase

import pytest
import torch
from zygote import PLAIN, run_code

from quantolab.errors import ArgumentError
from quantolab.loading.component import load, load_component
from quantolab.loading.pipelines import load_pipeline
from quantolab.measure.held_bytes import inner_tensors
from quantolab.models.layers import linear_layers, match_layers
from quantolab.models.skeleton import build_skeleton, dtype_keyword
from quantolab.models.source import find_model
from quantolab.recipes import Recipe
from quantolab.report.code import diffusers_code, globs_for

QUANTIZED = ("float8", "int8", "int4", "int2")


@pytest.fixture(autouse=True)
def third_parties_may_warn():
    """Let Diffusers and transformers warn: their scripts are what is tested here."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


def parts(module):
    found = {}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        for inner, plain in inner_tensors(getattr(tensor, "data", tensor), name):
            raw = plain.detach().contiguous().reshape(-1).view(torch.uint8)
            found[inner] = (raw, plain.dtype, plain.shape)
    return found


def assert_same_weights(ours, theirs):
    ours, theirs = parts(ours), parts(theirs)
    assert ours.keys() == theirs.keys()
    for name, (raw, *rest) in ours.items():
        assert rest == list(theirs[name][1:]), name
        assert torch.equal(raw, theirs[name][0]), name


def run(code):
    """Run a script here, without its last steps that make pictures, and return its names."""
    names = {}
    compile(code, "script", "exec")  # all of it is Python
    exec(code.partition("pipe = ")[0], names)
    return names


@pytest.fixture
def extensions_kept():
    """Give Quanto's extensions back what a script has put there: other tests run after it."""
    from optimum.quanto.library.extensions.extension import _extensions

    import quantolab.backends.quanto  # noqa: F401

    before = {name: extension._lib for name, extension in _extensions.items()}
    yield
    for name, extension in _extensions.items():
        extension._lib = before[name]


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("weights", QUANTIZED)
def test_the_weights_are_the_same(pipeline_folder, extensions_kept, weights, dtype):
    recipe = Recipe(weights, skip=("proj_out", "transformer_blocks.0.attn"))
    names = run(diffusers_code(recipe, pipeline_folder, dtype=dtype, device="cpu"))
    ours = load(pipeline_folder, recipe, dtype=dtype, device="cpu")
    assert_same_weights(ours, names["transformer"])


@pytest.mark.parametrize(
    ("weights", "skip"),
    [("int8", "text_encoder_2.encoder.block.0"), ("int4", "text_encoder_2.*.wi"), ("int2", "*.o")],
)
def test_several_components(pipeline_folder, extensions_kept, weights, skip):
    recipe = Recipe(weights, skip, components=("transformer", "text_encoder_2"))
    code = diffusers_code(recipe, pipeline_folder, device="cpu")
    assert "from transformers import T5EncoderModel\n" in code
    names = run(code)
    for component in recipe.components:
        part = find_model(pipeline_folder).component(component)
        ours, _ = load_component(part, recipe, dtype="bfloat16", device="cpu", strict_skip=False)
        assert_same_weights(ours, names[component])


MIXED = "transformer=int8 text_encoder_2=int4 *.attn.*=float8 *.wi=int2 proj_out=none"


def test_words_by_component_and_layer(pipeline_folder, extensions_kept):
    names = run(diffusers_code(MIXED, pipeline_folder, device="cpu"))
    pipe = load_pipeline(pipeline_folder, MIXED, device="cpu")
    for component in ("transformer", "text_encoder_2"):
        ours = getattr(pipe, component)
        assert len(set(ours.quantize_report.words)) == 2
        assert_same_weights(ours, names[component])


SCRIPT_RECIPES = (
    Recipe("int4", skip=("x_embedder",)),
    Recipe("float8", components=("transformer", "text_encoder_2")),
    Recipe("none"),
)


@pytest.mark.parametrize(
    "recipe",
    [SCRIPT_RECIPES[0], *(pytest.param(r, marks=pytest.mark.sweep) for r in SCRIPT_RECIPES[1:])],
    ids=str,
)
def test_a_child_process_makes_the_same_picture(pipeline_folder, tmp_path, recipe):
    from diffusers import FluxPipeline
    from PIL import Image, ImageChops

    options = {"prompt": "a red dog", "steps": 2, "seed": 3, "size": (32, 32), "guidance": 2.5}
    code = diffusers_code(recipe, pipeline_folder, device="cpu", **options)
    assert "quantolab" not in code.replace("without quantolab", "")
    # No compiler is in reach.
    environment = {**os.environ, "PATH": "", "HF_HUB_OFFLINE": "1"}
    code += "\nimport sys\nassert 'quantolab' not in sys.modules\n"
    result = run_code(code, cwd=tmp_path, environment=environment, door=PLAIN)
    assert result.returncode == 0, result.stderr
    (picture,) = tmp_path.glob("*.png")

    loaded = {
        name: load(pipeline_folder, recipe, name, device="cpu")
        for name in recipe.components or ("transformer",)
    }
    pipe = FluxPipeline.from_pretrained(
        pipeline_folder, **{dtype_keyword("diffusers"): torch.bfloat16}, **loaded
    )
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(
        "a red dog",
        num_inference_steps=2,
        guidance_scale=2.5,
        width=32,
        height=32,
        generator=torch.Generator("cpu").manual_seed(3),
    ).images[0]
    found = Image.open(picture)
    assert found.size == (32, 32)
    # Threads may differ between the processes, and with them the last bit of a sum.
    assert max(high for _, high in ImageChops.difference(found, wanted).getextrema()) <= 1


def odd_pipeline(folder, **config):
    """Write a component whose layers plain Quanto can't compute, as a folder."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    values = {
        "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1,
        "attention_head_dim": 64, "num_attention_heads": 4, "joint_attention_dim": 20,
        "pooled_projection_dim": 64, "axes_dims_rope": [16, 24, 24],
    }  # fmt: skip
    FluxTransformer2DModel(**values | config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("weights", ("int8", "int4"))
def test_layers_that_plain_quanto_cannot_compute(tmp_path, extensions_kept, weights):
    folder = odd_pipeline(tmp_path)
    names = run(diffusers_code(weights, folder, device="cpu"))
    ours, theirs = load(folder, weights, device="cpu"), names["transformer"]
    assert ours.quantize_report.cures
    assert_same_weights(ours, theirs)
    inputs = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 4, 20),
        "pooled_projections": torch.randn(1, 64),
        "timestep": torch.tensor([0.5]),
    }
    inputs = {name: value.to(torch.bfloat16) for name, value in inputs.items()}
    inputs |= {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(4, 3)}
    assert torch.equal(ours(**inputs).sample, theirs(**inputs).sample)


def test_rows_of_zeros_are_stored_as_zeros(tmp_path):
    from diffusers import FluxTransformer2DModel

    folder = odd_pipeline(tmp_path)
    module = FluxTransformer2DModel.from_pretrained(folder)
    torch.nn.init.zeros_(module.proj_out.weight)
    module.save_pretrained(folder)
    names = run(diffusers_code("float8", folder, device="cpu"))
    assert_same_weights(load(folder, "float8", device="cpu"), names["transformer"])


def test_helping_lines_stand_only_where_they_are_needed(pipeline_folder):
    codes = {w: diffusers_code(w, pipeline_folder) for w in ("none", *QUANTIZED)}
    assert [w for w, code in codes.items() if "SimpleNamespace" in code] == ["int4", "int2"]
    assert [w for w, code in codes.items() if "a row of zeros" in code.casefold()] == ["float8"]
    assert [w for w, code in codes.items() if "quanto" not in code.partition("import")[2]] == [
        "none"
    ]
    for code in codes.values():
        assert "multiples of 16" not in code
        assert max(map(len, code.splitlines())) <= 100 or str(pipeline_folder) in code


def write_pipeline(folder, pipeline, config):
    """Write a pipeline that is configurations alone: scripts are made without weights."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    index = {"_class_name": pipeline, "transformer": ["diffusers", config["_class_name"]]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


SMALL = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 1}


@pytest.mark.parametrize(
    ("weights", "dtype", "device", "helped"),
    [
        ("int8", "bfloat16", "cpu", True),
        ("int4", "bfloat16", "auto", True),
        ("int4", "bfloat16", "cuda", False),
        ("int8", "float32", "cpu", False),
        ("float8", "bfloat16", "cpu", False),
    ],
)
def test_sana_needs_contiguous_inputs_on_a_cpu(tmp_path, weights, dtype, device, helped):
    config = {"_class_name": "SanaTransformer2DModel", **SMALL, "cross_attention_dim": 256}
    config |= {"num_cross_attention_heads": 4, "cross_attention_head_dim": 64}
    folder = write_pipeline(tmp_path / "sana", "SanaPipeline", config)
    code = diffusers_code(weights, folder, dtype=dtype, device=device)
    compile(code, "script", "exec")
    assert ("x[0].contiguous()" in code) == helped


def test_videos_and_what_stays_in_float32(tmp_path):
    config = {"_class_name": "WanTransformer3DModel", **SMALL, "ffn_dim": 512}
    code = diffusers_code("int2", write_pipeline(tmp_path / "wan", "WanPipeline", config))
    compile(code, "script", "exec")
    assert "from diffusers.utils import export_to_video\n" in code
    assert 'export_to_video(result.frames[0], "int2.mp4")' in code
    assert "condition_embedder.time_embedder.linear_1" in code


def test_one_component_alone_makes_no_picture(flux_folder, extensions_kept):
    code = diffusers_code("int4", flux_folder, device="cpu")
    assert "pipe" not in code.replace("pipeline", "") and "subfolder" not in code
    assert_same_weights(load(flux_folder, "int4", device="cpu"), run(code)["transformer"])


def test_the_whole_script(pipeline_folder):
    code = diffusers_code(
        Recipe("int8", skip=("proj_out", "norm_out.linear")),
        pipeline_folder,
        prompt='a "red" dog',
        steps=20,
        size=(64, 32),
    )
    assert (
        code
        == f'''\
# {pipeline_folder}, int8 norm_out.linear=none proj_out=none, without quantolab.
# Needs: pip install torch diffusers transformers accelerate optimum-quanto

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from optimum.quanto import freeze, quantize

model = "{pipeline_folder}"
dtype = torch.bfloat16
device = "cuda" if torch.cuda.is_available() else "cpu"

transformer = FluxTransformer2DModel.from_pretrained(model, subfolder="transformer", dtype=dtype)
transformer.to(device)
linear = [n for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear)]
keep = ["norm_out.linear", "proj_out", "*.proj_out"]
quantize(transformer, weights="qint8", include=linear, exclude=keep)
freeze(transformer)

pipe = FluxPipeline.from_pretrained(model, transformer=transformer, dtype=dtype).to(device)
noise = torch.Generator("cpu").manual_seed(0)  # the same on every device
result = pipe(
    prompt="a \\"red\\" dog",
    num_inference_steps=20,
    width=64,
    height=32,
    generator=noise,
)
result.images[0].save("int8-norm-out.linear-none-proj-out-none-b7bebf.png")
'''
    )


def test_unusable_arguments(pipeline_folder):
    for options, message in (
        ({"dtype": "float64"}, "compute dtype 'float64' is not known"),
        ({"device": "tpu"}, "device 'tpu' is not known"),
        ({"steps": 0}, "steps must be a whole number of 1 or more"),
        ({"seed": -1}, "seed must be a whole number of 0 or more"),
        ({"size": (33, 32)}, "did you mean"),
        ({"component": "vae"}, "allowed: text_encoder, text_encoder_2, transformer"),
    ):
        with pytest.raises(ArgumentError, match=message):
            diffusers_code("int8", pipeline_folder, **options)
    with pytest.raises(ArgumentError, match="did you mean 'proj_out'"):
        diffusers_code(Recipe("int8", skip="proj_ot"), pipeline_folder)


@pytest.mark.parametrize(
    ("patterns", "globs"),
    [
        (("proj_out",), ("proj_out", "*.proj_out")),
        (("transformer_blocks.0",), ("transformer_blocks.0.*",)),
        (("transformer_blocks.*.to_q",), ("transformer_blocks.*.to_q",)),
        (("*.attn",), ("*.attn.*",)),
        (("x_embedder", "proj_out"), ("x_embedder", "proj_out", "*.proj_out")),
        (("transformer.norm_out",), ("norm_out.*",)),
        ((), ()),
    ],
)
def test_globs_say_what_patterns_say(flux_folder, patterns, globs):
    layers = linear_layers(build_skeleton(find_model(flux_folder).component()))
    kept = set(match_layers(patterns, layers, "transformer"))
    paths = [layer.path for layer in layers]
    assert globs_for(kept, paths, patterns, "transformer") == globs
    assert {p for p in paths if any(fnmatchcase(p, g) for g in globs)} == kept


def test_globs_fall_back_to_paths():
    # "a" as a container; the glob "*.a" would also hit the leaf of another layer.
    paths = ["a.x", "a.y", "b.c"]
    assert globs_for(["a.x", "b.c"], paths, ["nothing"]) == ("a.x", "b.c")
    assert globs_for([], paths, []) == ()
