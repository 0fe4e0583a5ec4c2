"""`r1-router COMMAND [ARGUMENTS] [CONFIG.yaml] [dotted.key=value ...]`: all commands (`command_line/commands.py`), with help and shell completion.

A command's module is imported only when it runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from experiments.command_line.commands import COMMANDS, run_command, settings_of

CONFIGS = Path(__file__).parent / "configs"
PASS_THROUGH = {"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}  # the command reads all itself

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Train, measure and serve a policy that decides when and where to retrieve."
)
kb = typer.Typer(no_args_is_help=True, help="Build, search and show knowledge bases.")
app.add_typer(kb, name="kb")


def completions(name: str) -> Callable[[str], list[str]]:
    """The setting keys of a command, and the shipped configurations."""

    def complete(incomplete: str) -> list[str]:
        configs = sorted(path.name for path in CONFIGS.glob("*.yaml")) if "CONFIG" in COMMANDS[name].docstring[0] else []
        return [word for word in [*(f"{setting.key}=" for setting in settings_of(name)), *configs] if word.startswith(incomplete)]

    return complete


def _add(name: str) -> None:
    def execute(arguments: Annotated[list[str] | None, typer.Argument(autocompletion=completions(name))] = None) -> None:
        raise typer.Exit(run_command(name, arguments or []))

    group, short = (kb, name.removeprefix("kb ")) if name.startswith("kb ") else (app, name)
    purpose = COMMANDS[name].docstring[1].partition("\n\n")[0]
    group.command(short, help=purpose, context_settings=PASS_THROUGH, add_help_option=False)(execute)


for _name in COMMANDS:
    _add(_name)


if __name__ == "__main__":
    app()
