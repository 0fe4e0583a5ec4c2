"""`r1-router gate RUN_OR_POLICY [CONFIG.yaml] [key=value ...]`: test a policy with broken knowledge bases.

RUN_OR_POLICY is a policy folder, or a run folder, whose configuration and best policy are used. The held-out questions are asked with
healthy knowledge bases, and again with such as are empty, answer at random, are stale, contradict each other, fail, are slow, or give orders.
What the policy has to do then, what it does, and whether it passed is stored with it, in gate.yaml and in its model card (README.md): the
report of the run shows it, and `r1-router serve` warns of a policy that did not pass. Exit code 1: it did not. data.faults trains with such
knowledge bases.

    r1-router gate runs/laptop evaluation.questions=256
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import yaml

from experiments.command_line.entry_point import FAILED, command
from experiments.command_line.terminal import Console
from experiments.evaluate import read_test
from experiments.evaluation.gate import gate
from experiments.evaluation.result_tables import gate_table
from experiments.report.paper_tables import markdown
from experiments.report.report_page import write_report
from experiments.tracking.fingerprints import git_commit
from experiments.tracking.gate_file import CARD, GATE
from experiments.tracking.run_folder import RunFolder, plain, write_whole

BEGIN, END = "<!-- written by r1-router gate -->\n", "<!-- end of the gate -->\n"


@command
def main(arguments: list[str]) -> int:
    console = Console()
    config, policy, dataset, method = read_test(arguments, "gate")
    folder, faults = gate(config, policy, dataset, method, console)
    found = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": git_commit(), "data": config.data.name, "faults": faults}
    table = gate_table(found, f"{policy}: broken knowledge bases, {config.data.name}, 95 % intervals")
    console.print(table)
    text = yaml.safe_dump(plain(found), sort_keys=False)
    (folder / GATE).write_text(text, encoding="utf-8")
    if Path(policy).is_dir():  # not a name on the hub
        write_whole(Path(policy) / GATE, text)
        card = Path(policy) / CARD
        before, _, rest = (card.read_text(encoding="utf-8") if card.is_file() else f"# {Path(arguments[0]).name}\n").partition(BEGIN)
        section = f"## Broken knowledge bases\n\n{markdown(table)}"
        write_whole(card, f"{before.rstrip()}\n\n{BEGIN}{section}{END}{rest.partition(END)[2]}")
    if (Path(arguments[0]) / "config.yaml").is_file():
        write_report(RunFolder.open(arguments[0]))
    failed = [kind for kind, row in faults.items() if not row["passed"]]
    said = f"failed: {', '.join(failed)}; data.faults trains with such knowledge bases" if failed else "passed"
    console.print(f"{said}; question by question: {folder}", style="red" if failed else "green", soft_wrap=True)
    return FAILED if failed else 0
