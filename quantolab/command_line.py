"""How commands are declared and read: what is wrong is said in one line, and help says it all.

Of every command help shows an example, of every option what holds without it, and what each exit
status means. Imports nothing heavy, so that it answers at once.
"""

from __future__ import annotations

import argparse
import re

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
            hint = nearest(re.split(r"[\s=]", unknown)[0], _options(self))
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


# --- values ---------------------------------------------------------------------------------


def text(given: str) -> str:
    """Return a text that isn't empty: an empty one is a variable of the shell that isn't set."""
    if not given.strip():
        raise argparse.ArgumentTypeError("it is empty; give a value, or leave it out")
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
