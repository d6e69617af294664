"""`quantolab lab`: the user's own work is never overwritten, and JupyterLab serves the folder."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from quantolab import __version__, cli, tutorials
from quantolab.errors import ModelNotFoundError, OutputError
from quantolab.tutorials import RECORD, copy_notebooks, jupyter_command

ROOT = Path(__file__).resolve().parents[1]
BESIDE = f"00_start_here.quantolab-{__version__}.ipynb"


@pytest.fixture
def source(tmp_path):
    """Stand-in tutorials, and files that aren't any."""
    folder = tmp_path / "source"
    (folder / "results").mkdir(parents=True)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "00_start_here.ipynb").write_text("first")
    (folder / "01_skipping.ipynb").write_text("second")
    (folder / "results" / "cpu.csv").write_text("a,b\n")
    (folder / ".ipynb_checkpoints" / "00_start_here-checkpoint.ipynb").write_text("old")
    (folder / "notes.pyc").write_text("no")
    return folder


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD
    }


SHIPPED = {
    "00_start_here.ipynb": "first",
    "01_skipping.ipynb": "second",
    "results/cpu.csv": "a,b\n",
}


def test_the_first_copy(source, tmp_path):
    copied = copy_notebooks(tmp_path / "a" / "mine", source)
    assert files(tmp_path / "a" / "mine") == SHIPPED
    assert sorted(copied.new) == sorted(SHIPPED)
    assert copied.notebooks == ("00_start_here.ipynb", "01_skipping.ipynb")
    again = copy_notebooks(tmp_path / "a" / "mine", source)
    assert (again.new, again.updated, again.kept, again.beside) == ((), (), (), ())


def test_a_newer_version_replaces_what_the_user_left_alone(source, tmp_path):
    copy_notebooks(tmp_path / "mine", source)
    (source / "00_start_here.ipynb").write_text("newer")
    copied = copy_notebooks(tmp_path / "mine", source)
    assert copied.updated == ("00_start_here.ipynb",)
    assert files(tmp_path / "mine") == {**SHIPPED, "00_start_here.ipynb": "newer"}


def test_what_the_user_changed_stays(source, tmp_path):
    copy_notebooks(tmp_path / "mine", source)
    (tmp_path / "mine" / "00_start_here.ipynb").write_text("my own")
    copied = copy_notebooks(tmp_path / "mine", source)
    # The version that he started from needs no second copy.
    assert (copied.kept, copied.beside) == (("00_start_here.ipynb",), ())
    (source / "00_start_here.ipynb").write_text("newer")
    copied = copy_notebooks(tmp_path / "mine", source)
    assert (copied.kept, copied.beside) == (("00_start_here.ipynb",), (BESIDE,))
    expected = {**SHIPPED, "00_start_here.ipynb": "my own", BESIDE: "newer"}
    assert files(tmp_path / "mine") == expected
    # Given once: not again, even if it was changed or thrown away.
    (tmp_path / "mine" / BESIDE).write_text("mine as well")
    assert copy_notebooks(tmp_path / "mine", source).beside == ()
    assert files(tmp_path / "mine") == {**expected, BESIDE: "mine as well"}
    # Still newer, under the same version of quantolab: a name of its own.
    (source / "00_start_here.ipynb").write_text("newest")
    second = BESIDE.replace(".ipynb", "-2.ipynb")
    assert copy_notebooks(tmp_path / "mine", source).beside == (second,)
    assert files(tmp_path / "mine")[second] == "newest"
    assert files(tmp_path / "mine")[BESIDE] == "mine as well"


@pytest.mark.parametrize("record", [None, "{", "[]"])
def test_without_a_record_everything_counts_as_changed(source, tmp_path, record):
    copy_notebooks(tmp_path / "mine", source)
    path = tmp_path / "mine" / RECORD
    path.unlink() if record is None else path.write_text(record)
    (source / "00_start_here.ipynb").write_text("newer")
    copied = copy_notebooks(tmp_path / "mine", source)
    assert (copied.kept, copied.beside) == (("00_start_here.ipynb",), (BESIDE,))
    assert files(tmp_path / "mine")["00_start_here.ipynb"] == "first"


