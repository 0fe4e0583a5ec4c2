"""The report of a run that did not come to its end, where signs of collapse matter most."""

from __future__ import annotations

from collections.abc import Callable

from experiments.measuring import note_stop
from experiments.parts import Run
from experiments.report import write_report
from experiments.run_folder import RunFolder


def report_so_far(folder: RunFolder, run: Run | None, say: Callable[..., None]) -> None:
    """Without figures after training; of a run without an iteration there is nothing to report. `run`: its summary is written first; None where it
    never began, or said all that there is to say.

    Raises nothing: what ended the run is what its user has to hear of, and this is said beside it.
    """
    try:
        if run is not None:
            note_stop(run)
        if not folder.metrics():
            return
        write_report(folder)
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        say(f"warning: no report of what there is was written: {type(error).__name__}: {said}", style="yellow")
        return
    say(f"report of what there is: {folder.report}")
