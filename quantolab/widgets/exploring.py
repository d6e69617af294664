"""The explorer: which dtype for my model? Choose, run, look, take along."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets as W

from ..errors import ArgumentError, JobFailed, OutputError, QuantolabError
from ..experiments.comparing import compare
from ..models.source import DEMO
from ..processes.jobs import Event
from ..records import FAILED, Comparison, Trial
from ..report.markup import alert, note
from ..report.tables import results_table
from ..run.asked import Request
from ..run.identity import differences
from ..run.jobs import MAKING
from ..run.journal import (
    RUN_FILE,
    WORK,
    check_folder,
    new_folder,
    read,
    read_asked,
    read_run,
    with_pictures,
    withdraw,
)
from ..run.session import MadePicture, Progress
from ..units import format_roughly
from .advice_bar import AdviceBar
from .background import Assistant
from .blind import BlindTest
from .choosing import Choice, changed, choice_of
from .drawing import tradeoff_html
from .dropped_picture import DroppedPicture, settings_of, taken_sentence
from .estimating import Estimate, Estimator, estimate_html
from .form import Form
from .jobs import FetchJob
from .kinds import FETCH
from .latest import Latest
from .model_field import WRAP
from .panel import Panel
from .pictures import PictureViewer
from .recent import remember
from .runs_tab import RunsTab
from .tabling import ResultsTable, table_html
from .take_away import TakeAway
from .working_panel import run_button

if TYPE_CHECKING:
    import pandas
    from PIL import Image

_LIVE_SECONDS = 0.5  # between two looks at what has been made

TABS = ("Pictures", "Table", "Trade-off", "Blind test", "Take away", "Runs")


def explorer(
    model=None,
    run: str | os.PathLike | None = None,
    *,
    variant: str | None = None,
    revision: str | None = None,
) -> Explorer:
    """Return the panel that compares a model's weights dtypes.

    Parameters
    ----------
    model : str or path, optional
        ``"demo"`` (the default), a folder in Diffusers layout, or a model of the Hub: its id or
        the address of its page.
    run : path, optional
        Folder of an earlier run to look at, finished or not. Neither its model nor torch is
        needed for that.
    variant, revision : str, optional
        As for `compare`.

    Examples
    --------
    >>> panel = explorer("demo")
    >>> panel                                              # in a cell of its own
    >>> panel.table, panel.comparison                      # in the next one
    """
    return Explorer(model, run, variant=variant, revision=revision)


class Explorer(Panel):
    """A form, a run in the background, and its results; see `explorer`."""

    def __init__(
        self,
        model=None,
        run: str | os.PathLike | None = None,
        *,
        variant: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__("explorer", "Which dtype for this model?")
        self.comparison: Comparison | None = None
        """What has been measured by now; None before the first trial has ended."""
        self._asked: tuple[Trial, ...] = ()  # all that the shown run asks for
        self._shown: Comparison | None = None  # what of it is shown, perhaps before any trial ended
        self._ran: Choice | None = None  # what it was begun with; `out` is its folder
        self._problem: BaseException | None = None
        self._running = self._displayed = False
        self._estimated: Estimate | None = None  # what is shown of it
        self._live: dict[tuple[str, str, int], Image.Image] = {}  # of trials that haven't ended
        self._live_shown = -math.inf  # when
        self._running_label: str | None = None  # of the trial whose pictures are being made
        self._own_folder = False  # whether the run's folder was made for it here
        self._assistant = Assistant()
        self._estimator = Estimator(self._assistant)
        self._drawing = Latest()
        self._plot_of: Comparison | None = None
        self._make_parts()
        earlier = None if run is None else _read_earlier(Path(run))
        self.form = Form(
            earlier[0].workload.model if earlier else model,
            on_change=self.guarded(self._form_changed),
            show_error=self._show_problem,
            variant=earlier[0].workload.variant if earlier else variant,
            revision=None if earlier else revision,
        )
        side = W.VBox((
            self.problem, self.estimate, self._buttons, self.resume_note,
            self.status, self.progress, self.error,
        ))  # fmt: skip
        side.add_class("ql-side")
        choose = W.HBox((self.form, side))
        choose.add_class("ql-choose")
        # Other than in other panels, what is going on stands beside the form.
        self.children = (
            self.heading, choose, self.results, self.advice, self.tabs, self._code,
        )  # fmt: skip
        self._earlier = earlier is not None  # is looked at: nothing is estimated for it
        if earlier is not None:
            self._open(*earlier)
        self._form_changed()

    def _make_parts(self) -> None:
        self.problem, self.estimate, self.results = W.HTML(), W.HTML(), W.HTML()
        self.problem.add_class("ql-problem")
        self.estimate.add_class("ql-estimate")
        self.results.add_class("ql-results")
        self.run_button = run_button("Run", "Runs each recipe in a process of its own")
        self.cancel_button = W.Button(description="Cancel", disabled=True, layout={"width": "auto"})
        self.cancel_button.add_class("ql-cancel")
        self.resume_button = W.Button(description="Resume", layout={"width": "auto"})
        self.resume_button.add_class("ql-resume")
        self.add_button = W.Button(description="Add to this run", layout={"width": "auto"})
        self.add_button.add_class("ql-add")
        self.resume_note = W.HTML()
        self._buttons = W.HBox(
            (
                self.run_button,
                self.cancel_button,
                self.resume_button,
                self.add_button,
                DroppedPicture(self.guarded(self._take_picture)),
            ),
            layout=WRAP,
        )
        self.viewer, self.shown_table, self.blind = PictureViewer(), ResultsTable(), BlindTest()
        self.plot = W.HTML()
        self.take_away = TakeAway(self, self._assistant)
        self.advice = AdviceBar(self._assistant, self._show_script, self._mark_advised)
        self.runs = RunsTab(self.open_run, self._run_moved)
        self.tabs = W.Tab((self.runs,), titles=TABS[-1:])
        self.tabs.selected_index = None  # nobody has asked for the runs yet
        self.on_click(self.run_button, self.run)
        self.on_click(self.cancel_button, self.cancel)
        self.on_click(self.resume_button, self.resume)
        self.on_click(self.add_button, self.add)
        self.tabs.observe(self.guarded(lambda _: self._tab_chosen()), "selected_index")
        self._show_buttons()

    # --- for programs ---

    @property
    def table(self) -> pandas.DataFrame | None:
        """What `results_table` makes of the comparison; None before the first trial has ended."""
        return None if self.comparison is None else results_table(self.comparison)

    @property
    def folder(self) -> str | None:
        """Folder of the run that is shown or under way."""
        return None if self._ran is None else self._ran.out

    def set(self, **arguments: Any) -> None:
        """Fill in the form with arguments of `compare`; what isn't named stays.

        Raises
        ------
        ArgumentError
            If `compare` has no such argument. What is wrong with a value, the form says.

        Examples
        --------
        >>> panel.set(recipes=["none", "int8"], prompts="a white house", steps=4)
        """
        self.form.show(changed(self.form.choice, **arguments))
        self.form.model.wait()

    def run(self, wait: bool = False) -> None:
        """Run what the form says, in the background; finished trials show as they come.

        Parameters
        ----------
        wait : bool
            Whether to return only when it has ended.

        Raises
        ------
        QuantolabError
            If it can't be run, or something runs already.
        """
        self._refuse_if_running()
        choice = self.form.choice
        request = self._request(choice)
        folder, self._own_folder = _claimed_folder(choice), choice.out is None
        self._asked, self._ran = request.trials, dataclasses.replace(choice, out=str(folder))
        self.comparison = None
        self._show_results(Comparison(request.workload, (), folder=self._ran.out))
        self._begin(resume=False)
        if wait:
            self.wait()

    def resume(self, wait: bool = False) -> None:
        """Do what is missing or failed in the run that is shown.

        Raises
        ------
        QuantolabError
            If there is nothing to resume, or something runs already.
        """
        self._refuse_if_running()
        if not self._missing():
            raise ArgumentError("there is no run to resume: nothing is missing or failed")
        self._begin(resume=True)
        if wait:
            self.wait()

    def add(self, wait: bool = False) -> None:
        """Add the form's recipes that the run shown lacks to it, and run them.

        Raises
        ------
        QuantolabError
            If there are none, the form says otherwise than the run, or something runs already.
        """
        self._refuse_if_running()
        if not self._new_recipes():
            raise ArgumentError("the form names no recipe that could be added to the run shown")
        choice = self.form.choice
        new = self._request(choice).trials
        known = {trial.label for trial in self._asked}
        self._asked = (*self._asked, *(trial for trial in new if trial.label not in known))
        self._ran = dataclasses.replace(choice, out=self._ran.out)
        self._show_results(self.comparison)
        self._begin(resume=True)
        if wait:
            self.wait()

    def open_run(self, folder: str | os.PathLike) -> None:
        """Show an earlier run, finished or not, in place of the one that is shown.

        Raises
        ------
        QuantolabError
            If it can't be read, or something runs.
        """
        self._refuse_if_running()
        self.show_error(None)
        self._open(*_read_earlier(Path(folder)))
        self.tabs.selected_index = 0
        self.form.model.wait()
        self._form_changed()

    def cancel(self) -> None:
        """End the run; finished trials are kept and shown, and `resume` does the rest."""
        if self.work.cancel():
            self.cancel_button.disabled = True
            self.say("Cancelling…")

    def wait_for_estimate(self, timeout: float | None = None) -> bool:
        """Estimate what the form asks for if that wasn't done, and wait until it is there."""
        self._estimate()
        return self._estimator.wait(timeout)

    def close(self) -> None:
        """Take the panel away, and end what it had begun."""
        self.cancel()
        self._estimator.stop()
        self._assistant.close()
        super().close()

    # --- the form ---

    @property
    def call(self) -> str:
        """The library calls that do what the form says."""
        return self.form.choice.code()

    def _form_changed(self) -> None:
        """Check the form, and estimate what it asks for."""
        if not hasattr(self, "form"):
            return  # it is being made
        self.refresh()
        try:
            if self.form.source is None:
                self._estimator.stop()
                self.estimate.value = note("Looking for the model…") if not self._problem else ""
                self._show_buttons()
                return
            self._request(self.form.choice)
            self._show_problem(None)
        except QuantolabError as error:
            self._estimator.stop()
            self._show_problem(error)
            return
        if self._displayed and not self._running:
            self._estimate()

    def _request(self, choice: Choice) -> Request:
        """Return the request that a choice makes, whose folder can be written, too."""
        if self._problem is not None and self.form.source is None:
            raise self._problem
        if self.form.source is None:
            raise ArgumentError(f"the model {choice.model!r} isn't found yet")
        request = choice.request(self.form.source)
        if choice.out is not None:
            check_folder(choice.out, resume=False)
        return request

    def _show_problem(self, error: BaseException | None) -> None:
        self._problem = error
        self.problem.value = "" if error is None else alert(error)
        if error is not None:
            self.estimate.value, self._estimated = "", None
        self._show_buttons()

    def _estimate(self) -> None:
        try:
            request = self._request(self.form.choice)
        except QuantolabError:
            return  # it is shown already
        self._estimator.ask(
            request, show=self.guarded(self._show_estimate), failed=self._estimate_failed
        )

    def _estimate_failed(self, error: BaseException) -> None:
        """Say what is wrong; only what the form asks for is a reason not to run it."""
        if isinstance(error, QuantolabError) and not isinstance(error, JobFailed):
            self._show_problem(error)
        else:
            self.estimate.value = alert(f"The bytes could not be estimated: {error}")

    def _show_estimate(self, estimate: Estimate) -> None:
        self._estimated = estimate
        self.estimate.value = estimate_html(estimate)

    def _take_picture(self, name: str, picture: bytes) -> None:
        """Fill in the form with what a picture was made with."""
        self.show_error(None)
        origin, settings = settings_of(picture)
        self.form.show(changed(self.form.choice, **settings))
        self.say(taken_sentence(name, origin, settings))

    # --- the run ---

    def _refuse_if_running(self) -> None:
        if self.work.running:
            raise ArgumentError("this panel is at work; cancel it or wait until it has finished")

    def _begin(self, *, resume: bool) -> None:
        self._estimator.stop()  # the processors are needed
        if self._estimated is not None:
            self.estimate.value = estimate_html(self._estimated, reading=False)
        self._running = True
        self._live, self._running_label = {}, None
        self._show_buttons()
        self.show_error(None)
        self.say("Starting: a process imports torch and Diffusers…")
        self.show_progress(0, 1)
        choice, cancel = self._ran, self.work.cancel_asked

        def job() -> Comparison:
            if not _is_here(choice.model):
                self.say("Fetching the model's weights from the Hub, as far as they aren't here…")
                self._assistant.do(
                    FETCH,
                    FetchJob(choice.model, choice.variant, choice.revision),
                    watch=self.guarded(self._hear_fetching),
                    cancel=cancel,
                    stall_seconds=math.inf,  # a download may take hours
                )
            self._assistant.rest()
            return compare(
                **choice.arguments(),
                resume=resume,
                watch=self.guarded(self._hear),
                cancel=cancel,
            )

        remember(choice.model, choice.out)
        self.work.start(
            job,
            done=self._done,
            failed=self._failed,
            cancelled=self._cancelled,
            last=self._free,
        )

    def _hear_fetching(self, event: Event) -> None:
        """Show how far the download is; called in the thread of the run."""
        if event.stage and not self.work.cancel_asked.is_set():
            self.say(f"{event.stage[0].upper()}{event.stage[1:]}")
            self.show_progress(event.done or 0, event.total or 1)

    def _hear(self, progress: Progress) -> None:
        """Show one event; called in the thread of the run."""
        self._running_label = progress.label if progress.stage == MAKING else None
        if progress.trial is not None:
            self._take_in()
        if progress.picture is not None:
            self._take_live(progress.picture)
        if self.work.cancel_asked.is_set():
            return
        self.say(_progress_words(progress))
        self.show_progress(progress.done, progress.total, _counted(progress))

    def _take_live(self, made: MadePicture) -> None:
        """Show a picture before its trial has ended."""
        from PIL import Image

        with Image.open(made.path) as picture:
            self._live[made.place] = picture.convert("RGB")
        # Not each of many small ones: the whole grid is sent, while the next one is being made.
        if time.monotonic() - self._live_shown > _LIVE_SECONDS:
            self._live_shown = time.monotonic()
            self._show_pictures()

    def _show_pictures(self, *, ended: bool = False) -> None:
        """Show what is there by now, and what is still to come."""
        known = self._shown
        done = {trial.label for trial in known.trials}
        self._live = {key: picture for key, picture in self._live.items() if key[0] not in done}
        self.viewer.update(
            dataclasses.replace(known, images={**known.images, **self._live}),
            [trial for trial in self._asked if trial.label not in done],
            None if ended else self._running_label,
            ended=ended,
        )

    def _take_in(self) -> None:
        """Read what the run's folder holds by now."""
        known = self.comparison.images if self.comparison is not None else {}
        comparison = read_run(Path(self._ran.out))
        if comparison.trials:
            self.comparison = with_pictures(comparison, known, decode=False)
            self._show_results(self.comparison)

    def _done(self, comparison: Comparison) -> None:
        self.comparison = comparison
        failed = [trial.label for trial in comparison.trials if not trial.ok]
        said = f"Done: {len(comparison.trials)} trials"
        if failed:
            said += f", of which {', '.join(failed)} didn't end well; the table says why"
        self._end(f"{said}.")

    def _cancelled(self) -> None:
        done = self.comparison.trials if self.comparison is not None else ()
        if done:
            count = f"{len(done)} of {len(self._asked)} trials are"
            self._end(f"Cancelled. {count} kept in {self._ran.out}; Resume does the rest.")
        else:
            self._end("Cancelled before the first trial had ended.")

    def _failed(self, error: BaseException) -> None:
        self.show_error(error)
        self._end("The run could not go on; the reason stands below.")

    def _end(self, said: str) -> None:
        self.cancel_button.disabled = True
        self.show_progress(0, 0)
        self.say(said)
        if self.comparison is not None:
            known = dataclasses.replace(self.comparison, images={})
            self._estimator.own = (known, *self._estimator.own)
            self._show_results(self.comparison, ended=True)
        else:
            if self._own_folder:
                _discard(Path(self._ran.out))
            self.results.value = ""
            if self._live:  # they were made, if only to be looked at
                self._show_pictures(ended=True)
            else:
                self._offer_tabs(results=False)
        self.refresh_static()

    def _free(self) -> None:
        """Let the next run begin."""
        self._running = False
        self._show_buttons()
        if self._displayed:
            self._estimate()  # there is something to judge the time by now

    def _missing(self) -> list[str]:
        """Labels of trials that the shown run asks for and that lack an end or rounds."""
        if self._ran is None or self.comparison is None:
            return []
        rounds = self.comparison.workload.repeats
        ended = {
            t.label
            for t in self.comparison.trials
            if t.status != FAILED and (t.timing is None or len(t.timing.samples) >= rounds)
        }
        return [trial.label for trial in self._asked if trial.label not in ended]

    def _resume_words(self) -> str:
        """Return what Resume goes on with where the form by now says something else."""
        try:
            asked = self._request(self.form.choice).workload
        except QuantolabError:
            return ""  # it is shown already
        own = self.comparison.workload
        free = ("revision", *(("device",) if asked.device == "auto" else ()))
        other = [
            f"{name} {_said(getattr(own, name))}, not {_said(getattr(asked, name))}"
            for name in vars(own)
            if name not in free and getattr(own, name) != getattr(asked, name)
        ]
        if not other:
            return ""
        return note(f"Resume goes on as the run was begun: {'; '.join(other)}.")

    def _new_recipes(self) -> list[str]:
        """Labels of the form's recipes that the run shown lacks, where all else is the same."""
        if self._running or self._ran is None or self.comparison is None:
            return []
        choice = self.form.choice
        try:
            workload = self._request(choice).workload
        except QuantolabError:
            return []  # it is shown already
        free = ("repeats", "revision", *(("device",) if workload.device == "auto" else ()))
        if differences(self.comparison.workload, workload, but=free):
            return []
        known = {trial.recipe for trial in self._asked}
        return [recipe.label for recipe in choice.recipes if recipe not in known]

    def _show_buttons(self) -> None:
        new = self._new_recipes() if hasattr(self, "form") else []
        self.add_button.layout.display = None if new and self._problem is None else "none"
        self.add_button.tooltip = f"Runs {', '.join(new)} too, in the folder of the run shown"
        self.run_button.disabled = self._running or self._problem is not None
        self.cancel_button.disabled = not self._running
        missing = [] if self._running else self._missing()
        self.resume_button.layout.display = None if missing else "none"
        self.resume_note.value = self._resume_words() if missing else ""
        self.resume_button.tooltip = "Does what is missing: " + ", ".join(missing)

    # --- results ---

    def _open(self, comparison: Comparison, asked: tuple[Trial, ...]) -> None:
        """Show an earlier run, and fill in the form with what it was asked by."""
        self.comparison, self._asked = comparison, asked
        choice = choice_of(comparison, asked)
        self._ran, self._live = dataclasses.replace(choice, out=comparison.folder), {}
        self.form.show(choice)
        self._show_results(comparison, ended=True)
        missing = self._missing()
        self.say(f"Missing: {', '.join(missing)}. Resume does the rest." if missing else "")

    def _show_results(self, comparison: Comparison, *, ended: bool = False) -> None:
        """Show a comparison in every tab; one that has no trial yet as an empty grid."""
        self._shown = comparison
        where = comparison.folder
        self.results.value = note(
            f"Results in {_shortest(where)}" if where else "This run is in the trash."
        )
        self._show_pictures(ended=ended)
        self.shown_table.update(results_table(comparison))
        self.take_away.update(comparison, choice_of(comparison, self._asked))
        self.advice.update(comparison)
        self._draw_plot(now=True)
        if ended:  # not before: a test that has begun is not disturbed
            self.blind.update(comparison)
        self._offer_tabs(results=True)

    def _show_script(self, label: str) -> None:
        """Write the script of a recipe and go where it is shown."""
        self.take_away.recipe.value = label
        self.take_away.make_script()
        self.tabs.selected_index = TABS.index("Take away")

    def _mark_advised(self, label: str | None) -> None:
        self.shown_table.mark(label)

    def _offer_tabs(self, *, results: bool) -> None:
        """Offer every tab, or where there is no result that of runs alone."""
        if not results:
            self.advice.layout.display = "none"
        parts = (self.viewer, self.shown_table, self.plot, self.blind, self.take_away, self.runs)
        wanted = parts if results else parts[-1:]
        if self.tabs.children != wanted:
            self.tabs.selected_index = 0
            self.tabs.children, self.tabs.titles = wanted, TABS[-len(wanted) :]
            self.tabs.selected_index = 0 if results else None

    def _run_moved(self, before: Path, now: Path | None) -> None:
        """Follow the shown run to its new place; of one in the trash its figures stay in sight."""
        if self._ran is None or Path(self._ran.out).resolve() != before:
            return
        folder = None if now is None else str(now)
        self._ran = None if folder is None else dataclasses.replace(self._ran, out=folder)
        if self.comparison is not None:
            moved = dataclasses.replace(self.comparison, folder=folder)
            # Those that weren't looked at yet are read where they lie now.
            self.comparison = moved if now is None else with_pictures(moved, {}, decode=False)
            self._show_results(self.comparison, ended=True)
        self._show_buttons()

    def _tab_chosen(self) -> None:
        if self.tabs.selected_index is None:
            return
        if self.tabs.children[self.tabs.selected_index] is self.runs:
            if not self.runs.found:
                self.runs.look()
        else:
            self._draw_plot()

    def _draw_plot(self, now: bool = False) -> None:
        """Draw the plot if it is looked at and isn't the newest: drawing takes a second."""
        comparison = self.comparison
        if comparison is None:
            self.plot.value = note("There is nothing to draw yet.")
            return
        chosen = self.tabs.selected_index
        if comparison is self._plot_of or chosen != TABS.index("Trade-off"):
            return
        self._plot_of = comparison
        frame = results_table(comparison)
        if now:  # in the thread of the run, while nothing is being timed
            self.plot.value = tradeoff_html(frame)
            return
        self._drawing.start(
            lambda: tradeoff_html(frame),
            done=lambda text: setattr(self.plot, "value", text),
            failed=self.show_error,
        )

    def _ipython_display_(self) -> None:
        super()._ipython_display_()
        self._displayed = True
        if not self._earlier and not self._running:
            self._estimate()

    def static_html(self) -> str:
        """Return the table and the grid; before there are any, the call."""
        if self.comparison is None:
            return super().static_html()
        return self.advice.sentence.value + table_html(self.table) + self.viewer.static_html()


