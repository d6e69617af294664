"""How commands are read, and what help says: it is true of what is run, and lacks nothing."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import shutil
import subprocess

import pytest

from quantolab import cli
from quantolab.command_line import STATUSES, Command, _commands, _options
from quantolab.demo import PROMPTS, STEPS
from quantolab.errors import ArgumentError
from quantolab.processes.children import STALL_SECONDS
from quantolab.run import MOST_ROUNDS, REPEATS
from quantolab.run.asked import _DEFAULT_STEPS
from quantolab.text_tables import printable

PROGRAM = cli._parser()
COMMANDS = _commands(PROGRAM)
OPTIONS = [
    (name, action)
    for name, command in COMMANDS.items()
    for action in command._actions
    if not isinstance(action, argparse._HelpAction)
]


NEEDED = {"completion": ("bash",), "plan": ["demo"], "convert": ["a", "b", "--to", "sdnq"]}
"""What a command can't go without."""


def titled(text: str, title: str) -> list[str]:
    """Return the lines under a title of a help text."""
    block = re.search(rf"^{title}:\n((?:  .*\n?)+)", text, re.MULTILINE)
    assert block, title
    return [line.strip() for line in block[1].splitlines()]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_shows_examples_that_are_read(name):
    text = (COMMANDS[name] if name else PROGRAM).format_help()
    lines = " ".join(titled(text, "examples")).replace("\\ ", " ")
    examples = [e for e in re.split(r"(?=\bquantolab [a-z])", lines) if e]
    assert examples
    for example in examples:
        words = shlex.split(example, comments=True)
        assert words[:1] + words[1:2] == ["quantolab", name or words[1]]
        if "--help" not in words:
            assert PROGRAM.parse_args(words[1:]).command == words[1]


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_shows_what_exit_statuses_mean(name):
    lines = titled((COMMANDS[name] if name else PROGRAM).format_help(), "exit status")
    numbers = {int(found[0]) for line in lines if (found := re.match(r"\d+", line))}
    assert numbers >= {cli.OK, *STATUSES}


@pytest.mark.parametrize(("name", "action"), OPTIONS)
def test_help_shows_every_default(name, action):
    said = COMMANDS[name].formatter_class("x")._get_help_string(action)
    if action.option_strings or action.nargs == "?":
        assert "(default: " in said, (name, action.dest)
    if isinstance(action.default, (str, int)) and not isinstance(action.default, bool):
        shown = "the current folder" if action.default == "." else str(action.default)
        assert f"(default: {shown}" in said


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("--steps", f"{STEPS} for the demo, else {_DEFAULT_STEPS})"),
        ("--stall", f"{int(STALL_SECONDS)})"),
        ("--repeats", f"{REPEATS};"),
        ("--most-rounds", f"{MOST_ROUNDS})"),
        ("--seed", "0)"),
        ("--prompt", "four of the demo's own;"),
    ],
)
def test_defaults_that_stand_elsewhere_are_these(option, default):
    assert len(PROMPTS) == 4
    text = next(a.help for a in COMMANDS["compare"]._actions if option in a.option_strings)
    assert f"(default: {default}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_hints_name_only_what_the_command_has(name):
    own = _options(COMMANDS[name])
    words = {option for command in COMMANDS.values() for option in _options(command)} - {*own}
    for word in [*words, *(w + "x" for w in own), "--wieghts", "--crv=x", "extra"]:
        with pytest.raises(ArgumentError) as refused:
            PROGRAM.parse_args([name, *NEEDED.get(name, ()), word, "more"])
        hint = str(refused.value).partition("did you mean ")[2]
        assert set(re.findall(r"'(.*?)'", hint)) <= {*own}, word
        assert f"(see quantolab {name} --help)" in str(refused.value)
    slip = {"compare": "--rsume", "lab": "--prot", "convert": "--too", "completion": "--hlep"}.get(
        name, "--cvs"
    )
    with pytest.raises(ArgumentError, match=r"did you mean '--(csv|resume|port|to|help)'"):
        PROGRAM.parse_args([name, *NEEDED.get(name, ()), slip])