def test_a_place_that_is_a_file_is_refused(source, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="can't be copied"):
        copy_notebooks(tmp_path / "file", source)
    assert (tmp_path / "file").read_text() == "mine"


def test_an_installation_without_notebooks_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tutorials, "__file__", str(tmp_path / "quantolab" / "tutorials.py"))
    with pytest.raises(ModelNotFoundError, match="has no notebooks"):
        tutorials.notebooks_folder()
    (tmp_path / "notebooks").mkdir()  # a checkout
    (tmp_path / "notebooks" / "a.ipynb").write_text("{}")
    assert tutorials.notebooks_folder() == tmp_path / "notebooks"
    (tmp_path / "quantolab" / "notebooks").mkdir(parents=True)  # an installed package
    (tmp_path / "quantolab" / "notebooks" / "a.ipynb").write_text("{}")
    assert tutorials.notebooks_folder() == tmp_path / "quantolab" / "notebooks"


def test_the_wheel_has_every_package_and_the_notebooks():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "quantolab").rglob("__init__.py")
    }
    assert set(setuptools["packages"]) == found | {"quantolab.notebooks"}
    assert setuptools["package-dir"] == {"quantolab.notebooks": "notebooks"}
    patterns = setuptools["package-data"]
    for folder, package in ((ROOT / "notebooks", "quantolab.notebooks"),):
        listed = {p for pattern in patterns[package] for p in folder.glob(pattern)}
        assert listed >= set(tutorials._shipped(folder))
    data = {p for pattern in patterns["quantolab"] for p in (ROOT / "quantolab").glob(pattern)}
    wanted = {p for p in (ROOT / "quantolab").rglob("*") if p.suffix in (".json", ".css", ".js")}
    assert wanted <= data


def test_the_command_serves_this_machine_alone(tmp_path):
    command = jupyter_command(tmp_path, browser=False, port=8123, first="00_start_here.ipynb")
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert {"--ServerApp.ip=127.0.0.1", "--no-browser", "--ServerApp.port=8123"} <= set(command)
    assert not any("token" in word or "password" in word for word in command)
    assert "--no-browser" not in jupyter_command(tmp_path)


def test_a_port_out_of_range_gets_status_2(capsys, tmp_path):
    assert cli.main(["lab", str(tmp_path / "mine"), "--port", "99999"]) == 2
    assert "--port must be a whole number from 1 to 65535" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def free_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        return other.getsockname()[1]


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="it execs")
def test_jupyterlab_serves_the_copy(source, tmp_path):
    """The real thing: the command becomes JupyterLab, and its token opens the notebook."""
    port = free_port()
    code = (
        "import sys; from pathlib import Path; from quantolab import cli, tutorials;"
        "tutorials.notebooks_folder = lambda: Path(sys.argv[1]);"
        "sys.exit(cli.main(sys.argv[2:]))"
    )
    arguments = [str(source), "lab", str(tmp_path / "mine"), "--no-browser", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
        env={**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_DATA_DIR": str(tmp_path)},
        start_new_session=True,  # tests may run in the background of a terminal, which stops it
    )  # fmt: skip
    said = []
    try:
        for line in process.stdout:
            said.append(line)
            address = re.search(r"(http://127\.0\.0\.1:\d+)/lab\S*token=(\w+)", line)
            if address:
                break
        else:
            pytest.fail("".join(said))
        home, token = address.groups()
        assert home.endswith(f":{port}")
        request = f"{home}/api/contents/00_start_here.ipynb?content=0&token={token}"
        assert json.load(_opened(request))["name"] == "00_start_here.ipynb"
        with pytest.raises(urllib.error.HTTPError):  # not without the token
            urllib.request.urlopen(f"{home}/api/contents")
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(timeout=60)
    assert any("copied" in line and "00_start_here.ipynb" in line for line in said)


def _opened(address):
    for _ in range(100):
        try:
            return urllib.request.urlopen(address)
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.1)  # the address is printed just before it is listened to
    raise TimeoutError(address)
