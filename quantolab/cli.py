"""The command line: arguments, one library call, print. No logic of its own.

Nothing heavy is imported until a command runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

from . import __version__
from .errors import ArgumentError, OutputError, QuantolabError, nearest
from .recipes import COMPUTE_DTYPES, Recipe, default_recipes
from .run import MOST_ROUNDS, REPEATS, RUNS
from .weights import REFERENCE, WORDS

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


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
    status = main()
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
        print(f"quantolab: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass  # the terminal was closed


def _print(text: str = "", end: str = "\n") -> None:
    """Print; who reads no further, as ``head``, is no reason to fail."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        _drop_output()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line and exits with status 2."""

    def error(self, message: str) -> None:
        words = message.removeprefix("unrecognized arguments: ").split()
        hint = ""
        if words != message.split():
            hint = nearest(words[0], _options(self))
        elif asked := re.search(r"COMMAND: invalid choice: '(.*?)' \(choose", message):
            raise ArgumentError(
                f"no command {asked[1]!r}; allowed: {', '.join(_commands(self))}"
                f"{nearest(asked[1], _commands(self))}"
            )
        elif message.endswith("required: COMMAND"):
            raise ArgumentError(f"a command is needed: {', '.join(_commands(self))} (see --help)")
        raise ArgumentError(f"{message}{hint} (see {self.prog} --help)")


