"""Events of an episode as data."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from episodes import CAPITAL, episode, malformed, question, step, stop, turn
from PIL import Image as PillowImage

from experiments.serving.episode_events import PathData
from experiments.serving.replica import episode_config
from experiments.serving.schemas import PolicyReference, Refusal, RouteJob, RouteRequest
from retrieval_actors.pictures import data_url, small_picture
from retrieval_actors.records import Passage
from rollout.confidence import Calibration
from rollout.config import RolloutConfig
from rollout.episode_pool import EpisodeEvent
from rollout.records import State, Step, Trajectory, TurnGroup

JOB = RouteJob(RouteRequest(question="What is the capital?"), "r", None, ("text",), PolicyReference("p", 3), seed=0, deadline_s=9)


def group(kind: str) -> TurnGroup:
    return TurnGroup(State(kind, np.zeros(10, np.int32), None, question()), (turn(kind, "<think>so</think><answer>Tasla</answer>"),))


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    PillowImage.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_a_path_is_told_step_by_step_and_whole():
    path, whole = PathData(JOB), step("text", "Tasla")
    told = [
        path.event(EpisodeEvent(0, "planned", Step(whole.plan, whole.action), group("plan")), 0.5),
        path.event(EpisodeEvent(0, "searched", Step(whole.plan, whole.action, whole.passages)), 0.75),
        path.event(EpisodeEvent(0, "answered", whole, group("answer")), 1.75),
        path.event(EpisodeEvent(0, "planned", stop(), group("plan")), 2.0),
    ]
    trajectory = Trajectory(question(), (whole, stop()), turn("final", "<think>so</think><answer>Tasla</answer>"), "Tasla", ())
    last = path.event(EpisodeEvent(0, "finished", group=group("final"), trajectory=trajectory), 2.5)
    assert [(event["event"], event["step"], event["seconds"]) for event in told] == [
        ("planned", 0, 0.5),
        ("searched", 0, 0.25),
        ("answered", 0, 1.0),
        ("planned", 1, 0.25),
    ]
    first, second = last["steps"]
    assert (first["decision"], first["sub_question"], first["kb"], first["sub_answer"]) == ("retrieve", CAPITAL.query, "text", "Tasla")
    assert first["seconds"] == {"plan": 0.5, "search": 0.25, "answer": 1.0}
    assert [passage["id"] for passage in first["passages"]] == ["p1", "p2"]
    assert (second["decision"], second["thought"]) == ("stop", "I know enough.")
    assert (last["answer"], last["retrievals"], last["policy_version"], last["seconds"]) == ("Tasla", 1, 3, 2.5)
    assert last["usage"] == {"prompt_tokens": 40, "completion_tokens": 8, "total_tokens": 48}


def finished(answer: str, calibration: Calibration | None, **options) -> dict:
    whole = replace(step("text", answer), support=(0.9, 0.0))
    path = PathData(replace(JOB, request=RouteRequest(question="What is the capital?", **options)), calibration)
    path.event(EpisodeEvent(0, "planned", whole, group("plan")), 0.5)
    path.event(EpisodeEvent(0, "searched", whole), 0.6)
    path.event(EpisodeEvent(0, "answered", whole, group("answer")), 0.7)
    return path.event(EpisodeEvent(0, "finished", group=group("final"), trajectory=episode(question(), whole, stop(), answer=answer)), 1)


def test_an_answer_has_a_confidence_and_one_with_too_little_is_refused_with_a_reason():
    sure, unsure = Calibration({"named": 4.0}, -2.0), Calibration({}, -2.0)
    told = finished("Tasla", sure, min_confidence=0.5)
    assert (told["answer"], told["confidence"], told["reason"]) == ("Tasla", 0.8808, None)
    assert [each["cited"] for each in told["steps"]] == [["p1"]]
    refused = finished("Tasla", unsure, min_confidence=0.5)
    assert (refused["answer"], refused["confidence"], refused["reason"]) == ("unknown", 0.1192, "not read with confidence")
    assert finished("Tasla", unsure, min_confidence=0.1)["answer"] == "Tasla"
    assert finished("unknown", sure)["reason"] == "nothing found"
    uncalibrated = finished("Tasla", None, min_confidence=0.9)
    assert (uncalibrated["answer"], uncalibrated["confidence"], uncalibrated["reason"]) == ("Tasla", None, None)


def test_a_plan_that_cannot_be_read_is_told_as_such():
    assert PathData(JOB).event(EpisodeEvent(0, "planned", malformed(), group("plan")), 1)["decision"] == "malformed"


def test_a_knowledge_base_that_is_away_makes_no_answer():
    """An episode goes on without the passages, for training; a service must not."""
    path, whole = PathData(JOB), step("text", "Tasla")
    path.event(EpisodeEvent(0, "planned", Step(whole.plan, whole.action), group("plan")), 0.5)
    away = Step(whole.plan, whole.action, (Passage("error", "", kb="text", error="text did not answer within 1 s"),))
    with pytest.raises(Refusal, match="text did not answer") as refusal:
        path.event(EpisodeEvent(0, "searched", away), 0.75)
    assert (refusal.value.status, refusal.value.code) == (503, "knowledge_base_unavailable")


@pytest.mark.parametrize(
    ("error", "status"),
    [("question r: no answer within its deadline", 504), ("question my-deadline-7: its plan prompt has 9000 tokens", 422)],
)
def test_an_episode_that_failed_says_whose_fault_it_was(error, status):
    with pytest.raises(Refusal) as refusal:
        PathData(JOB).event(EpisodeEvent(0, "failed", error=error), 1)
    assert refusal.value.status == status


def test_a_request_changes_only_what_it_says_and_gets_no_more_tokens_than_there_are():
    served = RolloutConfig(max_steps=3, passages=3, max_new_tokens=64, temperature=0.0)
    assert episode_config(served, RouteRequest(question="Q")) == served
    found = episode_config(served, RouteRequest(question="Q", max_steps=0, k=5, temperature=0.7, max_tokens=900))
    assert (found.max_steps, found.passages, found.temperature, found.max_new_tokens) == (0, 5, 0.7, 64)


def test_a_thumbnail_is_small_and_a_small_picture_stays_as_it_is():
    large, small = png(900, 600), png(30, 20)
    assert data_url(small_picture(small)) == data_url(small)
    made = data_url(small_picture(large))
    assert made is not None
    assert made.startswith("data:image/jpeg;base64,")
    assert len(made) < 30_000
    assert small_picture(b"no picture") is None
