"""`compare`, the main job: run recipes side by side, and leave a table and a grid."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..arguments import Seconds, public
from ..errors import ArgumentError, whole_number
from ..hub.watching import watching
from ..processes.children import STALL_SECONDS
from ..recipes import Recipe
from ..report.shown import Comparison
from ..run import MOST_ROUNDS, REPEATS
from ..run.asked import MOST, check_request
from ..run.crew import check_workers
from ..run.doubts import doubts
from ..run.engine import run_comparison
from ..run.journal import begun
from ..run.session import Progress, Watch
from ..telling import say_line
from .opening import watched

if TYPE_CHECKING:
    from distributed import Client


@public
def compare(
    model: str | os.PathLike | None = None,
    recipes: Iterable[Recipe | str] | Recipe | str | None = None,
    prompts: Iterable[str] | str | None = None,
    *,
    seeds: Iterable[int] | int = (0,),
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    dtype: str = "bfloat16",
    device: str = "auto",
    repeats: int = REPEATS,
    until_decided: bool = False,
    most_rounds: int = MOST_ROUNDS,
    compile: bool = False,
    offload: str | None = None,
    reference: str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    resume: bool = False,
    watch: Watch | None = None,
    cancel: threading.Event | None = None,
    stall: Seconds | None = None,
    stall_seconds: Seconds = STALL_SECONDS,
    variant: str | None = None,
    revision: str | None = None,
    workers: int | str | Client | None = None,
    trust_workers: bool = False,
    lora: str | os.PathLike | tuple[str | os.PathLike, float] | None = None,
    frames: int | None = None,
) -> Comparison:
    """Quantize one model by several recipes and measure bytes, seconds and pictures of each.

    Each recipe runs in a process of its own: one that crashes, hangs or runs out of memory
    becomes a ``failed`` row, and the others go on.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (the default), a folder in Diffusers layout, or a Hub id.
    recipes : iterable of Recipe or str, optional
        Recipes or weights words; by default the unquantized reference and all four dtypes.
    prompts : iterable of str, optional
        Texts to picture; the demo model brings its own.
    seeds : iterable of int
        Every prompt is pictured with every seed.
    steps : int, optional
        Denoising steps; 20 for the demo model, else 28.
    guidance : float, optional
        Guidance scale; by default the pipeline's own.
    size : (int, int), optional
        Width and height in pixels; by default what the model was made for.
    dtype : str
        Compute dtype: ``"bfloat16"``, ``"float16"`` or ``"float32"``.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"`` or ``"xpu"``.
    repeats : int
        Rounds in which recipes are timed, after every picture has been made once: one generation
        each, in an order drawn anew. Below six there is no interval, and no verdict on speed.
    until_decided : bool
        Whether to go on with rounds until the verdict on every recipe stands.
    most_rounds : int
        Where that ends at the latest.
    compile : bool
        Whether to run each recipe a second time with a compiled denoiser, in rows of its own.
    offload : str, optional
        How recipes get onto an accelerator: ``"none"`` (all at once), ``"model"``, ``"group"`` or
        ``"sequential"``. By default as the plan says that each fits, the mildest way that does,
        and the next one where memory runs out. Pictures of an offloaded recipe count; its seconds
        have no verdict.
    reference : path, optional
        Folder of another run of the same model, prompts, seeds, steps, size and guidance, on
        whatever machine, with whatever recipes: its unquantized pictures (and nothing else of it)
        are what all pictures are judged against. A copy of them is kept in `out`.
    variant : str, optional
        Variant of the weights files, such as ``"fp16"``; by default the plain files, or where
        there are none the only variant.
    revision : str, optional
        Branch, tag or commit of a Hub model.
    out : path, optional
        Folder for tables, figures, pictures and ``run.json``; nothing is kept without it.
    resume : bool
        Whether to go on with what `out` holds: what is missing or failed is done, other recipes
        are added, and nothing that has ended leaves the run.
    watch : callable, optional
        Called with a `quantolab.run.session.Progress` at each event; by default a progress bar.
    cancel : threading.Event, optional
        Set it from anywhere to end the run; finished trials stay in `out`.
    stall : float, optional
        Seconds after which a trial that shows no sign of life is ended, as a ``failed`` row; by
        default half an hour. Signs are each denoising step, and while it loads, compiles or
        encodes prompts, that it uses the processor or reads files.
    stall_seconds : float
        The same, under its older name.

    workers : int, str or distributed.Client, optional
        Who makes the pictures, several recipes at once: so many workers on this machine, the
        address of a dask scheduler that runs already (``"tls://host:port"``), or a client of one.
        Needs the extra ``quantolab[workers]``. Rows and pictures are those of one place. Timing
        rounds stay exclusive, all of them where the reference is; where that can't be had there
        is no verdict.
    trust_workers : bool
        Whether a ``tcp://`` address of another machine may be used: it is neither encrypted nor
        authenticated, and exchanges code.
    lora : str, path or (path, float), optional
        A LoRA that the pipeline of every recipe carries, the reference's too: a safetensors file
        whose name ends so, ``"style.safetensors"``, or with the scale of what it adds,
        ``"style.safetensors=0.8"``. Loaded by Diffusers over the quantized weights, never fused
        into them; its bytes count as weights in memory. Needs the extra ``quantolab[lora]``.
    frames : int, optional
        How many frames each video has, where the model makes videos: then it must be given. A
        video is one picture of the comparison, with all its frames on one sheet. Its PSNR is that
        of the mean squared error over all of them, its SSIM and FLIP their mean.

    Returns
    -------
    Comparison
        Trials in the order of the recipes, and their pictures.

    Raises
    ------
    ArgumentError, ModelNotFoundError, BrokenModelError, OutputError
        If the request can't be run; nothing is written then.

    Examples
    --------
    >>> comparison = compare("demo", ["none", "int8", "int4"], repeats=3)
    >>> results_table(comparison)[["recipe", "weight_bytes", "psnr_db"]]
    """
    stall_seconds = _stall_seconds(stall_seconds if stall is None else stall)
    most_rounds = whole_number("most_rounds", most_rounds, most=MOST)
    if resume and out is None:
        raise ArgumentError("resume needs the folder (out) of the run to finish")
    asked_workers = check_workers(workers, trust_workers)
    with nullcontext() if out is None else begun(out, resume=resume):
        with watching(cancel=cancel):
            request = check_request(
                model,
                recipes,
                prompts,
                seeds=seeds,
                steps=steps,
                guidance=guidance,
                size=size,
                dtype=dtype,
                device=device,
                repeats=repeats,
                variant=variant,
                revision=revision,
                compile=compile,
                offload=offload,
                reference=reference,
                lora=lora,
                frames=frames,
            )
        # A run that is gone on with was asked for before; who watches tells of doubts itself.
        said = () if watch is not None or resume else doubts(request)
        with watched(watch) as watch:
            comparison = run_comparison(
                request,
                out=out,
                resume=resume,
                watch=_saying(said, watch),
                cancel=cancel,
                stall_seconds=stall_seconds,
                meanwhile=_import_ahead,
                most_rounds=most_rounds if until_decided else None,
                workers=asked_workers,
            )
    if out is not None:
        from ..report.files import write_report

        write_report(comparison, out)
    return comparison


def _saying(lines: Iterable[str], watch: Watch) -> Watch:
    """Return a watch that says some lines when the run begins: one that is refused has its own."""
    left = list(lines)

    def heard(progress: Progress) -> None:
        while left:
            say_line(left.pop(0))
        watch(progress)

    return heard


def _stall_seconds(asked: float) -> float:
    if isinstance(asked, (int, float)) and not isinstance(asked, bool) and asked > 0:
        return float(asked)
    raise ArgumentError(f"stall must be a number of seconds above 0, not {asked!r}")


def _import_ahead() -> None:
    """Import what judges pictures and makes the report, while a child imports torch beside it."""
    from PIL import Image

    from ..measure.quality import picture_quality
    from ..report import figures  # noqa: F401

    # scikit-image imports most of what it needs at its first call.
    picture_quality(Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "white"))
