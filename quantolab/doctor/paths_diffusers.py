"""The documented paths through plain Diffusers: its calls as its manual writes them, no cures.

One function a phase; each phase runs in a process of its own. A phase returns a finding, or None
where the next phase goes on. What raises is a failure with its own message.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch

from ..backends import as_documented
from ..errors import UnsupportedError, with_kind
from ..models.skeleton import dtype_keyword
from ..units import format_percent
from ..weights import WALKED, weights_of
from .bench import Bench
from .judging import (
    FAILS,
    UNSUPPORTED,
    WORKS,
    Finding,
    difference,
    judge_compiled,
    judge_quantized,
    judge_same,
    judge_unread,
    weight_classes,
)

KEPT_LEAF = "proj_out"
KEPT_PATH = "transformer_blocks.0.attn.to_q"
_ADAPTER_SCALE = 4.0


def load(bench: Bench) -> Finding:
    """``from_pretrained(quantization_config=...)``."""
    model = _load(bench)
    bench.stage("running")
    return judge_quantized(
        model,
        bench.weights,
        bench.tiny.run_transformer(model),
        bench.tiny.reference("transformer"),
        paths=bench.tiny.linear_paths(),
    )


def skip_by_leaf(bench: Bench) -> Finding:
    """``modules_to_not_convert`` with the last part of a layer's path."""
    return _skip(bench, KEPT_LEAF)


def skip_by_path(bench: Bench) -> Finding:
    """``modules_to_not_convert`` with a layer's full path."""
    return _skip(bench, KEPT_PATH)


def single_file(bench: Bench) -> Finding:
    """``from_single_file(quantization_config=...)`` with Diffusers' own tensor names."""
    return _single_file(bench, bench.tiny.single_file)


def original_single_file(bench: Bench) -> Finding:
    """``from_single_file(quantization_config=...)`` with the names that FLUX's makers publish."""
    _let_converter_know_the_width()
    return _single_file(bench, bench.tiny.original_file)


def save(bench: Bench) -> None:
    """``save_pretrained`` of a quantized model."""
    model = _load(bench)
    _save_model(bench, model, bench.tiny.run_transformer)


def reload(bench: Bench) -> Finding:
    """``from_pretrained`` of that folder."""
    from diffusers import FluxTransformer2DModel

    with _without_deprecation():
        model = FluxTransformer2DModel.from_pretrained(
            bench.place / "saved", **{dtype_keyword("diffusers"): bench.tiny.dtype}
        )
    model = _placed(bench, model)
    bench.stage("running the reloaded model")
    return _judge_reloaded(bench, model, model, bench.tiny.run_transformer)


