"""The command line: arguments, one library call, print. No logic of its own.

Nothing heavy is imported until a command runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from pathlib import Path

from . import __version__
from .command_line import (
    INTERRUPTED,
    OK,
    SOME_FAILED,
    UNUSABLE,
    Parser,
    listed,
    number,
    place,
    prompts,
    recipe,
    size,
    whole,
    wholes,
    with_words,
)
from .errors import ArgumentError, OutputError, QuantolabError, UnsupportedError, one_of
from .recipes import COMPUTE_DTYPES, Recipe, default_recipes
from .run import MOST_ROUNDS, REPEATS, RUNS
from .run.ways import OFFLOADS
from .text_tables import printable
from .weights import EXPORT, FORMS, REFERENCE, WORDS


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status (see ``interface`` in the README).

    0: every trial ok; 1: some trial failed or is unsupported; 2: unusable arguments, with one
    line that says so; 130: interrupted.
    """
    try:
        _check_text(sys.argv[1:] if argv is None else argv)
        arguments = _parser().parse_args(argv)
        return arguments.run(arguments)
    except QuantolabError as error:
        _complain(str(error))
        return UNUSABLE
    except KeyboardInterrupt as interrupt:
        _complain("interrupted")
        return _status(interrupt)


def _check_text(arguments: list[str]) -> None:
    """Refuse arguments that no file or terminal could show again."""
    for text in arguments:
        if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
            raise ArgumentError(f"argument {text!a} isn't text in UTF-8")


def run_and_exit() -> None:
    """Run `main` and leave the process: what ``python -m quantolab`` and the script do.

    SIGTERM and SIGHUP end it as Ctrl-C does, with the same last word.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, _Ended.come)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed by who called
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows no such sign
    try:
        status = main()
    except SystemExit as ended:  # of --help and --version
        status = ended.code
    _flush()
    sys.exit(status)


class _Ended(KeyboardInterrupt):
    """A signal that asks the process to end, which it does as at Ctrl-C."""

    last = -math.inf
    """When the last one came. A closed terminal sends several, and the first is cleaned up for."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @classmethod
    def come(cls, number: int, frame: object) -> None:
        """Handle the signal."""
        before, cls.last = cls.last, time.monotonic()
        if cls.last - before > _ONE_END_SECONDS:
            raise cls(number)


_ONE_END_SECONDS = 5.0


def _status(interrupt: KeyboardInterrupt) -> int:
    return 128 + interrupt.number if isinstance(interrupt, _Ended) else INTERRUPTED


def _complain(text: str) -> None:
    try:
        print(f"quantolab: {printable(text, but='')}", file=sys.stderr, flush=True)
    except OSError:
        pass  # the terminal was closed


def _print(text: str = "", end: str = "\n") -> None:
    """Print; who reads no further, as ``head``, is no reason to fail.

    Raises
    ------
    OutputError
        If the system doesn't take it: what is printed to a file on a full disk would be lost.
    """
    try:
        print(printable(text), end=end, flush=True)
    except BrokenPipeError:
        _drop_output()
    except OSError as error:
        _drop_output()
        raise OutputError(f"the output can't be written: {error.strerror or error}") from error


