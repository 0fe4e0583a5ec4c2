"""Episodes as MLflow traces: a line of `traces.jsonl` for each, and what sends these lines.

A trace has a span for every turn (type LLM) and search (type RETRIEVER, with its passages as documents). Rewards and metrics are feedback on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.answer_metrics import exact_match, f1_recall
from rollout.records import ScoredTurn, Step, Trajectory, Turn, TurnGroup, TurnReward

TRAINING, BEFORE, AFTER = "training", "before", "after"  # Phases of a run; those of an evaluation are its methods
EVALUATED = 8  # Times `tracking.traces`: traces of a measurement before or after training, and of each method of an evaluation
EMPTY: Mapping[str, float] = {}
GOLD_ANSWERS = 5  # That a trace repeats; a numeric range has thousands


def trace_line(
    episode: Trajectory,
    phase: str,
    finished: float,
    iteration: int = 0,
    turns: Sequence[ScoredTurn] = (),
    figures: Mapping[str, float] = EMPTY,
) -> dict[str, Any]:
    """A line of `traces.jsonl`. `finished`: Unix seconds; `turns`: scored ones, this episode's among them; `figures`: more metrics."""
    rewards = {(turn.state_key, turn.turn.text, turn.turn.response_ids.tobytes()): turn.reward for turn in turns}
    asked, spans = episode.question, list(_spans(episode, rewards))
    known = episode.ends if len(episode.ends) == len(spans) else ()  # other methods may search several times in a step
    for place, span in enumerate(spans):
        span |= {"start": known[place - 1] if known and place else 0.0, "end": known[place] if known else episode.seconds}
    measured = dict(figures)
    if asked.answers and not episode.search_errors:
        right = bool(exact_match(episode.answer, asked.answers, asked.answer_range))
        measured |= {"exact_match": right, "f1_recall": f1_recall(episode.answer, asked.answers)}
    return {
        **{"phase": phase, "iteration": iteration, "question_id": asked.id, "family": asked.family, "question": asked.text},
        **{"picture": asked.image.key if asked.image else "", "answers": list(asked.answers[:GOLD_ANSWERS]), "answer": episode.answer},
        **{"error": episode.error, "began": finished - episode.seconds, "seconds": episode.seconds},
        **{"retrievals": episode.retrievals, "figures": measured, "spans": spans},
    }


def _spans(episode: Trajectory, rewards: Mapping[tuple[str, str, bytes], TurnReward]) -> Iterator[dict[str, Any]]:
    groups = {id(group.chosen): group for group in episode.groups}
    question, known = episode.question.text, list[dict[str, str]]()

    def turn_span(turn: Turn, **inputs: Any) -> dict[str, Any]:
        return _turn_span(turn, groups.get(id(turn)), rewards, inputs)

    for group in episode.groups:
        if group.state.kind == "rewrite":
            yield turn_span(group.chosen, question=group.state.question.text)
    for step in episode.steps:
        if step.plan is not None:
            span = turn_span(step.plan, question=question, known=list(known))
            chosen = {"query": step.action.query, "kb": step.action.kb or "stop"} if step.action else {"kb": "malformed"}
            yield span | {"attributes": span["attributes"] | chosen}
        if step.action is not None and step.action.kb is not None:
            yield _search_span(step)
        if step.answer is not None:
            yield turn_span(step.answer, query=step.action.query if step.action else "")
        if step.exchange is not None:
            known.append({"query": step.exchange.query, "answer": step.exchange.answer})
    if episode.final is not None:
        yield turn_span(episode.final, question=question, known=list(known))
    elif not episode.steps and episode.groups:  # a recorded turn
        yield turn_span(episode.groups[-1].chosen, question=question)


def _turn_span(turn: Turn, group: TurnGroup | None, rewards: Mapping[Any, TurnReward], inputs: dict[str, Any]) -> dict[str, Any]:
    tokens, prompt = len(turn.response_ids), len(group.state.prompt_ids) if group else 0
    facts: dict[str, Any] = {"policy_version": turn.policy_version, "finish_reason": turn.finish_reason}
    facts |= {"log_prob": round(float(turn.logprobs.sum()), 4), "log_prob_mean": round(float(turn.logprobs.mean()), 4) if tokens else 0.0}
    facts |= {"tokens": tokens, "prompt_tokens": prompt, "siblings": len(group.turns) if group else 1}
    facts["mlflow.chat.tokenUsage"] = {"input_tokens": prompt, "output_tokens": tokens, "total_tokens": prompt + tokens}
    found: dict[str, Any] = {"name": turn.kind, "type": "LLM", "inputs": inputs, "outputs": turn.text, "attributes": facts, "error": ""}
    if group and (reward := rewards.get((group.state.key, turn.text, turn.response_ids.tobytes()))):
        found |= {"reward": reward.total, "parts": reward.parts or reward.components, "routing": reward.components.get("routing")}
    return found


def _search_span(step: Step) -> dict[str, Any]:
    facts = {"kb": step.action.kb if step.action else "", "passages": len(step.passages)}
    inputs = {"query": step.action.query if step.action else "", "kb": facts["kb"]}
    details = [{"title": p.title, "kb": p.kb, "score": round(p.score, 4), "error": p.error} for p in step.passages]
    documents = [{"page_content": p.text, "metadata": known, "id": p.id} for p, known in zip(step.passages, details, strict=True)]
    error = next((passage.error for passage in step.passages if passage.error), "")
    return {"name": "search", "type": "RETRIEVER", "inputs": inputs, "outputs": documents, "attributes": facts, "error": error}


