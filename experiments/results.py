"""`r1-router results add RUN [RUN ...] [file=docs/13_results.md]`: put finished runs into the leaderboard, a table of recipes in a Markdown page.

RUN is a run folder, or a name in runs/. A row has recipe, policy, hardware, minutes to the result, results with intervals, commit and command;
adding a run again replaces its row.

    r1-router results add laptop
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError
from experiments.config.reading import is_setting, read_settings
from experiments.report.leaderboard import add_to_leaderboard
from experiments.tracking.run_folder import RunFolder


@dataclass
class ResultsSettings:
    file: str = "docs/13_results.md"
    """The page, with a line where the leaderboard begins and one where it ends."""


@command
def main(arguments: list[str]) -> int:
    settings = read_settings(ResultsSettings, [argument for argument in arguments if is_setting(argument)])
    words = [argument for argument in arguments if not is_setting(argument)]
    if words[:1] != ["add"] or not words[1:]:
        raise RunConfigError("which run? r1-router results add RUN [file=docs/13_results.md]")
    for run in [RunFolder.open(path if (path := Path(name)).is_dir() else Path("runs") / name) for name in words[1:]]:
        recipe = add_to_leaderboard(run, Path(settings.file))
        Console().print(f"{settings.file}: {run.path} is a row of {recipe}", soft_wrap=True)
    return 0