def _flush() -> None:
    try:
        if sys.stdout is not None:  # closed by who called
            sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> Parser:
    parser = Parser(
        prog="quantolab",
        description="Compare Quanto weights of a diffusion model: bytes, seconds, pictures.",
        examples=(
            "quantolab compare           # the demo model: no network, no GPU",
            "quantolab plan FLUX.1-dev --vram 24GB",
            "quantolab compare --help    # each command tells its own options",
        ),
        statuses={OK: "done, and well", SOME_FAILED: "done, but something failed or is broken"},
    )
    parser.add_argument("--version", action="version", version=f"quantolab {__version__}")
    commands = parser.add_commands()
    _add_compare(commands)
    _add_plan(commands)
    _add_runs(commands)
    _add_convert(commands)
    _add_lab(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return parser


def _add_weights(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--weights",
        action="extend",
        type=listed,
        metavar="LIST",
        help="weights words, comma-separated; may be repeated "
        f"(default: {','.join(WORDS)}; with --recipe: none); those of other backends carry their "
        "name: sdnq:uint4-g128, torchao:int8",
    )
    p.add_argument(
        "--recipe",
        action="append",
        type=recipe,
        default=[],
        metavar="TEXT",
        help="a whole recipe: a word for all, then NAME=WORD of components or layer patterns, "
        "later ones win ('int4 *.attn.*=int8 proj_out=none', 'transformer=int8 "
        "text_encoder_2=int4'); may be repeated (default: those of --weights)",
    )


def _recipes(
    arguments: argparse.Namespace, skip: list[str] | None = None, components: tuple[str, ...] = ()
) -> tuple[Recipe, ...]:
    """Return the recipes that are asked for: those of words, then those of texts."""
    words = arguments.weights
    if words is None:
        words = (REFERENCE,) if arguments.recipe else WORDS
    plain = default_recipes(words, skip or (), components)
    if skip and all(word == REFERENCE for word in words):
        raise ArgumentError(
            "--skip is given, but --weights names nothing to quantize (a --recipe says itself "
            "what it skips)"
        )
    return tuple(dict.fromkeys((*plain, *arguments.recipe)))


def _add_files(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--variant",
        metavar="NAME",
        help="variant of the weights files, such as fp16 (default: the plain files, or the only "
        "variant that is there)",
    )
    p.add_argument(
        "--revision",
        metavar="REV",
        help="branch, tag or commit of a Hub model (default: its main branch)",
    )


def _add_compare(commands) -> None:
    p = commands.add_parser(
        "compare",
        help="quantize one model to several dtypes, time it, measure it, show its pictures",
        description="Quantize one model to several dtypes and compare bytes, seconds and "
        "pictures. Writes a table, an image grid and everything measured.",
        examples=(
            "quantolab compare",
            'quantolab compare my-pipeline/ --weights none,int8 --prompt "a red fox" --out fox',
            'quantolab compare my-pipeline/ --weights none,int8,int4 --prompt "a red fox" \\',
            "    --out fox --resume",
        ),
        statuses={
            OK: "every trial is ok",
            SOME_FAILED: "some trial failed or is unsupported; everything else is written",
        },
    )
    p.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder in Diffusers layout, a model of the Hub (OWNER/NAME, OWNER/NAME@REVISION or "
        "its address), or 'demo' (default: demo; no network needed)",
    )
    _add_weights(p)
    p.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="Linear layers to keep as they are: leaf name, full path, container's path or glob; "
        "may be repeated (default: none)",
    )
    p.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME",
        help="part of the pipeline to quantize; may be repeated (default: the denoiser)",
    )
    _add_files(p)
    p.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="text to picture; may be repeated (default: four of the demo's own; of other models, "
        "one of a fox)",
    )
    p.add_argument(
        "--prompts",
        action="extend",
        dest="prompt",
        type=prompts,
        metavar="FILE",
        help="a file with a prompt a line, in UTF-8, - for the standard input; together with "
        "--prompt, and may be repeated (default: none)",
    )
    p.add_argument(
        "--steps",
        type=whole,
        metavar="N",
        help="denoising steps (default: 20 for the demo, else 28)",
    )
    p.add_argument(
        "--guidance",
        type=number,
        metavar="G",
        help="guidance scale (default: the pipeline's own)",
    )
    p.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="width and height in pixels (default: what the model was made for)",
    )
    p.add_argument(
        "--frames",
        type=whole,
        metavar="N",
        help="frames of each video, for models that make videos (default: none, for pictures)",
    )
    p.add_argument(
        "--seed",
        action="extend",
        type=wholes,
        metavar="N",
        help="a seed, or several with commas; may be repeated (default: 0)",
    )
    p.add_argument(
        "--dtype",
        default="bfloat16",
        metavar="NAME",
        help=f"compute dtype: {', '.join(COMPUTE_DTYPES)} (default: bfloat16)",
    )
    p.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda, mps or xpu (default: auto, the accelerator where there is one)",
    )
    p.add_argument(
        "--compile",
        action="store_true",
        help="run each recipe once more with torch.compile, in rows of its own",
    )
    p.add_argument(
        "--offload",
        metavar="WAY",
        help="how recipes get onto an accelerator: none (all at once), model, group or sequential "
        "(default: the mildest that fits, by the plan)",
    )
    p.add_argument(
        "--reference",
        type=place,
        metavar="FOLDER",
        help="judge pictures against the unquantized ones of another run of the same model, "
        "prompts, seeds, steps, size and guidance, made on whatever machine (default: its own)",
    )
    p.add_argument(
        "--lora",
        type=place,
        metavar="FILE[=WEIGHT]",
        help="a LoRA that every recipe's pipeline carries, the unquantized one's too, with the "
        "scale of what it adds: style.safetensors=0.8; needs quantolab[lora] (default: none; "
        "scale 1)",
    )
    p.add_argument(
        "--repeats",
        type=whole,
        default=REPEATS,
        metavar="N",
        help="rounds in which recipes are timed, one generation each, in an order drawn anew "
        f"(default: {REPEATS}; below 6 no interval and no verdict)",
    )
    p.add_argument(
        "--until-decided",
        action="store_true",
        help="go on with rounds until the verdict on every recipe's speed stands",
    )
    p.add_argument(
        "--most-rounds",
        type=whole,
        default=MOST_ROUNDS,
        metavar="N",
        help=f"where --until-decided ends at the latest (default: {MOST_ROUNDS})",
    )
    p.add_argument(
        "--stall",
        type=number,
        metavar="SECONDS",
        help="a trial without a sign of life (a step, work while it loads) for so long is ended, "
        "as a failed row (default: 1800)",
    )
    p.add_argument(
        "--workers",
        metavar="N|ADDRESS",
        help="have several make the pictures at once: so many workers on this machine, or those of "
        "a dask scheduler (tls://HOST:PORT); needs quantolab[workers] (default: one place)",
    )
    p.add_argument(
        "--trust-workers",
        action="store_true",
        help="use a tcp:// address of another machine, which neither encrypts nor authenticates",
    )
    p.add_argument(
        "--out",
        type=place,
        metavar="FOLDER",
        help=f"where results go (default: a new folder under {RUNS}/)",
    )
    p.add_argument(
        "--resume",
        action="store_true",
        help="finish the run that FOLDER holds, or add other recipes to it",
    )
    p.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from .experiments.comparing import compare
    from .run.journal import WORK, new_folder, withdraw

    out = arguments.out
    if out is None:
        if arguments.resume:
            raise ArgumentError("--resume needs --out FOLDER, the run to finish")
        out = str(new_folder(arguments.model))
    recipes = _recipes(arguments, arguments.skip, arguments.component)
    try:
        comparison = compare(
            arguments.model,
            recipes,
            arguments.prompt,
            seeds=arguments.seed or (0,),
            steps=arguments.steps,
            guidance=arguments.guidance,
            size=arguments.size,
            dtype=arguments.dtype,
            device=arguments.device,
            repeats=arguments.repeats,
            until_decided=arguments.until_decided,
            most_rounds=arguments.most_rounds,
            compile=arguments.compile,
            offload=arguments.offload,
            reference=arguments.reference,
            variant=arguments.variant,
            revision=arguments.revision,
            out=out,
            resume=arguments.resume,
            stall=arguments.stall,
            workers=arguments.workers,
            trust_workers=arguments.trust_workers,
            lora=arguments.lora,
            frames=arguments.frames,
        )
    except KeyboardInterrupt as interrupt:
        if not (Path(out).expanduser() / "run.json").is_file():
            if arguments.out is None:  # nobody would look for what is empty
                withdraw((Path(out, WORK), Path(out), Path(out).parent))
            raise
        _complain(
            f"interrupted; what is done is in {out}, and the same command with --out {out} "
            "--resume finishes it"
        )
        return _status(interrupt)
    _show(comparison, out)
    return OK if all(trial.ok for trial in comparison.trials) else SOME_FAILED