def save_pipeline(bench: Bench) -> None:
    """``save_pretrained`` of a pipeline around a quantized transformer."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(
        bench.tiny.pipeline,
        transformer=_load(bench),
        **{dtype_keyword("diffusers"): bench.tiny.dtype},
    )
    pipe = _placed(bench, pipe)
    bench.stage("running")
    bench.keep_output(bench.tiny.run_pipeline(pipe), weight_classes(pipe.transformer))
    bench.stage("saving")
    pipe.save_pretrained(bench.place / "saved")


def reload_pipeline(bench: Bench) -> Finding:
    """``FluxPipeline.from_pretrained`` of that folder."""
    from diffusers import FluxPipeline

    with _without_deprecation():
        pipe = FluxPipeline.from_pretrained(
            bench.place / "saved", **{dtype_keyword("diffusers"): bench.tiny.dtype}
        )
    pipe = _placed(bench, pipe)
    bench.stage("running the reloaded pipeline")
    return _judge_reloaded(bench, pipe, pipe.transformer, bench.tiny.run_pipeline)


def _judge_reloaded(bench: Bench, whole: Any, transformer: Any, run: Callable) -> Finding:
    saved, classes = bench.kept_output()
    return judge_same(
        run(whole),
        saved,
        classes,
        weight_classes(transformer),
        moved=lambda: run(whole.to(bench.tiny.device)),
    )


def save_encoder(bench: Bench) -> None:
    """``save_pretrained`` of a text encoder loaded with the configuration of transformers."""
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(
        bench.tiny.pipeline,
        subfolder="text_encoder_2",
        quantization_config=as_documented(bench.weights).config("transformers", bench.weights),
        dtype=bench.tiny.dtype,
    )
    _save_model(bench, _placed(bench, model), bench.tiny.run_encoder)


def reload_encoder(bench: Bench) -> Finding:
    """``from_pretrained`` of that folder."""
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(bench.place / "saved", dtype=bench.tiny.dtype)
    model = _placed(bench, model)
    bench.stage("running the reloaded model")
    saved, _ = bench.kept_output()
    return judge_unread(model, bench.tiny.run_encoder(model), saved)


def pipeline_config(bench: Bench) -> Finding:
    """``PipelineQuantizationConfig(quant_backend=...)`` for two components."""
    from diffusers import FluxPipeline, PipelineQuantizationConfig

    config = PipelineQuantizationConfig(
        quant_backend=weights_of(bench.weights).backend,
        quant_kwargs=as_documented(bench.weights).for_pipelines(bench.weights),
        components_to_quantize=["transformer", "text_encoder_2"],
    )
    with _without_deprecation():
        pipe = FluxPipeline.from_pretrained(
            bench.tiny.pipeline,
            quantization_config=config,
            **{dtype_keyword("diffusers"): bench.tiny.dtype},
        )
    pipe = _placed(bench, pipe)
    bench.stage("running")
    return judge_pipeline(bench, pipe)


def other_word(word: str) -> str:
    """Return another weights dtype, for what gets a word of its own."""
    words = WALKED[weights_of(word).backend]
    return words[words.index(word) - 1] if word in words else words[0]


def word_by_component(bench: Bench) -> Finding:
    """``PipelineQuantizationConfig(quant_mapping={...})``, another dtype for the text encoder."""
    from diffusers import FluxPipeline, PipelineQuantizationConfig

    documented, other = as_documented(bench.weights), other_word(bench.weights)
    with _without_deprecation():
        config = PipelineQuantizationConfig(
            quant_mapping={
                "transformer": documented.config("diffusers", bench.weights),
                "text_encoder_2": documented.config("transformers", other),
            }
        )
        pipe = FluxPipeline.from_pretrained(
            bench.tiny.pipeline,
            quantization_config=config,
            **{dtype_keyword("diffusers"): bench.tiny.dtype},
        )
    pipe = _placed(bench, pipe)
    bench.stage("running")
    return judge_pipeline(bench, pipe, other)


def word_by_layer(bench: Bench) -> Finding:
    """Give the attention's layers another word by a configuration; save and load again."""
    from diffusers import FluxTransformer2DModel

    paths, words = bench.tiny.linear_paths(), layer_words(bench)
    try:
        config = as_documented(bench.weights).by_layer(words)
    except UnsupportedError as error:
        return Finding(UNSUPPORTED, str(error))
    model = _from_pretrained(bench, config)
    bench.stage("running")
    output = bench.tiny.run_transformer(model)
    found = judge_quantized(model, words, output, bench.tiny.reference("transformer"), paths=paths)
    if found.outcome != WORKS:
        return found
    bench.stage("saving")
    model.save_pretrained(bench.place / "mixed")
    again = FluxTransformer2DModel.from_pretrained(
        bench.place / "mixed", **{dtype_keyword("diffusers"): bench.tiny.dtype}
    )
    same = judge_same(bench.tiny.run_transformer(_placed(bench, again)), output)
    return found if same.outcome == WORKS else same


def layer_words(bench: Bench) -> dict[str, str]:
    """Return the word of each layer where the attention's have another."""
    other = other_word(bench.weights)
    paths = bench.tiny.linear_paths()
    return {path: other if ".attn." in path else bench.weights for path in paths}


def judge_pipeline(bench: Bench, pipe: Any, encoder: str | None = None) -> Finding:
    """Judge a pipeline in which transformer and second text encoder should be quantized.

    Parameters
    ----------
    encoder : str, optional
        The dtype of the text encoder, where it is another.
    """
    lab, words = bench.tiny, {"text_encoder_2": encoder or bench.weights}
    lab.run_pipeline(pipe)  # that it runs; its picture is random weights' noise
    for name, run in (("text_encoder_2", lab.run_encoder), ("transformer", lab.run_transformer)):
        module = getattr(pipe, name)
        finding = judge_quantized(
            module,
            words.get(name, bench.weights),
            run(module),
            lab.reference(name),
            paths=lab.linear_paths(name),
        )
        if finding.outcome != "works":
            return Finding(finding.outcome, f"{name}: {finding.reason}")
    return finding


def save_quanto(bench: Bench) -> None:
    """Quantize and save with Quanto alone (`QuantizedDiffusersModel`): the row's starting point."""
    from ..backends.quanto.as_shipped import save_with_quanto

    model = save_with_quanto(unquantized(bench), bench.weights, bench.place / "saved")
    bench.stage("running")
    bench.keep_output(bench.tiny.run_transformer(model), weight_classes(model))


