"""Methods measured on the same questions: stored question by question, resumed, and compared pair by pair."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace

import pytest
from episodes import episode, question, step, stop
from rich.console import Console

from experiments import evaluate
from experiments.comparison_tables import print_comparison
from experiments.config import RunConfigError, load_config
from experiments.datasets import Dataset
from experiments.evaluate import written_out
from experiments.evaluation_folder import EvaluationFolder
from experiments.evaluation_progress import EvaluationProgress
from experiments.measures import MEASURES
from experiments.method_comparison import compared, measure
from experiments.methods import measured_methods

KBS = ["text", "text_image", "table"]
QUESTIONS = [question(number, family="even" if number % 2 == 0 else "odd") for number in range(10)]
DATA = Dataset([], [], QUESTIONS)
RETRIEVER = SimpleNamespace(catalog=())


class Workers:
    """Answer with what the test says; die after some questions."""

    def __init__(self, right=lambda number, sample: True, dies_after: int = 1000):
        self.right, self.dies_after, self.asked = right, dies_after, []

    def parts(self, items, retriever, config, at_once=4):
        for start in range(0, len(items), 2):
            if len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            part, found = items[start : start + 2], []
            for item in part:
                self.asked.append(item.id)
                for sample in range(config.group_size):
                    right = self.right(int(item.id[1:]), sample)
                    kb = "text" if right else "table"
                    found.append(episode(item, step(kb, "Tasla" if right else "unknown"), stop(), answer="Tasla" if right else "Runo"))
            yield start, part, found


def methods(*names: str, **settings: str):
    arguments = [f"evaluation.methods=[{','.join(names)}]", *(f"{key}={value}" for key, value in settings.items())]
    return measured_methods(load_config(arguments), KBS)


def folder(tmp_path, *overrides: str) -> EvaluationFolder:
    return EvaluationFolder(load_config([f"evaluation.folder={tmp_path}", *overrides]), "policy", {"text": "abc"})


def run(method, workers, where):
    with EvaluationProgress(Console(file=io.StringIO())) as progress:
        return measure(workers, method, DATA, RETRIEVER, where, progress)


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    (policy,) = methods("policy")
    first, second = Workers(dies_after=6), Workers()
    with pytest.raises(KeyboardInterrupt):
        run(policy, first, folder(tmp_path))
    path = folder(tmp_path).path / "policy.jsonl"
    path.write_bytes(path.read_bytes()[:-25])  # the kill came in the middle of a line
    results = run(policy, second, folder(tmp_path))
    assert second.asked == [f"q{number}" for number in (5, 6, 7, 8, 9)]
    assert sorted(results.rows) == sorted(q.id for q in QUESTIONS)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [f"q{number}" for number in range(10)]
    again = Workers()
    run(policy, again, folder(tmp_path))
    assert again.asked == []


def test_other_settings_are_another_evaluation_and_more_workers_are_not(tmp_path):
    here = folder(tmp_path).path
    assert folder(tmp_path, "train.num_rollout_workers=1", "evaluation.methods=[direct]").path == here
    assert folder(tmp_path, "rollout.passages=2").path != here
    assert folder(tmp_path, "evaluation.questions=3").path != here
    assert EvaluationFolder(load_config([f"evaluation.folder={tmp_path}"]), "policy", {"text": "other"}).path != here


def test_sampled_episodes_of_a_question_are_averaged(tmp_path):
    (sampled,) = methods("sampled", **{"evaluation.samples": "4", "rollout.temperature": "0.7"})
    assert (sampled.rollout.group_size, sampled.rollout.temperature, sampled.rollout.mode) == (4, 0.7, "chain")
    results = run(sampled, Workers(lambda number, sample: sample < 1), folder(tmp_path))
    assert results.rows["q3"]["counts"]["exact_match"] == [1.0, 4.0]
    comparison = compared({"sampled": results}, [sampled], [q.id for q in QUESTIONS])
    figure = comparison["methods"]["sampled"]["overall"]["exact_match"]
    assert figure["value"] == pytest.approx(0.25)
    assert comparison["differences"] == {}


def test_methods_are_compared_pair_by_pair_with_corrected_p_values(tmp_path):
    policy, everything, direct = methods("policy", "all", "direct")
    where = folder(tmp_path)
    results = {
        "policy": run(policy, Workers(), where),
        "all": run(everything, Workers(lambda number, sample: number < 2), where),
        "direct": run(direct, Workers(lambda number, sample: number != 0), where),
    }
    comparison = compared(results, [policy, everything, direct], [q.id for q in QUESTIONS])
    figures = comparison["differences"]["all"]["exact_match"]
    assert figures["value"] == pytest.approx(0.8)
    assert figures["low"] > 0
    assert figures["p"] < 0.02
    assert figures["p_corrected"] >= figures["p"]
    assert figures["p_mcnemar"] == pytest.approx(2 * 0.5**8)
    assert comparison["differences"]["direct"]["exact_match"]["p_mcnemar"] == 1.0
    overall = comparison["methods"]["all"]["overall"]
    assert set(overall) == set(MEASURES)
    assert comparison["methods"]["all"]["kb_shares"]["table"]["value"] == pytest.approx(0.8)
    assert {name: family["questions"] for name, family in comparison["methods"]["all"]["by_family"].items()} == {"even": 5, "odd": 5}
    assert comparison["methods"]["all"]["isolates"]
    where.write_summary(comparison)
    out = io.StringIO()
    print_comparison(Console(file=out, width=200), comparison, "the title")
    stored = json.loads((where.path / "summary.json").read_text())
    again = io.StringIO()
    print_comparison(Console(file=again, width=200), stored, "the title")
    assert again.getvalue() == out.getvalue()
    for part in ("the title", "no retrieval", "share of table", "p corrected (Holm)", "+0.800"):
        assert part in out.getvalue()


def test_a_search_for_each_right_answer_is_a_ratio_of_sums(tmp_path):
    (policy,) = methods("policy")
    results = run(policy, Workers(lambda number, sample: number < 5), folder(tmp_path))
    overall = compared({"policy": results}, [policy], [q.id for q in QUESTIONS])["methods"]["policy"]["overall"]
    assert overall["retrievals_per_right_answer"]["value"] == pytest.approx(10 / 5)
    assert overall["hit_at_k"]["value"] == 0.5  # a passage of the table knowledge base is no evidence for a fact of the text


def test_every_method_is_asked_for_by_one_word_and_unknown_ones_are_named():
    names = [method.name for method in methods("every")]
    assert names[:2] == ["policy", "sampled"]
    assert {"direct", "all", "ircot", "never_stop", "random", "oracle", "single:text", "single:table"} < set(names)
    assert [method.name for method in measured_methods(load_config([]), KBS)] == ["policy", "random", "all", "oracle"]
    with pytest.raises(RunConfigError, match=r"evaluation\.methods names 'guess'; expected every, sampled, or some of policy"):
        methods("guess")
    with pytest.raises(RunConfigError, match=r"'single:news'; the knowledge bases are text, text_image, table"):
        methods("'single:news'")
    with pytest.raises(RunConfigError, match=r"brings no knowledge base: name some in retrieval\.folders, or measure method=direct"):
        measured_methods(load_config(["evaluation.methods=[direct,all]"]), [])


def test_short_arguments_are_written_out_and_a_new_data_set_forgets_the_old_path():
    arguments = written_out(["policy", "run.yaml", "data.path=x", "method=policy,single:text", "dataset=webqa"])
    assert arguments == [
        *("policy", "data.name=webqa", "data.path=''", "data.image_folder=''", "data.heldout_path=''"),
        *("run.yaml", "data.path=x", "evaluation.methods=['policy','single:text']"),
    ]
    config = load_config([argument for argument in arguments[1:] if "=" in argument])
    assert (config.data.name, config.data.path, config.evaluation.methods) == ("webqa", "x", ["policy", "single:text"])


def test_what_was_not_measured_is_nan_and_not_zero(tmp_path):
    (policy,) = methods("policy")
    results = run(policy, Workers(lambda number, sample: False), folder(tmp_path))
    overall = compared({"policy": results}, [policy], [q.id for q in QUESTIONS])["methods"]["policy"]["overall"]
    assert math.isnan(overall["tokens_per_right_answer"]["value"])


def test_an_evaluation_without_a_place_is_refused_at_once_with_the_mend(ray_cluster, tmp_path, capsys):
    folders = [f"runs_folder={tmp_path}", f"data.kb_folder={tmp_path / 'kbs'}"]
    assert evaluate.main(["experiments/cold_start_policy", "smoke.yaml", "train.gpus_per_rollout_worker=1", *folders]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 evaluation find no place: one asks for 0.5 CPU, 1 GPU" in said
    assert "Mend: lower train.num_rollout_workers or train.gpus_per_evaluation_worker" in said
    assert not (tmp_path / "kbs").exists()
