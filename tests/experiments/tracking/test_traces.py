"""Episodes as MLflow traces, in a real store: what a trace holds, where the traces of a run are, and that nothing is written twice."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from episodes import episode, question, step, stop, turn
from made_run import config_in, finished, row

from experiments.tracking import mlflow_tracker as tracker_file
from experiments.tracking.evaluation_runs import TRACES, send_evaluation
from experiments.tracking.mlflow_tracker import Tracker
from experiments.tracking.run_folder import RunFolder
from experiments.tracking.traces import AFTER, BEFORE, TRAINING, append, trace_line
from experiments.upload import upload
from rollout.records import ScoredTurn, State, Trajectory, Turn, TurnGroup, TurnReward

PLAN_REWARD = TurnReward(0.7, {"routing": 1.0, "query": 0.4}, {"routing": 0.5, "query": 0.2})


def grouped(number: int, answer: str = "Tasla") -> tuple[Trajectory, list[ScoredTurn]]:
    """An episode that searches once and answers, with the states of its turns and their rewards."""
    made = episode(question(number), step("text", "Tasla"), stop(), answer=answer)
    first, last = made.steps
    turns = [first.plan, first.answer, last.plan, made.final]
    assert all(turns)
    groups, scored = [], []
    for place, said in enumerate(turns):
        state = State(said.kind, np.array([1, 2, 3, number, place], np.int32), None, made.question)
        groups.append(TurnGroup(state, (said,)))
        reward = PLAN_REWARD if place == 0 else TurnReward(0.5)
        scored.append(ScoredTurn(state.key, state.prompt_ids, None, said, reward, f"q{number}", 1.0, f"q{number}"))
    return replace(made, groups=tuple(groups), seconds=5.0, ends=(1.0, 1.5, 3.0, 4.0, 5.0)), scored


def with_logprobs(turn: Turn, *logprobs: float) -> Turn:
    return replace(turn, logprobs=np.array(logprobs, np.float32))


def traces_in(uri: str, experiment: str = "r1-router") -> list[Any]:
    import mlflow

    mlflow.set_tracking_uri(uri)
    found = mlflow.get_experiment_by_name(experiment)
    return mlflow.search_traces(locations=[found.experiment_id], return_type="list", max_results=100) if found else []


def test_a_trace_has_the_turns_and_searches_of_the_episode_with_documents_times_and_rewards(tmp_path: Path, new_store):
    uri, config = new_store(tmp_path), config_in(tmp_path, "mine")
    folder = finished(config)
    made, scored = grouped(1)
    plan = with_logprobs(made.steps[0].plan, -0.5, -1.5)
    state = made.groups[0].state
    made = replace(made, groups=(TurnGroup(state, (plan,)), *made.groups[1:]), steps=(replace(made.steps[0], plan=plan), made.steps[1]))
    append(folder.traces, [trace_line(made, TRAINING, finished=1000.0, iteration=7, turns=scored)])
    run_id = upload(folder, [f"tracking.uri={uri}", "tracking.model="]).run_id

    (trace,) = traces_in(uri)
    assert (trace.info.trace_metadata["mlflow.sourceRun"], trace.info.trace_metadata["mlflow.trace.session"]) == (run_id, "mine/q1")
    assert {name: trace.info.tags[name] for name in ("run", "iteration", "family")} == {
        "run": "mine",
        "iteration": "7",
        "family": "text_one_hop",
    }
    assert (trace.info.request_time, trace.info.execution_duration) == (995_000, 5_000)
    spans = trace.data.spans
    assert [(span.name, span.span_type) for span in spans] == [
        ("question", "AGENT"),
        *[("plan", "LLM"), ("search", "RETRIEVER"), ("answer", "LLM"), ("plan", "LLM"), ("final", "LLM")],
    ]
    assert spans[0].inputs == {"question": "What is the capital of Kormu?"}
    assert spans[0].outputs == "Tasla"
    assert {span.parent_id for span in spans[1:]} == {spans[0].span_id}
    assert [span.end_time_ns / 1e9 - 995 for span in spans[1:]] == [1.0, 1.5, 3.0, 4.0, 5.0]
    assert [span.start_time_ns / 1e9 - 995 for span in spans[1:]] == [0.0, 1.0, 1.5, 3.0, 4.0]
    of_plan = spans[1].attributes
    assert {name: of_plan[name] for name in ("kb", "log_prob", "log_prob_mean", "policy_version", "tokens", "prompt_tokens")} == {
        **{"kb": "text", "log_prob": -2.0, "log_prob_mean": -1.0, "policy_version": 3, "tokens": 2, "prompt_tokens": 5}
    }
    assert spans[4].attributes["kb"] == "stop"
    assert trace.info.token_usage == {"input_tokens": 20, "output_tokens": 8, "total_tokens": 28}
    first, second = spans[2].outputs
    assert (first["page_content"], first["id"], first["metadata"]["score"]) == ("The capital of Kormu is Tasla.", "p1", 0.9)
    assert second["metadata"]["kb"] == "text"

    found = {(each.name, each.span_id): each for each in trace.info.assessments}
    assert found["exact_match", None].feedback.value is True
    assert found["f1_recall", None].feedback.value == 1.0
    assert found["expected_response", None].expectation.value == "Tasla"
    of_turn = found["reward_plan", spans[1].span_id]
    assert (of_turn.feedback.value, of_turn.rationale) == (0.7, "routing 0.5, query 0.2")
    assert found["routing_right", spans[1].span_id].feedback.value is True
    assert found["reward_final", spans[5].span_id].feedback.value == 0.5


def test_traces_of_training_and_measurements_are_with_their_runs_once(tmp_path: Path, new_store):
    from mlflow import MlflowClient

    uri, said = new_store(tmp_path), list[str]()
    config = config_in(tmp_path, "mine", uri=uri, model="")
    folder = finished(config)
    tracker = Tracker(config, folder.path, said.append)
    for phase, iteration in ((BEFORE, 0), (TRAINING, 1), (AFTER, 3)):
        made, scored = grouped(1)
        tracker.trace(phase, lambda at=(made, phase, 1e9, iteration, scored): [trace_line(*at)])
    tracker.finish()
    client = MlflowClient(tracking_uri=uri)
    by_name = {trace.info.tags["mlflow.traceName"]: trace.info for trace in traces_in(uri)}
    assert by_name.keys() == {BEFORE, TRAINING, AFTER}
    assert len({info.trace_metadata["mlflow.trace.session"] for info in by_name.values()}) == 1
    assert by_name[TRAINING].trace_metadata["mlflow.sourceRun"] == tracker.run_id
    for phase in (BEFORE, AFTER):
        run = client.get_run(by_name[phase].trace_metadata["mlflow.sourceRun"])
        assert (run.info.run_name, run.info.status) == (f"mine: {phase}", "FINISHED")
        assert (run.data.tags["mlflow.parentRunId"], run.data.tags["mlflow.runType"]) == (tracker.run_id, "genai_evaluate")
        assert run.data.metrics["f1_recall"] == folder.summary()[phase]["overall"]["f1_recall"]["value"]
        assert run.inputs.dataset_inputs[0].dataset.digest == "aaaa-heldout"
    assert said == []

    upload(folder, [])
    (folder.path / "tracking.json").write_text((folder.path / "tracking.json").read_text().replace('"traces": ', '"traces": 0, "was": '))
    upload(folder, [])  # as after a kill between a trace and the note that it was sent
    again = traces_in(uri)
    assert len(again) == 3
    assert {len(trace.info.assessments) for trace in again} == {len(by_name[BEFORE].assessments)}
    assert len(client.search_runs([by_name[BEFORE].experiment_id])) == 3


@pytest.mark.parametrize("settings", [{"traces": 0}, {"mlflow": False}])
def test_without_traces_nothing_is_made_or_written(settings, tmp_path: Path, new_store):
    uri = new_store(tmp_path)
    config = config_in(tmp_path, "mine", uri=uri, model="", **settings)
    folder = finished(config)
    tracker = Tracker(config, folder.path, pytest.fail)
    tracker.trace(TRAINING, pytest.fail)
    tracker.finish()
    assert not folder.traces.exists()
    assert traces_in(uri) == []


def test_traces_wait_in_the_folder_while_the_store_is_away_and_a_lost_episode_stops_nothing(tmp_path: Path, new_store, monkeypatch):
    monkeypatch.setattr(tracker_file, "RETRY_S", 0.0)
    said: list[str] = []
    (tmp_path / "file").write_text("")
    config = config_in(tmp_path, "mine", uri=f"sqlite:///{tmp_path}/file/mlflow.db", model="")
    folder = RunFolder.start(config)
    folder.add_metrics(row(1))
    tracker = Tracker(config, folder.path, said.append)
    made, scored = grouped(1)

    def lost() -> list[dict[str, Any]]:
        raise OSError("its node is gone")

    began = time.monotonic()
    tracker.trace(BEFORE, lost)
    tracker.trace(TRAINING, lambda: [trace_line(made, TRAINING, 1e9, 1, scored)])
    tracker.update()
    assert time.monotonic() - began < 0.5
    tracker.finish()
    assert tracker.failures >= 2
    assert len(said) == 2
    uri = new_store(tmp_path)
    run_id = upload(folder, [f"tracking.uri={uri}"]).run_id
    assert [trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces_in(uri)] == [run_id]


def test_each_method_of_an_evaluation_is_a_run_with_its_traces(tmp_path: Path, new_store):
    from mlflow import MlflowClient

    tracking = config_in(tmp_path, "mine", uri=new_store(tmp_path)).tracking
    folder = tmp_path / "policy-atlas-1234"
    folder.mkdir()
    for method, answer in (("policy", "Tasla"), ("direct", "Runo")):
        append(folder / TRACES, [trace_line(grouped(n, answer)[0], method, 1e9, figures={"routing_accuracy": 1.0}) for n in (1, 2)])
    measured = {
        name: {"label": f"the {name}", "overall": {"f1_recall": {"value": value}, "hit_at_k": {"value": float("nan")}}}
        for name, value in (("policy", 1.0), ("direct", 0.0))
    }
    for _ in range(2):
        send_evaluation(folder, tracking, ("atlas", "abcd"), measured)
    client = MlflowClient(tracking_uri=tracking.uri)
    traces = traces_in(tracking.uri)
    assert len(traces) == 4
    runs = {run.info.run_id: run for run in client.search_runs([traces[0].info.experiment_id])}
    assert {run.data.metrics["f1_recall"]: run.info.run_name for run in runs.values()} == {
        1.0: "policy-atlas-1234: the policy",
        0.0: "policy-atlas-1234: the direct",
    }
    for trace in traces:
        right = next(each.feedback.value for each in trace.info.assessments if each.name == "exact_match")
        assert float(right) == runs[trace.info.trace_metadata["mlflow.sourceRun"]].data.metrics["f1_recall"]
    assert {trace.info.trace_metadata["mlflow.trace.session"] for trace in traces} == {f"{folder.name}/q1", f"{folder.name}/q2"}


def test_a_follow_up_in_a_chat_has_its_rewrite_turn_first():
    asked = question()
    state = State("rewrite", np.zeros(3, np.int32), None, replace(asked, text="and its capital?"))
    rewrite = TurnGroup(state, (turn("rewrite", f"<question>{asked.text}</question>"),))
    spans = trace_line(replace(episode(asked, step("text", "Tasla"), answer="Tasla"), groups=(rewrite,)), "request", 0.0)["spans"]
    assert [span["name"] for span in spans] == ["rewrite", "plan", "search", "answer", "final"]
    assert (spans[0]["inputs"], spans[1]["inputs"]["question"]) == ({"question": "and its capital?"}, asked.text)