def _commands(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of a parser's commands."""
    subparsers = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [name for action in subparsers for name in action.choices]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return all long options of a parser and its commands."""
    options = [o for a in parser._actions for o in a.option_strings if o.startswith("--")]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options += [o for p in action.choices.values() for o in _options(p)]
    return options


def _parser() -> _Parser:
    parser = _Parser(
        prog="quantolab",
        description="Compare Quanto weights of a diffusion model: bytes, seconds, pictures.",
    )
    parser.add_argument("--version", action="version", version=f"quantolab {__version__}")
    commands = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", dest="command", parser_class=_Parser
    )
    _add_compare(commands)
    _add_plan(commands)
    _add_runs(commands)
    _add_lab(commands)
    _add_doctor(commands)
    return parser


def _add_weights(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--weights",
        type=_listed,
        metavar="LIST",
        help=f"weights dtypes, comma-separated (default: {','.join(WORDS)}; with --recipe none)",
    )
    p.add_argument(
        "--recipe",
        action="append",
        type=_recipe,
        default=[],
        metavar="TEXT",
        help="a whole recipe: a word for all, then NAME=WORD of components or layer patterns, "
        "later ones win ('int4 *.attn.*=int8 proj_out=none', 'transformer=int8 "
        "text_encoder_2=int4'); may be repeated",
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
    p.add_argument("--revision", metavar="REV", help="branch, tag or commit of a Hub model")


def _add_compare(commands) -> None:
    p = commands.add_parser(
        "compare",
        help="quantize one model to several dtypes, time it, measure it, show its pictures",
        description="Quantize one model to several dtypes and compare bytes, seconds and "
        "pictures. Writes a table, an image grid and everything measured.",
    )
    p.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a folder in Diffusers layout, a model of the Hub (OWNER/NAME, OWNER/NAME@REVISION or "
        "its address), or 'demo' (the default; no network needed)",
    )
    _add_weights(p)
    p.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="Linear layers to keep as they are: leaf name, full path, container's path or glob; "
        "may be repeated",
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
        "--prompt", action="append", metavar="TEXT", help="text to picture; may be repeated"
    )
    p.add_argument("--steps", type=_whole, metavar="N", help="denoising steps")
    p.add_argument("--guidance", type=_number, metavar="G", help="guidance scale")
    p.add_argument("--size", type=_size, metavar="WxH", help="width and height in pixels")
    p.add_argument(
        "--seed",
        action="extend",
        type=_wholes,
        metavar="N",
        help="a seed, or several with commas; may be repeated (default: 0)",
    )
    p.add_argument(
        "--dtype",
        default="bfloat16",
        metavar="NAME",
        help=f"compute dtype: {', '.join(COMPUTE_DTYPES)} (default: bfloat16)",
    )
    p.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, mps or xpu")
    p.add_argument(
        "--compile",
        action="store_true",
        help="run each recipe once more with torch.compile, in rows of its own",
    )
    p.add_argument(
        "--repeats",
        type=_whole,
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
        type=_whole,
        default=MOST_ROUNDS,
        metavar="N",
        help=f"where --until-decided ends at the latest (default: {MOST_ROUNDS})",
    )
    p.add_argument(
        "--stall",
        type=_number,
        metavar="SECONDS",
        help="a trial without a sign of life (a step, work while it loads) for so long is ended, "
        "as a failed row (default: 1800)",
    )
    p.add_argument(
        "--out",
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
    from .run.journal import new_folder

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
            variant=arguments.variant,
            revision=arguments.revision,
            out=out,
            resume=arguments.resume,
            stall=arguments.stall,
        )
    except KeyboardInterrupt as interrupt:
        if not (Path(out) / "run.json").is_file():
            raise
        _complain(
            f"interrupted; what is done is in {out}, and the same command with --out {out} "
            "--resume finishes it"
        )
        return _status(interrupt)
    _show(comparison, out)
    return OK if all(trial.ok for trial in comparison.trials) else SOME_FAILED


def _show(comparison, out: str) -> None:
    from .report.nearer import nearer_sentences
    from .report.tables import results_table, text_table

    _print(text_table(results_table(comparison)))
    for sentence in nearer_sentences(comparison):
        _print(sentence)
    for note in comparison.notes:
        _print(f"note    {note}")
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
    p.add_argument("--vram", metavar="SIZE", help="say what fits into 16GB, 24GiB, ...")
    p.add_argument("--csv", metavar="FILE", help="write the table to FILE")
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
        variant=arguments.variant,
        revision=arguments.revision,
    )
    _print(plan_text(table), end="")
    if arguments.csv:
        _write_csv(table, arguments.csv)
    return OK


def _add_runs(commands) -> None:
    p = commands.add_parser(
        "runs",
        help="list the runs under a folder",
        description="List the runs under FOLDER, the latest first: model, recipes, when, and how "
        "they ended. Reads their records, writes nothing.",
    )
    p.add_argument(
        "folder",
        nargs="?",
        default=".",
        metavar="FOLDER",
        help="where to look, six folders deep (default: the current folder)",
    )
    p.add_argument("--csv", metavar="FILE", help="write the list, with all its columns, to FILE")
    p.set_defaults(run=_runs)


def _runs(arguments: argparse.Namespace) -> int:
    if arguments.csv:
        _check_writable(arguments.csv)
    from .report.listing import runs, runs_text

    table = runs(arguments.folder)
    _print(runs_text(table), end="")
    if arguments.csv:
        _write_csv(table, arguments.csv)
    return OK


def _add_lab(commands) -> None:
    from .tutorials import FOLDER

    p = commands.add_parser(
        "lab",
        help="copy the tutorials into a folder and open JupyterLab on them",
        description="Copy the tutorials into FOLDER and open JupyterLab there, for this machine "
        "alone. A tutorial that you changed is never overwritten: a newer version of it goes "
        "beside it.",
    )
    p.add_argument(
        "folder",
        nargs="?",
        default=FOLDER,
        metavar="FOLDER",
        help=f"where the tutorials go (default: {FOLDER})",
    )
    p.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    p.add_argument(
        "--port", type=_whole, metavar="N", help="that port or none (default: the next free one)"
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
        "through plain Diffusers and once through quantolab (some minutes).",
    )
    p.add_argument("--paths", action="store_true", help="run the path matrix")
    p.add_argument(
        "--csv", metavar="FILE", help="write the matrix (without --paths, the speeds) to FILE"
    )
    p.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor.checkup import check_up, speed_table, text_checkup

    if arguments.csv:
        _check_writable(arguments.csv)
    checkup = check_up()
    _print(text_checkup(checkup))
    table, ok = None, not checkup.broken
    if not arguments.paths:
        table = speed_table(checkup) if arguments.csv else None
    elif checkup.machine is not None:
        from .doctor.matrix import all_work, path_matrix
        from .doctor.tables import text_matrix

        table = path_matrix()
        _print(f"\n{text_matrix(table)}")
        ok = ok and all_work(table)
    if arguments.csv and table is not None:
        _write_csv(table, arguments.csv)
    return OK if ok else SOME_FAILED


def _check_writable(path: str) -> None:
    """Refuse a place that nothing can be written to, before minutes are spent."""
    try:
        usable = not Path(path).is_dir() and Path(path).absolute().parent.is_dir()
        Path(path).exists()  # raises where the name is too long
    except (OSError, ValueError):
        usable = False
    if not usable:
        raise ArgumentError(f"--csv {path!r} is no file in an existing folder")


def _write_csv(table, path: str) -> None:
    from .files.whole import write_whole

    text = table.to_csv(index=False)
    if Path(path).exists() and not Path(path).is_file():  # a device or a pipe is never replaced
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{path!r} can't be written: {error.strerror or error}") from error
    else:
        write_whole(Path(path), text)
    _print(f"table   {path}")


def _listed(text: str) -> tuple[str, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r} names no weights; allowed: {','.join(WORDS)}")
    return tuple(words)


def _recipe(text: str) -> Recipe:
    try:
        return Recipe.parse(text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, not {text!r}") from None


def _wholes(text: str) -> list[int]:
    return [_whole(word) for word in text.split(",")]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, not {text!r}") from None


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"WIDTHxHEIGHT such as 512x512 is needed, not {text!r}")
    return (int(width), int(height))
