"""The files in examples/ work as they say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from nbclient import NotebookClient

from experiments.config import load_config
from experiments.datasets import load_dataset
from retrieval_actors.sources.read_passages import read_source
from rewards.terms import composed_of

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def test_each_is_under_40_lines():
    assert {file.name: len(file.read_text().splitlines()) < 40 for file in EXAMPLES.glob("*.py")} == {
        "my_dataset.py": True,
        "my_knowledge_base.py": True,
        "my_reward.py": True,
    }


def test_the_data_set_loads_with_its_knowledge_base(tmp_path):
    (tmp_path / "capitals.csv").write_text("country,capital\n" + "".join(f"Land{i},City{i}\n" for i in range(30)))
    places = [f"data.path={tmp_path / 'capitals.csv'}", f"data.kb_folder={tmp_path}"]
    config = load_config(["data.name=my_dataset:load", *places, "evaluation.questions=10", "evaluation.validation_questions=5"])
    dataset = load_dataset(config.data, config.evaluation, {})
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.heldout)] == [15, 5, 10]
    (kb,) = dataset.training_kbs
    assert kb.passages is not None
    assert "City7 is the capital of Land7." in {passage.text for passage in kb.passages()}


def test_the_source_reads_a_forum_and_obeys_its_setting(tmp_path):
    thread = {"thread": 7, "question": "Where is Zorn?", "answers": ["In Alsace.", "Near Hochfelden."]}
    (tmp_path / "threads.jsonl").write_text(json.dumps(thread) + "\n")
    found = list(read_source(tmp_path / "threads.jsonl", source="my_knowledge_base:Forum"))
    assert [(passage.id, passage.title, passage.text) for passage in found] == [
        ("7#0", "Where is Zorn?", "In Alsace."),
        ("7#1", "Where is Zorn?", "Near Hochfelden."),
    ]
    assert [p.id for p in read_source(tmp_path / "threads.jsonl", source="my_knowledge_base:Forum", shortest=12)] == ["7#1"]


def test_the_reward_is_a_term_that_pays_for_short_final_answers():
    terms = {
        term.name: term for term in composed_of(load_config(["reward.terms.step=1", "reward.terms.my_reward:brevity=0.2"]).reward.terms)
    }
    judge = terms["my_reward:brevity"].value
    assert judge(SimpleNamespace(answer="two words", state=SimpleNamespace(kind="final"))) == 0.5
    assert judge(SimpleNamespace(answer="two words", state=SimpleNamespace(kind="plan"))) is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_from_its_first_cell_to_its_last():
    notebook = nbformat.read(EXAMPLES / "first_router.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs")  # it is committed without
        cell.source = cell.source.replace("train.minutes=2", "train.iterations=2").replace(
            "evaluation.questions=128", "evaluation.questions=16"
        )
    NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    said = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert "Zorn: The Zorn is a river" in said[1]  # behind a line of Ray on widgets
    assert "16 held-out questions" in said[2]
    assert said[3].startswith("question: ")
    assert "answer: " in said[3]
