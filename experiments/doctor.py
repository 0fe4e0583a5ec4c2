"""`r1-router doctor [CONFIG.yaml] [key=value ...] [--json]`: check whether this machine or cluster has everything that a run needs.

Exit code 0: a run can start (perhaps with warnings); 1: something has to be fixed; 2: the configuration itself is wrong. Nothing is started,
downloaded or stored. `--json` prints the findings as JSON.

    r1-router doctor laptop.yaml
"""

import json
import sys
from contextlib import redirect_stdout

from experiments.cluster.doctor_checks import all_findings
from experiments.cluster.findings import Finding, any_fails, findings_table, verdict
from experiments.command_line.entry_point import WRONG_INPUT, command
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, load_config


@command
def main(arguments: list[str]) -> int:
    console, as_json = Console(), "--json" in arguments
    try:
        config = load_config([argument for argument in arguments if argument != "--json"])
    except RunConfigError as error:
        if not as_json:
            raise
        print(json.dumps([Finding("configuration", "cannot be used", str(error)).as_json()]))
        return WRONG_INPUT
    with redirect_stdout(sys.stderr):  # DeepSpeed prints when it is imported
        findings = list(all_findings(config))
    if as_json:
        print(json.dumps([finding.as_json() for finding in findings], indent=1))
    else:
        console.print(findings_table(findings))
        console.print(f"{verdict(findings)}{'' if any_fails(findings) else ': ready'}")
    return 1 if any_fails(findings) else 0