def load_quanto(bench: Bench) -> Finding:
    """``from_pretrained`` of the folder that Quanto saved."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(
        bench.place / "saved", **{dtype_keyword("diffusers"): bench.tiny.dtype}
    )
    model = _placed(bench, model)
    bench.stage("running")
    saved, _ = bench.kept_output()
    return judge_unread(model, bench.tiny.run_transformer(model), saved)


def lora(bench: Bench) -> Finding:
    """``load_lora_adapter``, ``fuse_lora``, ``unfuse_lora``, ``unload_lora``."""
    return judge_lora(bench, _load(bench))


def offload(bench: Bench) -> Finding:
    """Accelerate's offloading of a model and of each layer, and Diffusers' of groups."""
    return judge_offload(bench, lambda: _load(bench))


def copy_and_pickle(bench: Bench) -> Finding:
    """``copy.deepcopy(model)`` and ``pickle``."""
    return judge_copies(bench, _load(bench))


def judge_lora(bench: Bench, model: Any) -> Finding:
    """Judge a model by what an adapter does to it: loaded, fused, taken out, unloaded."""
    run = bench.tiny.run_transformer
    bench.stage("loading the adapter")
    adapter = _adapter(unquantized(bench))
    plain = run(model)
    model.load_lora_adapter(adapter, prefix=None)
    loaded = run(model)
    bench.stage("fusing")
    model.fuse_lora()
    fused = run(model)
    moved, apart = difference(loaded, plain), difference(fused, loaded)
    figures = f"the adapter moves the output by {format_percent(moved, 1, '')}"
    if not apart < moved / 2:
        far = format_percent(apart, 1, "")
        return Finding(
            "misleads", f"{figures}; fused, it is {far} away from that, and nothing is said"
        )
    bench.stage("taking it out")
    model.unfuse_lora()
    if not torch.equal(run(model), loaded):
        return Finding("misleads", f"{figures}; unfuse_lora gives back other weights")
    model.unload_lora()
    if not torch.equal(run(model), plain):
        return Finding("misleads", f"{figures}; unload_lora gives back other weights")
    near = format_percent(apart, 1, "")
    return Finding(
        "works", f"{figures}, fused within {near} of that; unfused and unloaded, as before"
    )


def judge_offload(bench: Bench, load: Callable[[], Any]) -> Finding:
    """Judge a model by its output with each kind of offloading, twice, which must stay."""
    import accelerate
    from diffusers.hooks import apply_group_offloading

    device, cpu, run = torch.device(bench.tiny.device), torch.device("cpu"), bench.tiny
    ways: dict[str, Callable[[Any], Any]] = {
        "model": lambda m: accelerate.cpu_offload_with_hook(m, device),
        "sequential": lambda m: accelerate.cpu_offload(m, device),
        "group": lambda m: apply_group_offloading(m, device, cpu, offload_type="leaf_level"),
    }
    wanted = run.run_transformer(load())
    for name, offload in ways.items():
        bench.stage(f"offloading ({name})")
        model = load()
        offload(model)
        for _ in range(2):
            finding = judge_same(run.run_transformer(model), wanted)
            if finding.outcome != "works":
                return Finding(finding.outcome, f"{name} offloading: {finding.reason}")
    return Finding("works", "model, sequential, group: the output stays, bit for bit")


def judge_copies(bench: Bench, model: Any) -> Finding:
    """Judge a model by its copies' outputs, which must be its own."""
    wanted = bench.tiny.run_transformer(model)
    ways = {
        "copying": copy.deepcopy,
        "pickling": lambda m: pickle.loads(pickle.dumps(m)),  # made here, by ourselves
    }
    for name, make in ways.items():
        bench.stage(name)
        try:
            made = make(model)
        except Exception as error:  # raised in C on the way, it seems to come from this file
            return Finding(FAILS, with_kind(error))
        finding = judge_same(bench.tiny.run_transformer(made), wanted)
        if finding.outcome != "works":
            return Finding(finding.outcome, f"{name}: {finding.reason}")
    return Finding("works", "deepcopy and pickle: the copies' outputs are equal, bit for bit")