def _show(comparison, out: str) -> None:
    from .report.choosing import choose
    from .report.nearer import nearer_sentences
    from .report.tables import results_table, text_table

    _print(text_table(results_table(comparison)))
    for sentence in nearer_sentences(comparison):
        _print(sentence)
    for note in comparison.notes:
        _print(f"note    {note}")
    _print(f"advice  {choose(comparison)}")
    _print()
    _print(f"table   {Path(out) / 'results.csv'} (also .parquet and .md)")
    _print(f"grid    {Path(out) / 'grid.png'}")
    _print(f"plot    {Path(out) / 'tradeoff.png'}")
    _print(f"all     {Path(out) / 'run.json'}, {Path(out) / 'images'}{os.sep}")


def _add_plan(commands) -> None:
    p = commands.add_parser(
        "plan",
        help="say what a model would take in each dtype, before it is downloaded",
        description="Say how many bytes each component of a model takes in each weights dtype, "
        "and what fits. Reads configuration files only; those of well-known models are built in.",
        examples=(
            "quantolab plan FLUX.1-dev --vram 24GB",
            "quantolab plan my-pipeline/ --weights int8,int4 --csv plan.csv",
        ),
        statuses={OK: "the table is printed"},
    )
    p.add_argument(
        "model",
        metavar="MODEL",
        help="a folder in Diffusers layout, a model of the Hub (OWNER/NAME, OWNER/NAME@REVISION or "
        "its address), 'demo', or a name such as FLUX.1-dev",
    )
    _add_weights(p)
    p.add_argument(
        "--component",
        action="append",
        default=[],
        metavar="NAME",
        help="part of the pipeline to quantize; may be repeated (default: every part by itself, "
        "and in the sums the denoiser)",
    )
    _add_files(p)
    p.add_argument(
        "--size",
        type=size,
        metavar="WxH",
        help="width and height of pictures in pixels (default: what the model was made for)",
    )
    p.add_argument(
        "--frames",
        type=whole,
        metavar="N",
        help="frames of videos, for models that make them (default: the pipeline's own number)",
    )
    p.add_argument(
        "--vram", metavar="SIZE", help="say what fits a card of 16GB, 24GB, ... (default: nothing)"
    )
    p.add_argument(
        "--csv", type=place, metavar="FILE", help="write the table to FILE (default: print it only)"
    )
    p.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    if arguments.csv:
        _check_writable(arguments.csv)
    from .planning.plan import plan
    from .report.planned import plan_text

    components = arguments.component or None
    recipes = _recipes(arguments)
    table = plan(
        arguments.model,
        recipes,
        components=components,
        vram=arguments.vram,
        size=arguments.size,
        frames=arguments.frames,
        variant=arguments.variant,
        revision=arguments.revision,
    )
    _print(plan_text(table), end="")
    if arguments.csv:
        _write_csv(table, arguments.csv)
    return OK


