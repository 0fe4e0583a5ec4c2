"""Gold steps are found once for each question, from questions and answers alone, and used by a run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from scripted import Script

from experiments.benchmarks.found_steps import judged_routes
from experiments.command_line.progress import Progress
from experiments.command_line.terminal import Console
from experiments.config import RunConfigError, load_config
from experiments.datasets import Dataset, load_dataset
from experiments.run import found_steps_folder
from experiments.run.found_steps_folder import steps_folder, with_found_steps
from experiments.tracking.fingerprints import fingerprint
from experiments.worlds.teacher import answer_response, plan_response
from retrieval_actors.records import Passage
from rollout.policies import load_policy
from rollout.records import GoldStep, Question, RecordedTurn
from rollout.roll_out import roll_out

ROOT = Path(__file__).parents[3]
CAPITALS = {f"Land{number}": f"Town{number}" for number in range(9)}
ANSWERED = 6  # the others are unknown to every knowledge base
QUESTIONS = [
    Question(f"q{n}", f"capital of {land} ?", (town,), family="odd" if n % 2 else "even") for n, (land, town) in enumerate(CAPITALS.items())
]


@dataclass(frozen=True)
class Described:
    name: str
    retriever_name: str
    description: str = "anything"
    modality: str = "text"
    fingerprint: str = "aaaa"


class Shelves:
    """The capitals stand in `text`, every second one in `table`, too."""

    catalog = (Described("text", "Text Retriever"), Described("table", "Table Retriever"))

    def search_routed(self, asked, k):
        return [[self._found(kb, query.text)] for kb, query in asked]

    def _found(self, kb, query):
        number = int(query.split("Land")[1][0])
        held = number < ANSWERED and (kb == "text" or number % 2 == 0)
        return Passage(f"{kb}{number}", f"Land{number} : Town{number}" if held else f"Land{number}", kb=kb)


def say(kind, prompt, sibling):
    """Asks once, reads what stands there, and answers with the town that it has read."""
    land = "Land" + prompt.split("Land")[-1][0]
    if kind == "plan":
        return (
            plan_response("t", "None", "None")
            if "Sub-question" in prompt
            else plan_response("t", f"What is the capital of {land} ?", "Text Retriever")
        )
    return answer_response("t", CAPITALS[land] if CAPITALS[land] in prompt else "unknown")


class Workers:
    """The evaluator's workers, in this process, with an engine that says what the test tells it to; they die after some calls."""

    workers = (0, 1)

    def __init__(self, policy, dies_after: int = 1000):
        self.engine, self.dies_after, self.calls = Script(policy, say), dies_after, []

    @contextmanager
    def holding(self, weights):
        yield

    def parts(self, items, retriever, config, at_once):
        for start in range(0, len(items), at_once):
            part = items[start : start + at_once]
            if len(self.calls) >= self.dies_after:
                raise KeyboardInterrupt
            self.calls.append([item.question.text if isinstance(item, RecordedTurn) else item.id for item in part])
            assert all(item.question.gold_steps is None if isinstance(item, RecordedTurn) else item.gold_steps is None for item in part)
            yield start, part, roll_out(part, self.engine, retriever, config, seed=1)

    @property
    def asked(self) -> list[str]:
        """Questions that were answered with searches."""
        return [id for call in self.calls for id in call if id.startswith("q")]


@pytest.fixture(scope="module")
def policy(start_policy):
    return load_policy(start_policy)


@pytest.fixture
def start(tmp_path, policy):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")

    def find(questions=QUESTIONS, workers=None, *settings: str):
        config = load_config([f"data.kb_folder={tmp_path}/kbs", "data.gold=found", "data.gold_samples=2", *settings])
        out, workers = io.StringIO(), workers or Workers(policy)
        with Progress(Console(file=out, width=220), "find-steps", 1, 0) as progress:
            found = with_found_steps(config, str(folder), Dataset(questions, [], questions), workers, Shelves(), progress)
        return found, workers, out.getvalue()

    return find


def test_steps_are_found_from_questions_and_answers_alone(start):
    misled = [replace(question, gold_steps=(GoldStep("Who?", "table", "nobody"),)) for question in QUESTIONS]
    found, _, said = start(misled)
    for number, question in enumerate(found.train):
        kbs = ("text", "table") if number % 2 == 0 else ("text",)
        expected = (GoldStep(f"What is the capital of Land{number} ?", kbs, f"Town{number}"),) if number < ANSWERED else None
        assert question.gold_steps == expected
        assert replace(question, gold_steps=None) == QUESTIONS[number]
    assert list(found.heldout) == misled  # what is measured keeps its true steps
    all_of_them, even, _ = ([cell.strip() for cell in line.split("│")[1:]] for line in said.splitlines() if line.startswith("│"))
    assert all_of_them[:6] == ["all", "9", "6", "0.667", "1.00", "1.50"]
    assert even[:6] == ["even", "5", "3", "0.600", "1.00", "2.00"]
    assert all_of_them[7] == "3"  # wrong answers
    assert start(QUESTIONS)[0].train == found.train


