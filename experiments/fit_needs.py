"""`r1-router fit-needs [embedder=NAME] [paraphrases=FILE.yaml] [output=FILE.json]`: fit the need matcher to an embedder.

Fits the weights of rollout/need_matcher.py, and prints how well it recognises relations that the fit has not seen. Set
`reward.need_calibration=FILE.json` to use the result.

    r1-router fit-needs embedder=minilm output=need_calibration.json
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.command_line.entry_point import command
from experiments.command_line.terminal import Console
from experiments.config.reading import read_settings
from rollout.fit_needs import PARAPHRASES, fitted, recognised, without_paraphrases
from rollout.need_matcher import NeedMatcher


@dataclass
class FitSettings:
    embedder: str = "minilm"
    """Name of a text embedder: see docs/05_knowledge_bases.md."""
    paraphrases: str = str(PARAPHRASES)
    """YAML file like rollout/need_files/paraphrases.yaml, for another language or other relations."""
    output: str = "need_calibration.json"
    """File to write."""


@command
def main(arguments: list[str]) -> int:
    console = Console(soft_wrap=True)
    settings = read_settings(FitSettings, arguments)
    calibration = fitted(settings.embedder, Path(settings.paraphrases))
    matcher = NeedMatcher(without_paraphrases(calibration))
    Path(settings.output).write_text(json.dumps(asdict(calibration), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for section in ("fit", "measured"):
        right, wrong = recognised(matcher, section, Path(settings.paraphrases))
        console.print(f"{section:>8} relations: {right:.1%} of the paraphrases recognised, {wrong:.1%} of the hard negatives")
    console.print(f"written: {settings.output}; use it with reward.need_calibration={settings.output}")
    return 0