def _add_convert(commands) -> None:
    p = commands.add_parser(
        "convert",
        help="write a saved model in another backend's form, nothing quantized again",
        description="Write a model that was saved quantized in another backend's form: the same "
        "values and scales, checked by reading them back. gguf is an export for other programs: "
        "what its blocks can't say is quantized anew, and told.",
        examples=(
            "quantolab convert demo-int8 demo-int8-sdnq --to sdnq",
            "quantolab convert demo-int4 demo-int4.gguf --to gguf",
        ),
        statuses={OK: "it is converted, and stands for the same weights (gguf: as it says)"},
    )
    p.add_argument("saved", type=place, metavar="SAVED", help="the folder of the saved model")
    p.add_argument("out", type=place, metavar="OUT", help="the folder to write, or for gguf a file")
    p.add_argument(
        "--to",
        required=True,
        choices=(*FORMS, EXPORT),
        help="the backend whose form it gets (default: none, it must be said)",
    )
    p.add_argument(
        "--type",
        metavar="TYPE",
        help="of gguf: Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0 (default: what says the most of each layer)",
    )
    p.add_argument(
        "--names",
        metavar="WHOSE",
        default="auto",
        help="of tensors in a gguf file: original (the makers'), diffusers, or auto, the makers' "
        "where plain Diffusers reads them (default: auto)",
    )
    p.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from .saved.changing import convert

    report = convert(
        arguments.saved,
        arguments.out,
        to=arguments.to,
        gguf_type=arguments.type,
        names=arguments.names,
    )
    _print(str(report))
    return OK


