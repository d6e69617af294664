"""The runs under a folder: opened, renamed, moved to the trash, and put side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import ipywidgets as W
import traitlets

from ..errors import ArgumentError
from ..report.beside import SideBySide, side_by_side
from ..report.listing import HEADERS, readable_row, runs
from ..report.markup import alert, note
from ..report.tables import plain_rows
from ..run.keeping import TRASH, discard_run, rename_run, restore_run
from ..units import format_count
from .assets import asset
from .latest import Latest
from .model_field import LABEL, WRAP
from .pictures import PictureViewer
from .tabling import ResultsTable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunsContent:
    """Every word of the list."""

    rows: tuple[dict[str, Any], ...] = ()
    """Under ``path`` the run's folder, under ``cells`` a text a heading, under ``reason`` why it
    can't be read, or None."""

    def plain(self) -> dict:
        """Return plain values for the browser."""
        return {"headers": list(HEADERS), "rows": [dict(row) for row in self.rows]}


def runs_content(table: pd.DataFrame, folder: Path) -> RunsContent:
    """Return what the list shows of what `runs` gave, folders as seen from the one above them."""
    rows = []
    for record in plain_rows(table):
        path = record["run"]
        name = os.path.relpath(path, folder)
        cells = readable_row({**record, "run": Path(path).name if name == "." else name})
        rows.append({"path": path, "cells": list(cells), "reason": record["reason"]})
    return RunsContent(tuple(rows))


class _RunsList(anywidget.AnyWidget):
    """The list itself; see runs_list.js."""

    _esm = asset("shared.js", "runs_list.js")
    _css = asset("runs_list.css")

    content = traitlets.Dict(RunsContent().plain()).tag(sync=True)
    chosen = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """Folders of the runs that are ticked, in the order in which they were."""

    def __init__(self) -> None:
        super().__init__()
        self.add_class("ql-runs-list")


