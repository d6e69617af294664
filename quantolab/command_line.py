"""How commands are declared and read: what is wrong is said in one line, and help says it all.

Of every command help shows an example, of every option what holds without it, and what each exit
status means. Imports nothing heavy, so that it answers at once.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .arguments import shown
from .errors import ArgumentError, nearest
from .recipes import Recipe
from .weights import WORDS

OK, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

STATUSES = {
    UNUSABLE: "the arguments can't be used; one line says which and what is allowed",
    INTERRUPTED: "interrupted by Ctrl-C (143 by SIGTERM, 129 by a closed terminal)",
}
"""Exit statuses that mean the same for every command."""


class Parser(argparse.ArgumentParser):
    """The program: its commands, and no options but ``--help`` and ``--version``."""

    def __init__(
        self, *args, examples: tuple[str, ...] = (), statuses: dict | None = None, **kwargs
    ):
        said = {**(statuses or {}), **STATUSES}
        lines = [*_titled("examples", examples), ""]
        lines += _titled("exit status", [f"{number:<3}  {what}" for number, what in said.items()])
        super().__init__(*args, epilog="\n".join(lines), formatter_class=_Help, **kwargs)

    def add_commands(self) -> argparse._SubParsersAction:
        """Return what commands are added to, each a `Command`."""
        return self.add_subparsers(
            title="commands", required=True, metavar="COMMAND", dest="command", parser_class=Command
        )

    def parse_args(self, args=None, namespace=None):
        """Return the arguments; what nobody knows is judged by the command it was given to."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = _commands(self)[arguments.command]
            command.error(f"unrecognized arguments: {' '.join(unknown)}")
        return arguments

    def error(self, message: str) -> None:
        """Raise what is wrong as one sentence."""
        commands = _commands(self)
        if asked := re.search(r"COMMAND: invalid choice: '(.*?)' \(choose", message, re.DOTALL):
            raise ArgumentError(
                f"no command '{asked[1]}'; allowed: {', '.join(commands)}"
                f"{nearest(asked[1], commands)}"
            )
        if message.endswith("required: COMMAND"):
            raise ArgumentError(f"a command is needed: {', '.join(commands)} (see --help)")
        unknown = message.removeprefix("unrecognized arguments: ")
        hint = ""
        if unknown != message and unknown.startswith("-"):
            # Without their dashes, by which all of them are alike.
            names = [option[2:] for option in _options(self)]
            hint = nearest(re.split(r"[\s=]", unknown)[0].lstrip("-"), names, 0.6)
            hint = re.sub(r"'(?=\w)", "'--", hint)
        raise ArgumentError(f"{message}{hint} (see {self.prog} --help)")


class Command(Parser):
    """One command. Options that take one value are refused when given twice, texts when empty."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register("action", None, _Once)
        self.register("action", "store", _Once)
        self.register("type", None, text)


class _Once(argparse._StoreAction):
    """Keeps a value; a second one would silently take the place of the first."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = vars(namespace).setdefault("_given", set())
        if option_string is not None and self.dest in given:
            raise argparse.ArgumentError(self, "given more than once, and takes one value")
        given.add(self.dest)
        super().__call__(parser, namespace, values, option_string)


class _Help(argparse.HelpFormatter):
    """Fills texts, but for lines that begin with a blank; says of flags that they are off."""

    def _fill_text(self, text, width, indent):
        fill = super()._fill_text
        lines = text.splitlines()
        return "\n".join(x if x.startswith(" ") else fill(x, width, indent) for x in lines)

    def _get_help_string(self, action):
        off = isinstance(action, argparse._StoreTrueAction)
        return f"{action.help} (default: off)" if off else action.help


def _titled(title: str, lines) -> list[str]:
    return [f"{title}:", *(f"  {line}" for line in lines)]


def _commands(parser: argparse.ArgumentParser) -> dict[str, Parser]:
    """Return a parser's commands by name."""
    actions = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: command for action in actions for name, command in action.choices.items()}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Return all long options of a parser."""
    return [o for a in parser._actions for o in a.option_strings if o.startswith("--")]


def with_words(
    parser: argparse.ArgumentParser,
    words: Mapping[str, Sequence[str]],
    kinds: Mapping[Callable[[str], object], dict[str, str]],
) -> argparse.ArgumentParser:
    """Return a parser that is read by what completes, and no longer parses as it did.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        With commands.
    words : mapping
        By an argument's name, what is offered for it.
    kinds : mapping
        By what reads an argument, how it is completed.
    """
    for command in (parser, *_commands(parser).values()):
        for action in command._actions:
            if action.dest in words and action.nargs != 0:
                action.choices = list(words[action.dest])
            elif action.type in kinds:
                action.complete = kinds[action.type]  # type: ignore[attr-defined, index]
    return parser


# --- values ---------------------------------------------------------------------------------


def text(given: str) -> str:
    """Return a text that isn't empty: an empty one is a variable of the shell that isn't set."""
    if not given.strip():
        raise argparse.ArgumentTypeError("it is empty; give a value, or leave it out")
    return given


def place(given: str) -> str:
    """Return a path of a file or folder, as it is written."""
    try:
        Path(text(given)).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"no user is known whose home {shown(given)} begins with"
        ) from None
    return given


def listed(given: str) -> tuple[str, ...]:
    """Return weights words that stand between commas."""
    words = [word.strip() for word in given.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError(
            f"{shown(given)} names no weights; allowed: {','.join(WORDS)}"
        )
    return tuple(words)


def recipe(given: str) -> Recipe:
    """Return the recipe of a text."""
    try:
        return Recipe.parse(text(given))
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


_MOST_BYTES = 1_000_000  # of a file of prompts, ten thousand long ones


def prompts(given: str) -> list[str]:
    """Return the lines of a file that aren't empty, each a prompt; ``-`` is the standard input."""
    name = "the standard input" if given == "-" else text(given)
    try:
        if given == "-" and sys.stdin is None:
            raise argparse.ArgumentTypeError(f"{name} is closed")
        if given == "-":
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            path = Path(given).expanduser()
            if path.exists() and not path.is_file():  # a pipe might never end
                raise argparse.ArgumentTypeError(f"{given} is no ordinary file")
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
    except (OSError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"{name} can't be read: {why}") from None
    if len(data) > _MOST_BYTES:
        raise argparse.ArgumentTypeError(f"{name} is no list of prompts: it has over a megabyte")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{name} isn't text in UTF-8: {error.reason}") from None
    found = [line.strip() for line in lines if line.strip()]
    if not found or any("\0" in line for line in found):
        what = "NUL characters" if found else "no line with words"
        raise argparse.ArgumentTypeError(f"{name} holds {what}; a prompt a line is needed")
    return found


def whole(given: str) -> int:
    """Return a whole number."""
    try:
        return int(given)
    except ValueError:
        raise _needed("a whole number", given) from None


def wholes(given: str) -> list[int]:
    """Return whole numbers that stand between commas."""
    return [whole(word) for word in given.split(",")]


def number(given: str) -> float:
    """Return a number."""
    try:
        return float(given)
    except ValueError:
        raise _needed("a number", given) from None


def size(given: str) -> tuple[int, int]:
    """Return width and height."""
    width, cross, height = given.lower().partition("x")
    try:
        if cross and width.isdecimal() and height.isdecimal():
            return (int(width), int(height))
    except ValueError:  # thousands of digits
        pass
    raise _needed("WIDTHxHEIGHT such as 512x512", given)


def _needed(what: str, given: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{what} is needed, not {shown(given)}")