def _add_runs(commands) -> None:
    p = commands.add_parser(
        "runs",
        help="list the runs under a folder",
        description="List the runs under FOLDER, the latest first: model, recipes, when, and how "
        "they ended. Reads their records, writes nothing. Or put some of them side by side.",
        examples=(
            "quantolab runs",
            "quantolab runs quantolab-runs --csv runs.csv",
            "quantolab runs --beside fox --beside fox-2 --grid both.png",
        ),
        statuses={OK: "the list is printed, empty or not"},
    )
    p.add_argument(
        "folder",
        nargs="?",
        default=".",
        type=place,
        metavar="FOLDER",
        help="where to look, six folders deep (default: the current folder)",
    )
    p.add_argument(
        "--csv",
        type=place,
        metavar="FILE",
        help="write the list, or the table of --beside, with all its columns, to FILE (default: "
        "print it only)",
    )
    p.add_argument(
        "--beside",
        action="append",
        type=place,
        metavar="RUN",
        help="folder of a run to put beside the others named so: one table, and what differs in "
        "how they were made; twice or more (default: list the runs)",
    )
    p.add_argument(
        "--grid",
        type=place,
        metavar="FILE",
        help="with --beside, write all pictures as one PNG file (default: none)",
    )
    p.set_defaults(run=_runs)


def _runs(arguments: argparse.Namespace) -> int:
    for option in ("csv", "grid"):
        if getattr(arguments, option):
            _check_writable(getattr(arguments, option), option)
    if arguments.grid and not arguments.beside:
        raise ArgumentError("--grid shows runs that are named with --beside")
    if arguments.beside:
        return _beside(arguments)
    from .report.listing import runs, runs_text

    table = runs(arguments.folder)
    _print(runs_text(table), end="")
    if arguments.csv:
        _write_csv(table, arguments.csv)
    return OK


def _beside(arguments: argparse.Namespace) -> int:
    from .files.whole import write_whole
    from .report.beside import side_by_side
    from .report.lettering import png

    side = side_by_side(arguments.beside)
    _print(str(side))
    if arguments.csv:
        _write_csv(side.table, arguments.csv)
    if arguments.grid:
        write_whole(Path(arguments.grid), png(side.grid(page=1)))
        _print(f"grid    {arguments.grid}")
    return OK


def _add_lab(commands) -> None:
    from .tutorials import FOLDER

    p = commands.add_parser(
        "lab",
        help="copy the tutorials into a folder and open JupyterLab on them",
        description="Copy the tutorials into FOLDER and open JupyterLab there, for this machine "
        "alone. A tutorial that you changed is never overwritten: a newer version of it goes "
        "beside it.",
        examples=("quantolab lab", "quantolab lab my-notebooks --no-browser --port 8899"),
        statuses={OK: "JupyterLab has ended (otherwise its own status)"},
    )
    p.add_argument(
        "folder",
        nargs="?",
        default=FOLDER,
        type=place,
        metavar="FOLDER",
        help=f"where the tutorials go (default: {FOLDER})",
    )
    p.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    p.add_argument(
        "--port", type=whole, metavar="N", help="that port or none (default: the next free one)"
    )
    p.set_defaults(run=_lab)