class RunsTab(W.VBox):
    """A list of runs with buttons for what can be done with those that are ticked.

    Parameters
    ----------
    open_run : callable
        Takes the folder of a run that is to be opened.
    moved : callable
        Takes the folder in which a run was and where it is now, None for the trash.

    Examples
    --------
    >>> panel.runs.look("quantolab-runs")                       # doctest: +SKIP
    >>> panel.runs.choose("fox", "fox-2")                       # doctest: +SKIP
    >>> panel.runs.put_side_by_side().grid()                    # doctest: +SKIP
    """

    def __init__(
        self, open_run: Callable[[Path], None], moved: Callable[[Path, Path | None], None]
    ) -> None:
        self._open_run, self._tell_moved = open_run, moved
        self._looking, self._putting = Latest(), Latest()
        self._discarded: list[Path] = []
        self.side_by_side: SideBySide | None = None
        """What is shown below the list."""
        self.folder = W.Text(
            value=".", description="Folder", style=LABEL, layout={"width": "min(520px, 100%)"},
            continuous_update=False,
        )  # fmt: skip
        self.list = _RunsList()
        self.name = W.Text(
            placeholder="new name", layout={"width": "180px"}, continuous_update=False
        )
        self.name.tooltip = "New name of the run that is ticked"
        self.buttons = {
            "refresh": _button("Look again", "Lists the runs under the folder, as they are now"),
            "open": _button("Open", "Shows the run that is ticked in the other tabs"),
            "beside": _button("Side by side", "One grid and one table of the runs that are ticked"),
            "rename": _button("Rename", "Gives the run that is ticked the name beside"),
            "discard": _button("Move to trash", f"Moves the runs that are ticked into {TRASH}"),
            "undo": _button("Undo", "Brings back what was moved to the trash last"),
        }  # fmt: skip
        self.said = W.HTML()
        self.told, self.table, self.viewer = W.HTML(), ResultsTable(), PictureViewer()
        # Another name than the table of the run has: both stand in one panel.
        self.table.all_columns.description = "every column of these runs"
        # Empty until runs are put side by side: the panel has one table and one grid till then.
        self.beside = W.VBox()
        self.beside.add_class("ql-beside")
        b = self.buttons
        above = W.HBox((self.folder, b["refresh"]), layout=WRAP)
        below = W.HBox(
            (b["open"], b["beside"], b["discard"], b["undo"], self.name, b["rename"]), layout=WRAP
        )
        super().__init__((above, self.list, below, self.said, self.beside))
        self.add_class("ql-runs")
        for name, handler in {
            "refresh": self.look, "open": self.open_chosen, "beside": self._put_in_background,
            "rename": self.rename, "discard": self.discard, "undo": self.undo,
        }.items():  # fmt: skip
            b[name].on_click(self._safe(lambda _, handler=handler: handler()))
        self.folder.observe(self._safe(lambda _: self.look()), "value")
        asked = self._safe(self._open_asked)
        self.list.on_msg(lambda _, message, __: asked(message["open"]))
        self.list.observe(lambda _: self._show_buttons(), ["chosen", "content"])
        self._show_buttons()

    # --- for programs ---

    def look(self, folder: str | os.PathLike[str] | None = None, *, wait: bool = False) -> None:
        """List the runs under a folder, in the background.

        Parameters
        ----------
        folder : str or pathlib.Path, optional
            Where to look; by default where the field says.
        wait : bool
            Whether to return only when they are listed.
        """
        if folder is not None and str(folder) != self.folder.value:
            self.folder.value = str(folder)  # which looks
        else:
            place = Path(self.folder.value.strip() or ".").expanduser()
            self.said.value = note("Looking for runs…")
            self._looking.start(
                lambda: runs_content(runs(place), place), done=self._show, failed=self._nothing
            )
        if wait:
            self._looking.wait()

    @property
    def found(self) -> tuple[str, ...]:
        """Folders of the runs that are listed, the latest first."""
        return tuple(row["path"] for row in self.list.content["rows"])

    def choose(self, *folders: str | os.PathLike[str]) -> None:
        """Tick runs by their folders, or by the last part of these where one run has it.

        Raises
        ------
        ArgumentError
            If there is none, or several, of a name.
        """
        self.list.chosen = [self._found(str(folder)) for folder in folders]

    def open_chosen(self) -> None:
        """Show the one run that is ticked in the other tabs.

        Raises
        ------
        QuantolabError
            If not just one is ticked, or it can't be read.
        """
        self._open_run(Path(self._one("opened")))

    def put_side_by_side(self) -> SideBySide:
        """Show the runs that are ticked in one grid and one table; return what is shown.

        Raises
        ------
        QuantolabError
            If fewer than two are ticked, or one can't be read.
        """
        self._show_beside(side_by_side(self.list.chosen))
        assert self.side_by_side is not None
        return self.side_by_side

    def rename(self, name: str | None = None) -> None:
        """Give the one run that is ticked another name, by default that of the field.

        Raises
        ------
        QuantolabError
            If not just one is ticked, or it can't have the name.
        """
        folder = self._one("renamed")
        before = Path(folder).resolve()
        place = rename_run(folder, self.name.value if name is None else name)
        self.name.value = ""
        self._tell_moved(before, place)
        self._list_again(f"It is {place} now.", {place})

    def discard(self) -> None:
        """Move the runs that are ticked to the trash beside them.

        Raises
        ------
        QuantolabError
            If none is ticked, or one can't be moved; those before it are in the trash then.
        """
        if not self.list.chosen:
            raise ArgumentError("tick the runs that are to go to the trash")
        gone: list[Path] = []
        try:
            for folder in self.list.chosen:
                before = Path(folder).resolve()
                gone.append(discard_run(folder))
                self._tell_moved(before, None)
        finally:
            if gone:
                self._discarded = gone
                count = format_count(len(gone), "run")
                self._list_again(f"{count} moved to {gone[-1].parent.parent}; Undo brings back.")

    def undo(self) -> None:
        """Bring back what was moved to the trash last.

        Raises
        ------
        QuantolabError
            If there is nothing, or its place is taken.
        """
        if not self._discarded:
            raise ArgumentError("nothing was moved to the trash here")
        back: set[Path] = set()
        while self._discarded:
            back.add(restore_run(self._discarded[-1]))
            self._discarded.pop()
        self._list_again(f"{format_count(len(back), 'run')} brought back.", back)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until runs are listed and side by side; whether that came true in time."""
        return self._looking.wait(timeout) and self._putting.wait(timeout)

    # --- what it shows ---

    def _safe(self, handler: Callable[..., Any]) -> Callable[[Any], None]:
        """Return a handler whose errors are said under the list."""

        def safe(event: Any) -> None:
            try:
                handler(event)
            except Exception as error:
                self._fail(error)

        return safe

    def _open_asked(self, folder: str) -> None:
        if folder in self.found:
            self._open_run(Path(folder))

    def _found(self, name: str) -> str:
        same = [path for path in self.found if name in (path, Path(path).name)]
        if len(same) != 1:
            there = f"{len(same)} runs are" if same else "no run is"
            raise ArgumentError(f"{there} called {name!r} under {self.folder.value!r}")
        return same[0]

    def _one(self, what: str) -> str:
        if len(self.list.chosen) != 1:
            raise ArgumentError(f"tick the one run that is to be {what}")
        return self.list.chosen[0]

    def _show(self, content: RunsContent) -> None:
        there = {row["path"] for row in content.rows}
        self.list.content = content.plain()
        self.list.chosen = [path for path in self.list.chosen if path in there]
        none = "No runs here: Run makes one, and so does quantolab compare."
        self.said.value = "" if content.rows else note(none)

    def _nothing(self, error: BaseException) -> None:
        self.list.content = RunsContent().plain()
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.said.value = alert(error)

    def _list_again(self, said: str, chosen: Container[Path] = ()) -> None:
        """Say what was moved, list what is there now, and tick what has come."""
        self.look(wait=True)
        self.said.value = f"<span role='status'>{note(said)}</span>"
        self.list.chosen = [path for path in self.found if Path(path).resolve() in chosen]
        self._show_buttons()

    def _put_in_background(self) -> None:
        chosen = tuple(self.list.chosen)
        if len(chosen) < 2:
            raise ArgumentError("tick two runs or more to put them side by side")
        self.said.value = note("Reading the runs…")
        self._putting.start(
            lambda: side_by_side(chosen),
            done=self._show_beside,
            failed=self._fail,
        )

    def _show_beside(self, side: SideBySide) -> None:
        self.side_by_side = side
        self.said.value = ""
        self.told.value = "".join(map(note, side.differences))
        self.table.update(side.table)
        self.viewer.update(side)
        self.beside.children = (self.told, self.table, self.viewer)

    def _show_buttons(self) -> None:
        count = len(self.list.chosen)
        self.buttons["open"].disabled = self.buttons["rename"].disabled = count != 1
        self.buttons["beside"].disabled = count < 2
        self.buttons["discard"].disabled = count < 1
        self.buttons["undo"].layout.display = None if self._discarded else "none"


def _button(text: str, tooltip: str) -> W.Button:
    return W.Button(description=text, tooltip=tooltip, layout={"width": "auto"})
