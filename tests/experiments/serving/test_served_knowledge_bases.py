"""Which knowledge bases are served: those of the run, and those that the command line names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from serving_process import POLICY

from experiments.serving import application


@pytest.fixture
def folders_of(tmp_path, monkeypatch):
    """A function: (settings of a run, or None for the policy alone; arguments) -> the names that are served. Nothing is built or opened."""
    monkeypatch.setattr(application, "ensure_knowledge_bases", lambda sources, progress: {each.name: str(each.folder) for each in sources})
    monkeypatch.setattr(application.KnowledgeBase, "open", lambda folder: None)
    run = tmp_path / "run"
    run.mkdir()
    (run / "policy").symlink_to(POLICY)

    def folders(settings: dict | None, *arguments: str) -> dict[str, str]:
        if settings is not None:
            data = {"worlds": 1, "countries": 6, "train_questions": 8, "kb_folder": str(tmp_path / "kbs")}
            (run / "config.yaml").write_text(yaml.safe_dump({"data": data} | settings))
        spec, _ = application.prepare([str(POLICY if settings is None else run), *arguments], starts_ray=False)
        return {name: Path(folder).name for name, folder in spec.retrieval.folders.items()}

    return folders


def test_a_new_knowledge_base_is_served_beside_those_of_the_run(folders_of):
    served = folders_of({}, "retrieval.folders.new=kbs/new")
    assert served.keys() == {"text", "text_image", "table", "new"}
    assert served["new"] == "new"
    assert folders_of({}, "retrieval.folders.text=kbs/other")["text"] == "other"


def test_a_run_on_named_knowledge_bases_keeps_them(folders_of):
    assert folders_of({"retrieval": {"folders": {"mine": "kbs/mine"}}}, "retrieval.folders.new=kbs/new").keys() == {"mine", "new"}


def test_a_policy_alone_is_served_with_what_is_named(folders_of):
    assert folders_of(None, "retrieval.folders.new=kbs/new").keys() == {"new"}
