"""The same paths through quantolab; phases as in `paths_diffusers`."""

from __future__ import annotations

from typing import Any

import torch

from ..loading.component import load as load_component
from ..loading.pipelines import load_pipeline
from ..recipes import Recipe
from ..saved.converting import from_quanto
from ..saved.doors import load_saved
from ..saved.doors import save as save_anything
from ..single_file.reading import load_single_file
from . import paths_diffusers
from .bench import Bench
from .judging import WORKS, Finding, judge_compiled, judge_quantized, judge_same, weight_classes


def load(bench: Bench) -> Finding:
    """``ql.load``."""
    return _judge(bench, _load(bench))


def skip_by_leaf(bench: Bench) -> Finding:
    """``ql.load`` with a leaf name to skip."""
    return _skip(bench, paths_diffusers.KEPT_LEAF)


def skip_by_path(bench: Bench) -> Finding:
    """``ql.load`` with a full path to skip."""
    return _skip(bench, paths_diffusers.KEPT_PATH)


def single_file(bench: Bench) -> Finding:
    """``ql.load_single_file`` with Diffusers' own tensor names."""
    return _judge(bench, _load_file(bench, bench.tiny.single_file))


def original_single_file(bench: Bench) -> Finding:
    """``ql.load_single_file`` with the names that FLUX's makers publish."""
    return _judge(bench, _load_file(bench, bench.tiny.original_file))


def save(bench: Bench) -> None:
    """``ql.save`` of a quantized model."""
    _save(bench, _load(bench), bench.tiny.run_transformer)


def reload(bench: Bench) -> Finding:
    """``ql.load_saved`` of that folder."""
    return _reload(bench, bench.tiny.run_transformer)


def save_pipeline(bench: Bench) -> None:
    """``ql.save`` of a pipeline around a quantized transformer."""
    pipe = load_pipeline(bench.tiny.pipeline, bench.weights, **_conditions(bench))
    bench.stage("running")
    bench.keep_output(bench.tiny.run_pipeline(pipe), weight_classes(pipe.transformer))
    bench.stage("saving")
    save_anything(pipe, bench.place / "saved")


def reload_pipeline(bench: Bench) -> Finding:
    """``ql.load_saved`` of that folder."""
    pipe = load_saved(bench.place / "saved", device=bench.tiny.device)
    bench.stage("running the reloaded pipeline")
    saved, classes = bench.kept_output()
    picture = bench.tiny.run_pipeline(pipe)
    return judge_same(picture, saved, classes, weight_classes(pipe.transformer))


def save_encoder(bench: Bench) -> None:
    """``ql.save`` of a quantized text encoder."""
    model = load_component(
        bench.tiny.pipeline, bench.weights, "text_encoder_2", **_conditions(bench)
    )
    _save(bench, model, bench.tiny.run_encoder)


def reload_encoder(bench: Bench) -> Finding:
    """``ql.load_saved`` of that folder."""
    return _reload(bench, bench.tiny.run_encoder)


def pipeline_config(bench: Bench) -> Finding:
    """``ql.load_pipeline`` with a recipe for two components."""
    recipe = Recipe(bench.weights, components=("transformer", "text_encoder_2"))
    pipe = load_pipeline(bench.tiny.pipeline, recipe, **_conditions(bench))
    bench.stage("running")
    return paths_diffusers.judge_pipeline(bench, pipe)


def word_by_component(bench: Bench) -> Finding:
    """``ql.load_pipeline`` with a recipe that has a word for each of two components."""
    other = paths_diffusers.other_word(bench.weights)
    recipe = Recipe({"transformer": bench.weights, "text_encoder_2": other})
    pipe = load_pipeline(bench.tiny.pipeline, recipe, **_conditions(bench))
    bench.stage("running")
    return paths_diffusers.judge_pipeline(bench, pipe, other)


