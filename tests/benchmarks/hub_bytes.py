"""Bytes that a hub sends for each kind of repository: an earlier version, and this one.

Run by hand:

    python tests/benchmarks/hub_bytes.py [EARLIER]

EARLIER is a checkout of another version (``git worktree add --detach PLACE bd2f80a`` for 0.1.0). A
hub on this machine holds ten repositories of one tiny pipeline, in the layouts that people publish.
In each of them `plan` and `compare` are called as the command line calls them, and `load` from
Python, each with an empty cache; one process a version does all of that. Counted is what the hub
sent of files. The table is Markdown.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
HOME = HERE.parent
sys.path.insert(0, str(HERE / "shared"))
WHAT = ("plan", "load", "compare")


def work(names):
    """Do everything with every repository, in whichever version is imported; print what failed."""
    import quantolab as ql
    from quantolab import cli

    small = "--weights none --steps 1 --repeats 1 --size 32x32 --device cpu"
    quick = [*small.split(), "--out"]
    for what in WHAT:
        for name in names:
            model, said = f"{what}/{name}", io.StringIO()
            try:
                with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                    if what == "load":
                        ql.load(model, "int8", device="cpu")
                    elif what == "plan":
                        failed = cli.main(["plan", model, "--weights", "int8"])
                    else:
                        failed = cli.main(["compare", model, *quick, f"out/{name}"])
                    if what != "load" and failed:
                        raise RuntimeError(said.getvalue().strip().splitlines()[-1])
            except Exception as error:
                print(json.dumps([model, f"{type(error).__name__}: {error}"]), flush=True)


def measure(checkout, hub, names, place):
    """Return what failed in a version, by repository."""
    environment = {
        **os.environ, "PYTHONPATH": str(checkout), "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(place / "cache"), "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    place.mkdir()
    command = [sys.executable, str(Path(__file__).resolve()), "--work", *names]
    done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    return dict(map(json.loads, lines))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("earlier", nargs="?", type=Path, metavar="EARLIER")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    from hub_needs import LAYOUTS, needed, sizes, unique
    from hub_server import TOKEN, HubServer, layouts

    from quantolab.units import format_bytes

    os.environ["HF_TOKEN"] = TOKEN
    versions = [v for v in (arguments.earlier, HOME) if v is not None]
    with tempfile.TemporaryDirectory() as kept:
        place = Path(kept)
        folders = layouts(pipeline(place / "pipeline"), place / "layouts")
        cells, failures = {}, []
        for number, version in enumerate(versions):
            with HubServer() as hub:
                for what in WHAT:
                    for name in LAYOUTS:
                        hub.add(f"{what}/{name}", folders[name], gated=name == "gated")
                failed = measure(version.resolve(), hub, LAYOUTS, place / f"version-{number}")
                for name in LAYOUTS:
                    for what in WHAT:
                        sent = sum(hub.sent_of(f"{what}/{name}").values())
                        mark = " ✗" if f"{what}/{name}" in failed else ""
                        cells[name, number, what] = format_bytes(sent) + mark
                failures += [f"{model}: {text}" for model, text in failed.items()]
        heads = [f"{what}, {'before' if v != HOME else 'now'}" for what in WHAT for v in versions]
        print(f"| repository | {' | '.join(heads)} | needed to compare |")
        print("|---|" + "---:|" * (len(heads) + 1))
        for name in LAYOUTS:
            row = [cells[name, n, what] for what in WHAT for n in range(len(versions))]
            least = unique(folders[name], sizes(folders[name], needed(name, "compare")))
            print(f"| {name} | {' | '.join(row)} | {format_bytes(least)} |")
        print("\n✗: it failed with that", *failures, sep="\n")


def pipeline(folder):
    """Save the pipeline that the tests have."""
    sys.path.insert(0, str(HERE))
    import conftest

    class Places:
        def mktemp(self, name):
            folder.mkdir()
            return folder

    return conftest.pipeline_folder.__wrapped__(Places())


if __name__ == "__main__":
    main()
