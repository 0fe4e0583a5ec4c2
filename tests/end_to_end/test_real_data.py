"""Whole runs on the published data, with the tiny policy: that they finish and report rightly is tested, not how good it gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SHARED = (ROOT / "../shared/data").resolve()
PATIENCE = 1200
"""Seconds that one command may take, also where others keep the machine busy: the 6,119 passages of 2Wiki are embedded on one thread."""
SMALL = [
    *(
        "train.iterations=2",
        "train.questions_per_iteration=4",
        "rollout.group_size=2",
        "train.evaluate_every=1",
        "train.checkpoint_every=1",
    ),
    *("data.train_questions=40", "evaluation.questions=12", "evaluation.validation_questions=4"),
    *("evaluation.baselines=[all]", "evaluation.start_baselines=[]"),
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * PATIENCE),
    pytest.mark.skipif(not SHARED.is_dir(), reason="the published data is not beside the repository"),
]


def command(name: str, folder: Path, *arguments: str) -> list[str]:
    places = [
        f"runs_folder={folder}/runs",
        f"data.kb_folder={folder}/kbs",
        f"data.folder={SHARED}",
        f"evaluation.folder={folder}/evaluations",
    ]
    return [sys.executable, "-m", "experiments.cli", name, *arguments, *places, "tracking.mlflow=false"]


def finished(arguments: list[str]) -> str:
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def short(folder: Path, copy: Path, tables: int = 60) -> Path:
    """A copy with the first tables, their passages, and the questions about them, which a laptop can embed."""
    copy.mkdir()

    def records(name: str) -> list[dict]:
        return [json.loads(line) for line in (folder / name).read_text().splitlines()]

    kept = records("tables.jsonl")
    asked = {path.name: records(path.name) for path in folder.glob("questions_*.jsonl")}
    ids = set()
    for questions in asked.values():
        ids |= set(list(dict.fromkeys(question["gold_table_id"] for question in questions))[:tables])
    questions = {name: [question for question in found if question["gold_table_id"] in ids] for name, found in asked.items()}
    written = {"tables.jsonl": [table for table in kept if table["table_id"] in ids], **questions}
    if (folder / "passages.jsonl").exists():
        gold = {id for found in questions.values() for question in found for id in question["gold_passage_ids"]}
        written["passages.jsonl"] = [passage for passage in records("passages.jsonl") if passage["id"] in gold]
    for name, found in written.items():
        (copy / name).write_text("".join(json.dumps(record) + "\n" for record in found))
    return copy


@pytest.mark.parametrize(
    ("name", "folder", "kbs", "families"),
    [
        ("2wiki", "", {"text"}, {"compositional", "comparison", "bridge_comparison", "inference"}),
        ("ottqa", "ottqa_dev", {"text", "table"}, {"answer_in_table", "answer_in_passage"}),
        ("wikitables", "wikitablequestions", {"table"}, {"cell", "worked_out"}),
        (
            *("real_atlas", "", {"text", "text_image", "table"}),
            {"image", "table", "text", "image_table", "image_text", "table_text", "image_table_text"},
        ),
    ],
)
def test_a_run_over_published_data_finishes_and_its_report_is_right(tmp_path, name, folder, kbs, families):
    settings = [f"data.path={short(SHARED / folder, tmp_path / 'data')}"] if folder else []
    finished(command("train", tmp_path, f"name={name}", f"data.name={name}", *SMALL, *settings))
    run = tmp_path / "runs" / name
    summary = json.loads((run / "summary.json").read_text())
    assert summary["before"]["questions"] == summary["after"]["questions"] == 12
    assert set(summary["after"]["by_family"]) <= families
    assert set(summary["after"]["kb_shares"]) == kbs
    assert summary["baselines"]["all"]["overall"]["retrievals_per_question"]["value"] == len(kbs)
    assert 0 < summary["baselines"]["all"]["overall"]["hit_at_k"]["value"] <= 1
    assert [row["iteration"] for row in rows_of(run)] == [1, 2]
    assert all(row["retrieval_errors"] == 0 for row in rows_of(run))
    report = (run / "report.html").read_text()
    assert all(family in report for family in summary["after"]["by_family"])


def test_the_published_step_data_set_trains_offline_and_its_answer_turns_earn_more(tmp_path):
    """The tiny policy has never seen such prompts: in 20 iterations it learns the form of an answer turn, no more."""
    settings = [
        *("reward.format_weight=0.2", "learner.lr=3e-4", "learner.updates_per_iteration=2", "train.questions_per_iteration=8"),
        *("evaluation.questions=8", "evaluation.validation_questions=4", "train.evaluate_every=0", "train.checkpoint_every=0"),
    ]
    finished(command("train", tmp_path, "offline_steps.yaml", f"data.path={SHARED}/r1router/grpo_dataset_valid_new.jsonl", *settings))
    rows = rows_of(tmp_path / "runs/offline_steps")
    assert len(rows) == 20
    first, last = ([row["reward_answer"] for row in half if row.get("reward_answer") is not None] for half in (rows[:10], rows[10:]))
    assert np.mean(last) > np.mean(first)


def test_a_warm_up_on_the_published_step_data_set_lowers_the_loss(tmp_path):
    recorded = tmp_path / "steps.yaml"
    recorded.write_text(f"base: offline_steps.yaml\ndata: {{path: {SHARED}/r1router/grpo_dataset_valid_new.jsonl}}\n")
    settings = [f"recorded={recorded}", f"out={tmp_path / 'warm'}", "vocabulary=2048", "longest=640", "minutes=1.5", "log_every=10"]
    finished([sys.executable, "-m", "experiments.cli", "cold-start", *settings])
    curve = [json.loads(line)["loss"] for line in (tmp_path / "warm/curve.jsonl").read_text().splitlines()]
    assert np.mean(curve[-2:]) < 0.75 * np.mean(curve[:2])


def test_a_killed_evaluation_goes_on_and_gives_what_an_undisturbed_one_gives(tmp_path):
    settings = ["dataset=atlas", "method=policy,direct", "data.worlds=1", "evaluation.questions=48", "train.num_rollout_workers=1"]
    arguments = command("evaluate", tmp_path, "experiments/worlds/cold_start_policy", *settings)
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE
        while not any(path.stat().st_size for path in tmp_path.glob("evaluations/*/policy.jsonl")):
            assert process.poll() is None, "the evaluation ended too early"
            assert time.monotonic() < end, f"nothing was measured in {PATIENCE} s"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    (folder,) = tmp_path.glob("evaluations/[!.]*")
    done = len((folder / "policy.jsonl").read_bytes().splitlines())
    assert 0 < done < 48, "killed too late"
    assert "are there already" in finished(arguments)
    resumed = json.loads((folder / "summary.json").read_text())["methods"]
    os.rename(folder, tmp_path / "resumed")
    finished(arguments)
    undisturbed = json.loads((folder / "summary.json").read_text())["methods"]
    for method in ("policy", "direct"):
        for name, figure in undisturbed[method]["overall"].items():
            if name != "seconds_per_question":
                assert resumed[method]["overall"][name] == figure, (method, name)