SINGLE = [(n, a) for n, a in OPTIONS if a.option_strings and type(a).__name__ == "_Once"]


@pytest.mark.parametrize(("name", "action"), SINGLE)
def test_what_takes_one_value_is_given_once(name, action):
    option = action.option_strings[0]
    needed = NEEDED.get(name, ())
    words = [name, *(w for w in needed if option != "--to" or w not in ("--to", "sdnq"))]
    value = {"size": "8x8", "out": "x", "to": "sdnq"}.get(action.dest, "1")
    PROGRAM.parse_args([*words, option, value])  # and once more, which has its own count
    with pytest.raises(ArgumentError, match=f"{option}: given more than once"):
        PROGRAM.parse_args([*words, option, value, option, value])


def test_all_commands_are_read_alike():
    assert {type(command) for command in COMMANDS.values()} == {Command}
    read = PROGRAM.parse_args(["compare", "--weights", "none", "--weights", "int8,int4"])
    assert read.weights == ["none", "int8", "int4"]


@pytest.mark.parametrize("sign", ["\x1b[2J", "\r", "\x07", "\u202e", "\u2028", "\x9b", "\x00"])
def test_what_is_printed_does_nothing_to_a_terminal(sign, capsys):
    cli._print(f"a{sign}b\nc é 猫\xa0😀")
    cli._complain(f"a{sign}b\nc")
    printed = capsys.readouterr()
    assert sign not in printed.out + printed.err
    assert printed.out.endswith("b\nc é 猫\xa0😀\n")
    assert printed.err.count("\n") == 1
    assert printable("plain\ntext") == "plain\ntext"


def test_prompts_are_read_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa fox, in snow \r\n\r\n# 2 foxes\n\u732b".encode())
    read = PROGRAM.parse_args(["compare", "--prompt", "first", "--prompts", str(path)])
    assert read.prompt == ["first", "a fox, in snow", "# 2 foxes", "\u732b"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\nb\n")))
    assert PROGRAM.parse_args(["compare", "--prompts", "-"]).prompt == ["a", "b"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\xff\xfe", "isn't text in UTF-8"),
        (b"", "holds no line with words"),
        (b" \n\t\n", "holds no line with words"),
        (b"a\0b", "holds NUL characters"),
        (b"a" * 1_000_001, "over a megabyte"),
    ],
)
def test_files_that_hold_no_prompts_are_refused(data, said, tmp_path):
    (tmp_path / "prompts").write_bytes(data)
    with pytest.raises(ArgumentError, match=said):
        PROGRAM.parse_args(["compare", "--prompts", str(tmp_path / "prompts")])


def test_what_is_no_file_of_prompts_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("", "none", ".", "pipe", "~nobody-of-this-name/x"):
        with pytest.raises(ArgumentError, match="--prompts"):
            PROGRAM.parse_args(["compare", "--prompts", name and str(tmp_path / name)])


COMPLETED = {
    ("com",): "compare completion",
    ("compare", "--off"): "--offload",
    ("compare", "--offload", ""): "none model group sequential",
    ("compare", "--dtype", "b"): "bfloat16",
    ("convert", "--to", "g"): "gguf",
    ("compare", "--out", "some-"): "some-folder",
}


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_options_values_and_files(capsys, tmp_path):
    assert cli.main(["completion", "bash"]) == 0
    (tmp_path / "some-folder").mkdir()
    asks = "".join(f"ask quantolab {shlex.join(words)}\n" for words in COMPLETED)
    script = capsys.readouterr().out + (
        "ask() { COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n"
        "  _shtab_quantolab quantolab \"${COMP_WORDS[COMP_CWORD]}\"\n"
        "  echo \"${COMPREPLY[@]}\"; }\n"
    )  # fmt: skip
    said = subprocess.run(
        ["bash", "-c", script + asks], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == list(COMPLETED.values())
    assert cli.main(["completion", "bsh"]) == 2
    assert "shell 'bsh' is not known" in capsys.readouterr().err