def _adapter(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a random LoRA that moves a model's output well above rounding."""
    try:
        from peft import LoraConfig, get_peft_model_state_dict
    except ImportError:
        raise UnsupportedError("LoRA needs the package peft, which isn't installed") from None
    torch.manual_seed(3)
    targets = ["to_q", "to_v", "proj_mlp"]
    model.add_adapter(
        LoraConfig(r=8, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    )
    tensors = get_peft_model_state_dict(model)
    # Large enough for int2, which rounds what is fused most.
    return {name: tensor * _ADAPTER_SCALE for name, tensor in tensors.items()}


def compile_whole(bench: Bench) -> Finding:
    """``torch.compile(model, fullgraph=True)``."""
    return judge_compiled(compiled_whole(bench, _load(bench)), bench.reference_moved)


def compile_blocks(bench: Bench) -> Finding:
    """``model.compile_repeated_blocks(fullgraph=True)``."""
    return judge_compiled(compiled_blocks(bench, _load(bench)), bench.reference_moved)


def compiled_whole(bench: Bench, model: Any) -> float:
    """Return how far compiling a whole model moves its output, relative to eager."""
    return _moved(bench, model, lambda: torch.compile(model, fullgraph=True))


def compiled_blocks(bench: Bench, model: Any) -> float:
    """Return how far compiling the repeated blocks moves the output, relative to eager."""

    def compiled() -> Any:
        model.compile_repeated_blocks(fullgraph=True)
        return model

    return _moved(bench, model, compiled)


def unquantized(bench: Bench) -> Any:
    """Return the unquantized transformer, for what compiling alone does."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel.from_pretrained(
        bench.tiny.transformer, **{dtype_keyword("diffusers"): bench.tiny.dtype}
    )
    return _placed(bench, model)


Phase = Callable[[Bench], Finding | None]

PHASES: dict[str, tuple[Phase, ...]] = {
    "load": (load,),
    "skip by leaf": (skip_by_leaf,),
    "skip by path": (skip_by_path,),
    "single file": (single_file,),
    "original single file": (original_single_file,),
    "save and reload in a fresh process": (save, reload),
    "pipeline save and reload": (save_pipeline, reload_pipeline),
    "text encoder save and reload": (save_encoder, reload_encoder),
    "pipeline-level config": (pipeline_config,),
    "word by component": (word_by_component,),
    "word by layer": (word_by_layer,),
    "Quanto-direct checkpoint": (save_quanto, load_quanto),
    "LoRA (load, fuse, unload)": (lora,),
    "offload (model, sequential, group)": (offload,),
    "copy and pickle": (copy_and_pickle,),
    "compile full graph": (compile_whole,),
    "compile of repeated blocks": (compile_blocks,),
}


def _load(bench: Bench, skip: list[str] | None = None) -> Any:
    config = as_documented(bench.weights).config("diffusers", bench.weights, skip)
    return _from_pretrained(bench, config)


def _from_pretrained(bench: Bench, config: Any) -> Any:
    from diffusers import FluxTransformer2DModel

    with _without_deprecation():
        model = FluxTransformer2DModel.from_pretrained(
            bench.tiny.pipeline,
            subfolder="transformer",
            quantization_config=config,
            **{dtype_keyword("diffusers"): bench.tiny.dtype},
        )
    return _placed(bench, model)


def _placed(bench: Bench, model: Any) -> Any:
    """Move a model or pipeline to an accelerator; on a CPU nobody calls `to`."""
    return model if bench.tiny.device == "cpu" else model.to(bench.tiny.device)


def _skip(bench: Bench, pattern: str) -> Finding:
    model = _load(bench, [pattern])
    bench.stage("running")
    return judge_skipped(bench, model, pattern)


def judge_skipped(bench: Bench, model: Any, pattern: str) -> Finding:
    """Judge a model in which the layers that a leaf name or a path names should be kept."""
    paths = bench.tiny.linear_paths()
    keep = [path for path in paths if path == pattern or path.endswith(f".{pattern}")]
    output = bench.tiny.run_transformer(model)
    reference = bench.tiny.reference("transformer")
    return judge_quantized(model, bench.weights, output, reference, paths=paths, keep=keep)


def _single_file(bench: Bench, file: Any) -> Finding:
    from diffusers import FluxTransformer2DModel

    with _without_deprecation():
        model = FluxTransformer2DModel.from_single_file(
            str(file),
            config=str(bench.tiny.transformer),
            quantization_config=as_documented(bench.weights).config("diffusers", bench.weights),
            torch_dtype=bench.tiny.dtype,
        )
    model = _placed(bench, model)
    bench.stage("running")
    return judge_quantized(
        model,
        bench.weights,
        bench.tiny.run_transformer(model),
        bench.tiny.reference("transformer"),
        paths=bench.tiny.linear_paths(),
    )


def _let_converter_know_the_width() -> None:
    """Spare Diffusers a failure that only our tiny model has.

    Its converter of FLUX's original layout holds the published width, 3072, as a literal; ours is
    256. Without this the row would show that and not what owners of the real file meet.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    from ..models.converters import with_width
    from .tiny_pipeline import TRANSFORMER

    width = TRANSFORMER["num_attention_heads"] * TRANSFORMER["attention_head_dim"]
    entry = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    entry["checkpoint_mapping_fn"] = with_width(entry["checkpoint_mapping_fn"], width)


def _save_model(bench: Bench, model: Any, run: Callable[[Any], torch.Tensor]) -> None:
    bench.stage("running")
    bench.keep_output(run(model), weight_classes(model))
    bench.stage("saving")
    model.save_pretrained(bench.place / "saved")


def _moved(bench: Bench, model: Any, compiled: Callable[[], Any]) -> float:
    bench.stage("running")
    eager = bench.tiny.run_transformer(model)
    bench.stage("compiling")
    return difference(bench.tiny.run_transformer(compiled()), eager)


@contextmanager
def _without_deprecation():
    """Hush the notice that QuantoConfig will go: it isn't the cell's outcome."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