def _lab(arguments: argparse.Namespace) -> int:
    from .tutorials import copy_notebooks, jupyter_command, serve

    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        raise ArgumentError(f"--port must be a whole number from 1 to 65535, not {arguments.port}")
    copied = copy_notebooks(arguments.folder)
    for what, names in (
        ("copied", copied.new),
        ("brought up to date", copied.updated),
        ("changed by you, kept as it is", copied.kept),
        ("newer version", copied.beside),
    ):
        for name in names:
            _print(f"{what}: {copied.folder / name}")
    command = jupyter_command(
        copied.folder,
        browser=not arguments.no_browser,
        port=arguments.port,
        first=next(iter(copied.notebooks), None),
    )
    return serve(command)


def _add_doctor(commands) -> None:
    p = commands.add_parser(
        "doctor",
        help="say what this machine can do, and which documented paths work on it",
        description="Say what this machine can do: versions, devices, compilers, and how fast "
        "each weights dtype is. With --paths, run every documented path on a tiny model, once "
        "through plain Diffusers and once through quantolab (some minutes). With --card, compare "
        "what an accelerator does with what the plan says of it (some minutes): the table names "
        "neither this machine nor who uses it, and is made to be sent to others.",
        examples=(
            "quantolab doctor",
            "quantolab doctor --paths --csv paths.csv",
            "quantolab doctor --paths --via sdnq,torchao",
            "quantolab doctor --card --csv card.csv",
        ),
        statuses={OK: "nothing is broken", SOME_FAILED: "something is; the text says what"},
    )
    p.add_argument("--paths", action="store_true", help="run the path matrix")
    p.add_argument(
        "--via",
        metavar="LIST",
        help="with --paths, the backends whose words to run: quanto, sdnq, torchao, separated by "
        "commas (default: quanto)",
    )
    p.add_argument(
        "--csv",
        type=place,
        metavar="FILE",
        help="write the matrix, the card's table or else the speeds to FILE (default: print it "
        "only)",
    )
    p.add_argument(
        "--card",
        action="store_true",
        help="run the demo model on the accelerator in every weights dtype and way of offloading: "
        "what fits, peaks predicted and measured, kernels, seconds",
    )
    p.add_argument(
        "--device",
        metavar="NAME",
        help="with --card, which one: cuda, xpu, cuda:1, ... (default: the one there is)",
    )
    p.add_argument(
        "--weights",
        action="extend",
        type=listed,
        metavar="LIST",
        help="with --card, weights words, comma-separated; may be repeated "
        f"(default: {','.join(WORDS)})",
    )
    p.add_argument(
        "--offload",
        action="extend",
        type=listed,
        metavar="LIST",
        help="with --card, ways onto the card, comma-separated; may be repeated (default: "
        f"{','.join(OFFLOADS)})",
    )
    p.add_argument(
        "--full-size",
        action="store_true",
        help="with --card, steps of FLUX.1-dev's denoiser too, with random weights; it takes 24 GB "
        "of the card unquantized",
    )
    p.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor.checkup import check_up, speed_table, text_checkup

    if arguments.csv:
        _check_writable(arguments.csv)
    _check_card_options(arguments)
    if arguments.card:
        return _card(arguments)
    words = _walked_words(arguments.via, arguments.paths)
    checkup = check_up()
    _print(text_checkup(checkup))
    table, ok = None, not checkup.broken
    if not arguments.paths:
        _print("Which documented paths work: quantolab doctor --paths")
        table = speed_table(checkup) if arguments.csv else None
    elif checkup.machine is not None:
        from .doctor.matrix import all_work, path_matrix
        from .doctor.tables import text_matrix

        table = path_matrix(weights=words)
        _print(f"\n{text_matrix(table)}")
        ok = ok and all_work(table)
    if arguments.csv and table is not None:
        _write_csv(table, arguments.csv)
    return OK if ok else SOME_FAILED


