"""How far to trust an answer: what its episode shows of it, the probability that it is right, the passages that it cites, and why it is refused.

    confidence = sigmoid(weights . signals + bias)

The weights are fitted on validation questions (experiments/evaluation/confidence.py), and stand beside the policy's own in its folder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import FiniteFloat, TypeAdapter

from retrieval_actors.records import Passage
from rollout.need_matcher import mentions, names_in
from rollout.records import Step, Trajectory, Turn
from rollout.turn_parser import is_unknown, normalise

FILE = "confidence.json"
CITED = 0.1  # a passage is cited if leaving it out lowers the probability of the answer turn by this much
ASKING = frozenset(
    "what which who whom whose when where why how many much is are was were did does do has have had of in on at by for from to with".split()
)
NOTHING_FOUND, DISAGREE, NOT_CONFIDENT = "nothing found", "sources disagree", "not read with confidence"


@dataclass(frozen=True)
class Calibration:
    weights: dict[str, FiniteFloat]  # name of a signal -> its weight
    bias: FiniteFloat

    def confidence(self, trajectory: Trajectory) -> float:
        """Probability that the answer is right, in [0, 1]; 0 if it is `unknown` or malformed."""
        if is_refusal(trajectory.answer):
            return 0.0
        found = signals(trajectory)
        score = self.bias + sum(weight * found[name] for name, weight in self.weights.items())
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


def read_calibration(folder: str | Path) -> Calibration | None:
    """That of a policy, or of an evaluation; None where none was fitted. Raises ValueError, one line, for a file with other contents."""
    file = Path(folder) / FILE
    try:
        return TypeAdapter(Calibration).validate_json(file.read_bytes()) if file.is_file() else None
    except ValueError as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}; remove it, and fit another one with r1-router evaluate") from None


def write_calibration(folder: str | Path, calibration: Calibration | None) -> None:
    """None: removes an earlier one, of other weights."""
    file = Path(folder) / FILE
    file.write_bytes(TypeAdapter(Calibration).dump_json(calibration, indent=2)) if calibration else file.unlink(missing_ok=True)


def is_refusal(answer: str) -> bool:
    return not answer or is_unknown(answer)


def signals(trajectory: Trajectory) -> dict[str, float]:
    """What speaks for and against the answer. Log-probs are means over the tokens of a turn, in nats; of the steps that found a sub-answer, each
    signal is that of the weakest one."""
    steps = _answered(trajectory)
    return {
        "final": _logprob(trajectory.final),
        "read": min((_logprob(step.answer) for step in steps), default=0.0),
        "support": min((max(step.support, default=0.0) for step in steps), default=0.0),
        "named": min(map(_named, steps), default=0.0),
        "missing": max(map(_missing, steps), default=0.0),
        "nothing": float(not steps),
        "disagree": float(_disagree(trajectory)),
    }


def why_refused(trajectory: Trajectory) -> str:
    """The reason to refuse the answer of this episode. Found is a sub-answer in a passage with every name that its query asks about."""
    if not (steps := _answered(trajectory)) or min(map(_named, steps)) < 1:
        return NOTHING_FOUND
    return DISAGREE if _disagree(trajectory) else NOT_CONFIDENT


def cited(step: Step) -> list[Passage]:
    """The passages of a step that its sub-answer needs; none where `support` was not measured."""
    return [passage for passage, support in zip(step.passages, step.support, strict=False) if support >= CITED]


def _answered(trajectory: Trajectory) -> list[Step]:
    return [step for step in trajectory.steps if step.answer and step.exchange and not is_unknown(step.exchange.answer)]


def _logprob(turn: Turn | None) -> float:
    return float(turn.logprobs.mean()) if turn and len(turn.logprobs) else 0.0


def _holding(step: Step) -> list[str]:
    """The passages that hold the sub-answer."""
    texts = [f"{passage.title} {passage.text}" for passage in step.passages]
    return [text for text in texts if step.exchange and mentions(text, (step.exchange.answer,))]


def _named(step: Step) -> float:
    """The largest share of the query's names and numbers in a passage that holds the sub-answer; 0 if none does."""
    names = names_in(step.exchange.query if step.exchange else "")
    return max((mentions(text, names) for text in _holding(step)), default=0.0)


def _missing(step: Step) -> float:
    """How many words of the query, `ASKING` ones apart, are not in the passage that holds the sub-answer and most of them."""
    words = set(normalise(step.exchange.query if step.exchange else "").split()) - ASKING
    return float(min((len(words - set(normalise(text).split())) for text in _holding(step)), default=len(words)))


def _disagree(trajectory: Trajectory) -> bool:
    """Whether a query was answered in two ways."""
    found = {(normalise(e.query), normalise(e.answer)) for step in _answered(trajectory) if (e := step.exchange)}
    return len({query for query, _ in found}) < len(found)
