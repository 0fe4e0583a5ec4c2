"""The commands of `r1-router`, and their `--help`: docstring and settings, read from the source, as importing torch and Ray takes seconds."""

import ast
import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.padding import Padding
from rich.text import Text

from experiments.command_line.terminal import Console

ROOT = Path(__file__).parents[2]
READABLE: dict[str, str | Callable[[re.Match[str]], str]] = {  # patterns in the source of a type -> how help shows them
    r"Literal\[(.*?)\]": lambda found: found[1].replace("'", "").replace(", ", " | "),
    r"Annotated\[(.*?), Field\((.*?)\)\]": r"\1 \2",
    r"Positive(Int|Float)": lambda found: f"{found[1].lower()} > 0",
    r"NonNegative(Int|Float)": lambda found: f"{found[1].lower()} ≥ 0",
    r"\b([gl][te])=": lambda found: {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ "}[found[1]],
    r"\bNone\b": "null",
}
RUN = ("", "experiments.config.TrainConfig")


@dataclass(frozen=True)
class Command:
    module: str  # its `main(arguments: list[str]) -> int` is called
    settings: tuple[tuple[str, str], ...] = ()  # (what its keys begin with, the dataclass, also where it is imported) of each group
    function: str = ""  # whose docstring begins with "`usage`: purpose", and `main`'s first argument; empty: the docstring is the module's

    @property
    def docstring(self) -> tuple[str, str]:
        """(usage, purpose and more)."""
        tree = _tree(self.module)
        functions = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == self.function)
        usage, _, text = (ast.get_docstring(next(functions, tree)) or "").removeprefix("`").partition("`: ")
        return usage, text[:1].upper() + text[1:]


COMMANDS = {
    "train": Command("experiments.train", (RUN,)),
    "evaluate": Command("experiments.evaluate", (RUN,)),
    "compare": Command("experiments.compare"),
    "gate": Command("experiments.gate", (RUN,)),
    "gaps": Command("experiments.gaps", (RUN,)),
    "serve": Command("experiments.serve", (("serve.", "experiments.serving.settings.ServeSettings"), RUN)),
    "kb build": Command("experiments.kb", (("", "experiments.kb.BuildSettings"),), "build"),
    "kb search": Command("experiments.kb", (("", "experiments.kb.SearchSettings"),), "search"),
    "kb status": Command("experiments.kb", (), "status"),
    "find-steps": Command("experiments.find_steps", (RUN,)),
    "cold-start": Command("experiments.cold_start", (("", "experiments.cold_start.ColdStartConfig"),)),
    "fetch": Command("experiments.fetch", (("", "experiments.fetch.FetchSettings"),)),
    "doctor": Command("experiments.doctor", (RUN,)),
    "bench": Command("experiments.bench", (("", "experiments.bench.BenchSettings"),)),
    "study": Command("experiments.study", (("study.", "experiments.studies.plan.StudySettings"), RUN)),
    "upload": Command("experiments.upload", (("tracking.", "experiments.config.TrackingConfig"),)),
    "replay": Command("experiments.replay", (("", "experiments.replay.ReplaySettings"),)),
    "report": Command("experiments.report.report_page"),
    "results": Command("experiments.results", (("", "experiments.results.ResultsSettings"),)),
    "fit-needs": Command("experiments.fit_needs", (("", "experiments.fit_needs.FitSettings"),)),
}


class Setting(NamedTuple):
    key: str  # dotted
    type: str
    default: str
    sentence: str


def run_command(name: str, arguments: list[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print_help(name)
        return 0
    command = COMMANDS[name]
    return importlib.import_module(command.module).main([command.function, *arguments] if command.function else arguments)


def print_help(name: str) -> None:
    usage, text = COMMANDS[name].docstring
    console = Console()
    console.print(Text.assemble(("Usage: ", "bold"), usage, "\n\n", text))
    section = None
    for setting in settings_of(name):
        if section != (section := setting.key.rpartition(".")[0]):
            console.print(Text(f"\n{section or 'settings'}", style="bold"))
        console.print(Text.assemble("  ", (setting.key, "cyan"), f"  {setting.type} = {setting.default}"))
        if setting.sentence:
            console.print(Padding(Text(setting.sentence, style="dim"), (0, 0, 0, 6)))


def settings_of(name: str) -> Iterator[Setting]:
    """Every setting of a command; those of the top level first."""
    for prefix, path in COMMANDS[name].settings:
        module, _, schema = path.rpartition(".")
        yield from sorted(_settings(module, schema, prefix), key=lambda setting: "." in setting.key.removeprefix(prefix))


def _settings(module: str, name: str, prefix: str) -> Iterator[Setting]:
    found, module = _class(module, name)
    for here, below in zip(found.body, [*found.body[1:], None], strict=True):
        if not isinstance(here, ast.AnnAssign) or not isinstance(here.target, ast.Name):
            continue
        key, kind = prefix + here.target.id, ast.unparse(here.annotation)
        sentence = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else ""
        with contextlib.suppress(LookupError, OSError):  # a class of ours is a section
            yield from _settings(module, kind, f"{key}.")
            continue
        yield Setting(key, _type(here.annotation), _default(here.value), " ".join(str(sentence).split()))


@functools.cache
def _tree(module: str) -> ast.Module:
    path = ROOT / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))


def _class(module: str, name: str) -> tuple[ast.ClassDef, str]:
    """The class that `module` defines or imports, and the module that defines it. Raises LookupError or OSError where there is none of ours."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, module
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return _class(node.module or "", name)
    raise LookupError(f"{module} has no class {name}")


def _type(annotation: ast.expr) -> str:
    source = ast.unparse(annotation)
    for pattern, shown in READABLE.items():
        source = re.sub(pattern, shown, source)
    return source


def _default(value: ast.expr | None) -> str:
    """As it would be written on the command line; an expression of names as its source."""
    match value:
        case None:
            return ""
        case ast.Call(_, _, [ast.keyword("default_factory", ast.Lambda(_, body))]):
            return _default(body)
        case ast.Call(_, _, [ast.keyword("default_factory", ast.Name("dict" | "list" as kind))]):
            return "{}" if kind == "dict" else "[]"
    try:
        return yaml.safe_dump(ast.literal_eval(value), default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
    except ValueError:
        return ast.unparse(value)