def _check_card_options(arguments: argparse.Namespace) -> None:
    if arguments.card:
        if arguments.paths or arguments.via is not None:
            raise ArgumentError("--card and --paths are two examinations; ask for one at a time")
        return
    for option in ("device", "weights", "offload", "full_size"):
        if getattr(arguments, option):
            raise ArgumentError(f"--{option.replace('_', '-')} says how --card examines, so it "
                                "needs --card")  # fmt: skip


def _card(arguments: argparse.Namespace) -> int:
    from .doctor.card import broken_promises, card_table, text_card

    table = card_table(
        arguments.weights or WORDS,
        arguments.offload or OFFLOADS,
        device=arguments.device or "auto",
        full_size=arguments.full_size,
    )
    _print(text_card(table))
    if arguments.csv:
        _write_csv(table, arguments.csv)
    return SOME_FAILED if broken_promises(table) else OK


def _walked_words(via: str | None, paths: bool) -> tuple[str, ...]:
    """Return the words of the backends whose documented paths are to be run."""
    from .backends import check_backend
    from .weights import HOME, WALKED

    if via is not None and not paths:
        raise ArgumentError("--via names whose paths to run, so it needs --paths")
    backends = [name.strip() for name in (HOME if via is None else via).split(",")]
    for backend in backends:
        check_backend(one_of("--via", backend, tuple(WALKED)))
    return tuple(dict.fromkeys(word for backend in backends for word in WALKED[backend]))


def _check_writable(path: str, option: str = "csv") -> None:
    """Refuse a place that nothing can be written to, before minutes are spent."""
    try:
        usable = not Path(path).is_dir() and Path(path).absolute().parent.is_dir()
        Path(path).exists()  # raises where the name is too long
    except (OSError, ValueError):
        usable = False
    if not usable:
        raise ArgumentError(f"--{option} {path!r} is no file in an existing folder")


def _write_csv(table, path: str) -> None:
    from .files.whole import write_whole

    text = table.to_csv(index=False)
    if Path(path).exists() and not Path(path).is_file():  # a device or a pipe is never replaced
        try:
            _pour(text, path)
        except OSError as error:
            raise OutputError(f"{path!r} can't be written: {error.strerror or error}") from error
    else:
        write_whole(Path(path), text)
    _print(f"table   {path}")


def _pour(text: str, path: str) -> None:
    """Write to a device or a pipe; one that nobody reads is an error, not waited for."""
    handle = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.set_blocking(handle, True)
        file.write(text)


def _add_completion(commands) -> None:
    p = commands.add_parser(
        "completion",
        help="print what lets a shell complete commands, options and values",
        description="Print the script by which a shell completes quantolab's commands, options, "
        "values and files with the Tab key. Bash reads it from the file "
        "~/.local/share/bash-completion/completions/quantolab, zsh from a file _quantolab in a "
        "folder of its fpath. It is that of this version: make it anew after an update.",
        examples=("quantolab completion bash", "quantolab completion zsh"),
        statuses={OK: "it is printed"},
    )
    p.add_argument("shell", metavar="SHELL", help="bash, zsh, fish, tcsh or powershell")
    p.set_defaults(run=_completion)


def _completion(arguments: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        raise UnsupportedError(
            "completion needs shtab, which isn't installed: pip install shtab"
        ) from None
    # What a shell offers; all that is allowed is more.
    words = {
        "model": ("demo",),
        "weights": WORDS,
        "dtype": COMPUTE_DTYPES,
        "device": ("auto", "cpu", "cuda", "mps", "xpu"),
        "offload": OFFLOADS,
        "shell": shtab.SUPPORTED_SHELLS,
    }
    shell = one_of("shell", arguments.shell, shtab.SUPPORTED_SHELLS)
    parser = with_words(_parser(), words, {place: shtab.FILE, prompts: shtab.FILE})
    _print(shtab.complete(parser, shell))
    return OK