def _read_earlier(folder: Path) -> tuple[Comparison, tuple[Trial, ...]]:
    """Return what a run's folder holds, and what it was asked for."""
    folder = folder.expanduser().absolute()
    return read(folder), read_asked(folder)


def _claimed_folder(choice: Choice) -> Path:
    """Return the folder for a run: the one that is named, or a new one that is ours alone.

    Absolute, since a cell may change the working directory while the run goes on.

    Raises
    ------
    OutputError
        If a new one can't be made.
    """
    if choice.out is not None:
        return Path(choice.out).expanduser().absolute()
    first = new_folder(choice.model).absolute()
    for number in itertools.count(1):
        folder = first if number == 1 else first.with_name(f"{first.name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue  # of another panel, begun in the same second
        except OSError as error:
            raise OutputError(
                f"results can't be written to {str(folder)!r}: {error.strerror or error}"
            ) from error
    raise AssertionError("unreachable")


def _discard(folder: Path) -> None:
    """Remove the folder of a run in which no trial has ended."""
    try:
        if (folder / RUN_FILE).exists() and not read_run(folder).trials:
            (folder / RUN_FILE).unlink()
        withdraw((folder / WORK, folder))
    except (OSError, QuantolabError):
        pass  # there is something in it: it stays


def _is_here(model: str) -> bool:
    """Whether a model's weights lie in a folder of the user's, not on the Hub."""
    try:
        return model == DEMO or Path(model).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False  # no folder can be called so


def _progress_words(progress: Progress) -> str:
    if progress.doing:
        said = progress.says
        return f"{said[0].upper()}{said[1:]}…"
    if progress.label is None:
        return f"{progress.stage[0].upper()}{progress.stage[1:]}…"
    togo = progress.own_eta_seconds
    rest = "" if not togo else f", {format_roughly(togo)} to go"
    return f"{progress.label}: {progress.says}{rest}…"


def _shortest(folder: str) -> str:
    """Return a folder as seen from here, if it lies below."""
    path, here = Path(folder).resolve(), Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(folder)


def _said(value: Any) -> str:
    """Return a value of a workload as the form has it."""
    if isinstance(value, tuple):
        sides = len(value) == 2 and all(isinstance(side, int) for side in value)
        return ("x" if sides else ", ").join(map(str, value))
    return "the model's own" if value is None else str(value)


def _counted(progress: Progress) -> str:
    said = f"{progress.done} of {progress.total} pictures"
    if progress.eta_seconds is not None:
        said += f", {format_roughly(progress.eta_seconds)} to go"
    return said