def append(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False, default=float) + "\n" for line in lines)
    if text:
        with file.open("a", encoding="utf-8") as out:
            out.write(text)


def send_new(file: Path, start: int, send: Callable[[Mapping[str, Any]], Any]) -> int:
    """Call `send` with every whole line from byte `start` on; returns where the last one ends. Raises what `send` raises."""
    if not file.exists():
        return start
    with file.open("rb") as content:
        content.seek(start)
        whole, newline, _ = content.read().rpartition(b"\n")
    for line in whole.splitlines():
        send(json.loads(line))
    return start + len(whole) + len(newline)


class TraceSender:
    """`key`: what the lines belong to, such as a run folder. A line that is sent again replaces its trace."""

    def __init__(self, uri: str, experiment: str, key: str, subject: str):
        """`subject`: name of the run, the evaluation or the service. The traces of one question are a session of MLflow."""
        from mlflow.tracing.client import TracingClient

        self._client, self._experiment, self._key, self._subject = TracingClient(uri), experiment, key, subject

    def send(self, line: Mapping[str, Any], run_id: str = "") -> None:
        """Write the trace, linked to the MLflow run. Raises what MLflow raises."""
        from mlflow.entities import TraceInfo, TraceLocation, TraceState

        number = _digest(16, self._key, line["phase"], line["iteration"], line["question_id"])
        trace, state = f"tr-{number}", TraceState.ERROR if line["error"] else TraceState.OK
        metadata = {"mlflow.trace.session": f"{self._subject}/{line['question_id']}"[:250], "mlflow.trace_schema.version": "3"}
        metadata |= {"mlflow.sourceRun": run_id} if run_id else {}
        tags = {"mlflow.traceName": line["phase"], "run": self._subject, "iteration": str(line["iteration"]), "family": line["family"]}
        more: dict[str, Any] = {"request_time": int(line["began"] * 1e3), "execution_duration": int(line["seconds"] * 1e3), "state": state}
        more |= {"request_preview": line["question"][:1000], "response_preview": line["answer"][:1000]}
        more |= {"client_request_id": line["question_id"], "trace_metadata": metadata}
        more |= {"tags": {name: value for name, value in tags.items() if value}}
        where, assessments = TraceLocation.from_experiment_id(self._experiment), list(_assessments(line, number))
        info = TraceInfo(trace, where, assessments=assessments, **more)
        self._client.start_trace(info)  # first: a trace that is there already costs twice the time
        self._client.log_spans(self._experiment, [_mlflow_span(line, span, number, place) for place, span in enumerate(_tree(line))])


def _tree(line: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The root, and after it the spans of the line."""
    facts = {"retrievals": line["retrievals"]}
    inputs = {"question": line["question"]} | ({"picture": line["picture"]} if line["picture"] else {})
    root = {"name": "question", "type": "AGENT", "inputs": inputs, "outputs": line["answer"], "attributes": facts, "error": line["error"]}
    return [root | {"start": 0.0, "end": line["seconds"]}, *line["spans"]]


def _mlflow_span(line: Mapping[str, Any], span: Mapping[str, Any], number: str, place: int) -> Any:
    from mlflow.entities import Span
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode

    def context(place: int) -> SpanContext:
        return SpanContext(int(number, 16), int(_digest(8, number, place), 16), is_remote=False)

    facts = {"mlflow.traceRequestId": f"tr-{number}", "mlflow.spanType": span["type"], **span["attributes"]}
    facts |= {"mlflow.spanInputs": span["inputs"], "mlflow.spanOutputs": span["outputs"]}
    attributes = {name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()}
    status = Status(StatusCode.ERROR, span["error"]) if span["error"] else Status(StatusCode.OK)
    start, end = (int((line["began"] + span[side]) * 1e9) for side in ("start", "end"))
    parent, more = context(0) if place else None, dict[str, Any]({"status": status, "start_time": start, "end_time": end})
    return Span(ReadableSpan(span["name"], context(place), parent=parent, resource=Resource.get_empty(), attributes=attributes, **more))


def _assessments(line: Mapping[str, Any], number: str) -> Iterator[Any]:
    """Rewards are on the spans of their turns, the metrics of the answer on the whole trace; the gold answers are what was expected."""
    from mlflow.entities import AssessmentSource, Expectation, Feedback

    source = AssessmentSource("CODE", "r1-router")
    found: list[Any] = [Feedback(name, value, source=source) for name, value in line["figures"].items()]
    for place, span in enumerate(line["spans"], 1):
        if "reward" in span:
            here, why = _digest(8, number, place), ", ".join(f"{name} {value:.3g}" for name, value in span["parts"].items())
            found.append(Feedback(f"reward_{span['name']}", span["reward"], source=source, span_id=here, rationale=why or None))
            if span["routing"] is not None:
                found.append(Feedback("routing_right", bool(span["routing"]), source=source, span_id=here))
    if line["answers"]:
        found.append(Expectation("expected_response", " | ".join(line["answers"]), source=source))
    for place, each in enumerate(found):
        each.assessment_id = f"a-{_digest(16, number, place)}"
        yield each


def _digest(size: int, *parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=size).hexdigest()
