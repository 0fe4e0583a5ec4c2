"""One episode as events for the client: `rewritten` for a follow-up in a chat; `planned`, `searched` and `answered` of each step; and at the end
`finished` with the whole path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from experiments.serving.schemas import PHASES, Refusal, RouteJob, unavailable
from retrieval_actors.pictures import data_url, small_picture
from retrieval_actors.records import Passage
from rollout.confidence import Calibration, cited, is_refusal, why_refused
from rollout.episode_pool import EpisodeEvent
from rollout.records import UNKNOWN, Step, Trajectory, Turn

THOUGHT = re.compile(r"<think>(.*?)</think>", re.S)


class PathData:
    """Converts the events of one episode to dictionaries."""

    def __init__(self, job: RouteJob, calibration: Calibration | None = None):
        """`calibration`: of the policy; None: its answers have no confidence."""
        self._job, self._calibration, self._before = job, calibration, 0.0
        self._steps: list[dict[str, Any]] = []
        self._understood_as: str | None = None
        self._prompt_tokens = self._completion_tokens = 0

    def event(self, event: EpisodeEvent, seconds: float) -> dict[str, Any]:
        """`seconds`: since the question arrived. Raises Refusal for an episode or a search that failed: without passages the answer is wrong."""
        spent, self._before = seconds - self._before, seconds
        if event.group:
            self._prompt_tokens += len(event.group.state.prompt_ids)
            self._completion_tokens += len(event.group.chosen.response_ids)
        if event.kind == "failed":
            late = (event.error or "").endswith("no answer within its deadline")  # the other reason: a prompt that can never fit
            raise Refusal(*((504, "deadline_exceeded") if late else (422, "context_length_exceeded")), event.error or "")
        if event.trajectory:
            return {"event": "finished", **self._whole(event.trajectory, seconds)}
        if event.kind == "rewritten":
            self._understood_as = event.question
            return {"event": "rewritten", "understood_as": event.question, "seconds": round(spent, 4)}
        assert event.step is not None
        if event.kind == "planned":
            self._steps.append({"passages": [], "answer_thought": None, "sub_answer": None, "cited": None, "seconds": {}})
        fields = {"planned": _planned, "searched": self._searched, "answered": _answered}[event.kind](event.step)
        self._steps[-1].update(fields)
        self._steps[-1]["seconds"][PHASES[event.kind]] = round(spent, 4)
        return {"event": event.kind, "step": len(self._steps) - 1, **fields, "seconds": round(spent, 4)}

    def _searched(self, step: Step) -> dict[str, Any]:
        return {"passages": passages_data(step.passages, bool(self._job.request.pictures))}

    def _whole(self, trajectory: Trajectory, seconds: float) -> dict[str, Any]:
        final, prompt, completion = trajectory.final, self._prompt_tokens, self._completion_tokens
        confidence = self._calibration.confidence(trajectory) if self._calibration else None
        low = confidence is not None and confidence < (self._job.request.min_confidence or 0.0)
        return {
            "id": self._job.request_id,
            "question": self._job.request.question.strip(),
            "understood_as": self._understood_as,
            "answer": UNKNOWN if low else trajectory.answer,
            "confidence": None if confidence is None else round(confidence, 4),
            "reason": why_refused(trajectory) if low or is_refusal(trajectory.answer) else None,
            "thought": _thought(final),
            "steps": self._steps,
            "retrievals": trajectory.retrievals,
            "finish_reason": "length" if final and final.finish_reason == "length" else "stop",
            "policy_version": self._job.policy.version,
            "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
            "seconds": round(seconds, 4),
        }


def passages_data(passages: Sequence[Passage], pictures: bool = False) -> list[dict[str, Any]]:
    """`pictures`: with a small version of each one's picture. Raises Refusal for a search that failed."""
    if error := next((passage for passage in passages if passage.error), None):
        raise unavailable("knowledge_base_unavailable", f"knowledge base {error.kb}: {error.error}")
    return [_passage(passage, pictures) for passage in passages]


def _passage(passage: Passage, pictures: bool) -> dict[str, Any]:
    small = small_picture(passage.image) if pictures and passage.image else None
    text = {"id": passage.id, "title": passage.title, "text": passage.text, "score": round(passage.score, 6), "error": ""}
    return text | {"image": data_url(small) if small else None}


def _planned(step: Step) -> dict[str, Any]:
    query, kb = (step.action.query, step.action.kb) if step.action and step.action.kb else (None, None)
    decision = "malformed" if step.action is None else "retrieve" if kb else "stop"
    return {"thought": _thought(step.plan), "decision": decision, "sub_question": query, "kb": kb}


def _answered(step: Step) -> dict[str, Any]:
    found = {"answer_thought": _thought(step.answer), "sub_answer": step.exchange.answer if step.exchange else None}
    return found | {"cited": [passage.id for passage in cited(step)] if step.support else None}


def _thought(turn: Turn | None) -> str | None:
    match = THOUGHT.search(turn.text) if turn else None
    return match[1].strip() if match else None