def word_by_layer(bench: Bench) -> Finding:
    """``ql.load`` with another word for the attention's layers, saved and loaded again."""
    other, paths = paths_diffusers.other_word(bench.weights), bench.tiny.linear_paths()
    words = paths_diffusers.layer_words(bench)
    recipe = Recipe(bench.weights, layers={"*.attn": other})
    model = load_component(bench.tiny.pipeline, recipe, **_conditions(bench))
    bench.stage("running")
    output = bench.tiny.run_transformer(model)
    found = judge_quantized(model, words, output, bench.tiny.reference("transformer"), paths=paths)
    if found.outcome != WORKS:
        return found
    bench.stage("saving")
    model = load_saved(save_anything(model, bench.place / "mixed"), device=bench.tiny.device)
    same = judge_same(bench.tiny.run_transformer(model), output)
    return found if same.outcome == WORKS else same


def load_quanto(bench: Bench) -> Finding:
    """``ql.from_quanto`` of the folder that Quanto saved, then ``ql.load_saved``."""
    bench.stage("converting")
    folder = from_quanto(bench.place / "saved", bench.place / "converted")
    bench.stage("loading")
    model = load_saved(folder, device=bench.tiny.device)
    bench.stage("running")
    saved, classes = bench.kept_output()
    return judge_same(bench.tiny.run_transformer(model), saved, classes, weight_classes(model))


def lora(bench: Bench) -> Finding:
    """``fuse_lora`` and the rest on a model of ``ql.load``."""
    return paths_diffusers.judge_lora(bench, _load(bench))


def offload(bench: Bench) -> Finding:
    """Accelerate's and Diffusers' offloading of models of ``ql.load``."""
    return paths_diffusers.judge_offload(bench, lambda: _load(bench))


def copy_and_pickle(bench: Bench) -> Finding:
    """``copy.deepcopy`` and ``pickle`` of a model of ``ql.load``."""
    return paths_diffusers.judge_copies(bench, _load(bench))


def compile_whole(bench: Bench) -> Finding:
    """``torch.compile(model, fullgraph=True)`` of a quantized model."""
    return judge_compiled(
        paths_diffusers.compiled_whole(bench, _load(bench)), bench.reference_moved
    )


def compile_blocks(bench: Bench) -> Finding:
    """``model.compile_repeated_blocks(fullgraph=True)`` of a quantized model."""
    return judge_compiled(
        paths_diffusers.compiled_blocks(bench, _load(bench)), bench.reference_moved
    )


PHASES: dict[str, tuple[paths_diffusers.Phase, ...]] = {
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
    "Quanto-direct checkpoint": (paths_diffusers.save_quanto, load_quanto),
    "LoRA (load, fuse, unload)": (lora,),
    "offload (model, sequential, group)": (offload,),
    "copy and pickle": (copy_and_pickle,),
    "compile full graph": (compile_whole,),
    "compile of repeated blocks": (compile_blocks,),
}


def _conditions(bench: Bench) -> dict[str, str]:
    return {"dtype": bench.tiny.dtype_word, "device": bench.tiny.device}


def _load(bench: Bench, skip: tuple[str, ...] = ()) -> torch.nn.Module:
    recipe = Recipe(bench.weights, skip)
    return load_component(bench.tiny.pipeline, recipe, **_conditions(bench))


def _load_file(bench: Bench, file: Any) -> torch.nn.Module:
    config = bench.tiny.transformer
    return load_single_file(file, bench.weights, config=config, **_conditions(bench))


def _skip(bench: Bench, pattern: str) -> Finding:
    model = _load(bench, (pattern,))
    bench.stage("running")
    return paths_diffusers.judge_skipped(bench, model, pattern)


def _judge(bench: Bench, model: torch.nn.Module) -> Finding:
    bench.stage("running")
    return judge_quantized(
        model,
        bench.weights,
        bench.tiny.run_transformer(model),
        bench.tiny.reference("transformer"),
        paths=bench.tiny.linear_paths(),
    )


def _save(bench: Bench, model: torch.nn.Module, run: Any) -> None:
    bench.stage("running")
    bench.keep_output(run(model), weight_classes(model))
    bench.stage("saving")
    save_anything(model, bench.place / "saved")


def _reload(bench: Bench, run: Any) -> Finding:
    model = load_saved(bench.place / "saved", device=bench.tiny.device)
    bench.stage("running the reloaded model")
    saved, classes = bench.kept_output()
    return judge_same(run(model), saved, classes, weight_classes(model))