def test_a_stopped_search_goes_on_where_it_was_and_a_finished_one_asks_nothing(start, policy, monkeypatch, tmp_path):
    monkeypatch.setattr(found_steps_folder, "QUESTIONS_AT_ONCE", 1)
    monkeypatch.setattr(found_steps_folder, "CALLS_PER_WORKER", 1)  # two questions are written at a time
    with pytest.raises(KeyboardInterrupt):
        start(QUESTIONS, Workers(policy, dies_after=7))
    (file,) = tmp_path.glob("kbs/found_steps/*/steps.jsonl")
    assert len(file.read_text().splitlines()) == 4
    file.write_bytes(file.read_bytes()[:-9])  # the kill came in the middle of a line
    found, workers, _ = start()
    assert workers.asked == ["q3", "q4", "q5", "q6", "q7", "q8"]
    again, idle, _ = start()
    assert (idle.calls, again.train) == ([], found.train)
    _, more, _ = start([*QUESTIONS, replace(QUESTIONS[0], id="q10")])  # a new question is asked, the others are not
    assert more.asked == ["q10"]


def test_another_policy_knowledge_base_or_setting_searches_anew_and_more_workers_do_not(start, tmp_path):
    start()
    _, other, _ = start(QUESTIONS, None, "data.gold_samples=3")
    assert len(other.asked) == len(QUESTIONS)

    def folder(*settings, kb="aaaa"):
        config = load_config([f"data.kb_folder={tmp_path}/kbs", "data.gold_samples=2", *settings])
        return steps_folder(config, str(tmp_path / "policy"), {"text": kb, "table": "aaaa"})

    here = folder()
    assert (here / "steps.jsonl").is_file()
    assert folder("train.num_rollout_workers=4", "rollout.slots=8", "train.iterations=3") == here
    others = [
        folder(*each) for each in (["rollout.passages=2"], ["reward.paper_tokens=true"], ["rollout.max_steps=1"], ["retrieval.hybrid=true"])
    ]
    assert len({here, folder(kb="bbbb"), *others}) == 6
    (tmp_path / "policy/model.safetensors").write_bytes(b"changed")
    assert folder() != here
    (tmp_path / "policy/model.safetensors").write_bytes(b"weights")  # the content counts, not the time
    assert folder() == here


def test_recorded_turns_have_their_gold():
    with pytest.raises(RunConfigError, match=r"data\.gold is 'found'; expected given with data\.name=recorded_steps"):
        load_config(["data.name=recorded_steps", "rollout.mode=offline", "data.gold=found"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_the_atlas_found_steps_name_the_true_knowledge_bases_and_a_run_learns_from_them(tmp_path, start_policy):
    settings = [
        "smoke.yaml",
        f"train.policy={start_policy}",
        f"runs_folder={tmp_path}/runs",
        f"data.kb_folder={tmp_path}/kbs",
        "tracking.mlflow=false",
    ]

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    said = run("experiments.find_steps", *settings)
    (file,) = tmp_path.glob("kbs/found_steps/*/steps.jsonl")
    rows = {row["question"]: row for row in map(json.loads, file.read_text().splitlines())}
    config = load_config(settings)
    questions = load_dataset(config.data, config.evaluation, {}).train
    true = {question.id: question.gold_steps for question in questions}
    assert rows.keys() == true.keys()
    steps = {id: tuple(GoldStep(**step) for step in row["gold_steps"]) for id, row in rows.items() if row["gold_steps"] is not None}
    judged = Counter(right for id, found in steps.items() for right in judged_routes(found, true[id]))
    assert judged[True] >= 0.95 * judged.total() > 0, (judged, said)
    assert len(steps) > 0.3 * len(rows), said
    said = run("experiments.train", *settings, "data.gold=found", "train.iterations=1")
    assert "found steps of the training questions" in said
    assert "are there already" not in said  # nothing was left to find
    (metrics,) = map(json.loads, (tmp_path / "runs/smoke/metrics.jsonl").read_text().splitlines())
    assert 0 <= metrics["routing"] <= 1
    splits = json.loads((tmp_path / "runs/smoke/fingerprints.json").read_text())["dataset"]["splits"]
    assert splits["training"]["fingerprint"] == fingerprint(
        [replace(question, gold_steps=steps.get(question.id)) for question in questions]
    )
