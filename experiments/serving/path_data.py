"""One episode as data for the caller: an event for everything that happens, and the whole path at the end.

Events are dictionaries with the key `event`: `planned`, `searched`, `answered` (with the number of the step, from 0), and one last `finished`
or `error`.
"""

from __future__ import annotations

import re
from typing import Any

from experiments.serving.jobs import RouteJob
from experiments.serving.pictures import thumbnail
from experiments.serving.refusals import Refusal, too_late, unavailable
from retrieval_actors.records import Passage
from rollout.episode_pool import EpisodeEvent
from rollout.records import Trajectory, Turn, TurnGroup

THOUGHT = re.compile(r"<think>(.*?)</think>", re.S)


class PathData:
    """Takes the events of one episode as they come, and tells them as data."""

    def __init__(self, job: RouteJob):
        self._job = job
        self._steps: list[dict[str, Any]] = []
        self._before = 0.0
        self._tokens = [0, 0]

    def told(self, event: EpisodeEvent, seconds: float) -> dict[str, Any]:
        """`seconds`: since the question came in. Raises Refusal for an episode that failed, or that searched in vain: an answer that was made
        without what a knowledge base knows would be a wrong one."""
        spent, self._before = seconds - self._before, seconds
        if event.group:
            self._count(event.group)
        if event.kind == "planned":
            return self._planned(event, spent)
        if event.kind == "searched":
            return self._searched(event, spent)
        if event.kind == "answered":
            assert event.step is not None
            more = {
                "answer_thought": thought(event.step.answer),
                "sub_answer": event.step.exchange.answer if event.step.exchange else None,
            }
            return self._add("answered", "answer", spent, more)
        if event.kind == "finished":
            assert event.trajectory is not None
            return {"event": "finished", **self._whole(event.trajectory, seconds)}
        raise self._failure(event.error or "")

    def _planned(self, event: EpisodeEvent, spent: float) -> dict[str, Any]:
        assert event.step is not None
        action = event.step.action
        asked = action if action and action.kb else None
        self._steps.append(
            {
                "thought": thought(event.step.plan),
                "decision": "malformed" if action is None else "retrieve" if asked else "stop",
                "sub_question": asked.query if asked else None,
                "kb": asked.kb if asked else None,
                "passages": [],
                "answer_thought": None,
                "sub_answer": None,
                "seconds": {},
            }
        )
        first = {key: self._steps[-1][key] for key in ("thought", "decision", "sub_question", "kb")}
        return self._add("planned", "plan", spent, first)

    def _searched(self, event: EpisodeEvent, spent: float) -> dict[str, Any]:
        assert event.step is not None
        for passage in event.step.passages:
            if passage.error:
                raise unavailable("knowledge_base_unavailable", f"knowledge base {passage.kb}: {passage.error}")
        return self._add("searched", "search", spent, {"passages": [self._passage(passage) for passage in event.step.passages]})

    def _add(self, name: str, phase: str, spent: float, more: dict[str, Any]) -> dict[str, Any]:
        step = self._steps[-1]
        step.update(more)
        step["seconds"][phase] = round(spent, 4)
        return {"event": name, "step": len(self._steps) - 1, **more, "seconds": round(spent, 4)}

    def _passage(self, passage: Passage) -> dict[str, Any]:
        told: dict[str, Any] = {
            "id": passage.id,
            "title": passage.title,
            "text": passage.text,
            "score": round(passage.score, 6),
            "error": "",
        }
        return told | {"image": thumbnail(passage.image) if self._job.pictures and passage.image else None}

    def _count(self, group: TurnGroup) -> None:
        self._tokens[0] += len(group.state.prompt_ids)
        self._tokens[1] += len(group.chosen.response_ids)

    def _whole(self, trajectory: Trajectory, seconds: float) -> dict[str, Any]:
        final = trajectory.final
        return {
            "id": self._job.request_id,
            "question": self._job.question,
            "answer": trajectory.answer,
            "thought": thought(final),
            "steps": self._steps,
            "retrievals": trajectory.retrievals,
            "finish_reason": "length" if final and final.finish_reason == "length" else "stop",
            "policy_version": self._job.policy.version,
            "usage": {
                "prompt_tokens": self._tokens[0],
                "completion_tokens": self._tokens[1],
                "total_tokens": sum(self._tokens),
            },
            "seconds": round(seconds, 4),
        }

    def _failure(self, error: str) -> Refusal:
        if "deadline" in error:
            return too_late(self._job.deadline_s, self._job.deadline_asked)
        # What else the pool refuses is a prompt that can never fit.
        return Refusal(422, "context_length_exceeded", error)


def thought(turn: Turn | None) -> str | None:
    match = THOUGHT.search(turn.text) if turn else None
    return match[1].strip() if match else None
