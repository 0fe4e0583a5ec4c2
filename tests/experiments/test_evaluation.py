"""Methods measured on the same questions: stored question by question, resumed, and compared pair by pair."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from types import SimpleNamespace

import pytest
import yaml
from episodes import episode, question, step, stop
from rich.console import Console

from experiments import evaluate
from experiments.comparison_tables import print_comparison
from experiments.config import RunConfigError, load_config, resolved_yaml
from experiments.datasets import Dataset
from experiments.evaluate import read_arguments, written_out
from experiments.evaluation_folder import EvaluationFolder, Results
from experiments.evaluation_progress import EvaluationProgress
from experiments.measures import MEASURES
from experiments.method_comparison import compared, measure
from experiments.methods import has_gold, leaves_out_oracle, measured_methods
from rollout.records import Image

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


def folder(tmp_path, *overrides: str, kb: str = "abc", asked=QUESTIONS, earlier: str = "") -> EvaluationFolder:
    return EvaluationFolder(load_config([f"evaluation.folder={tmp_path}", *overrides]), "policy", {"text": kb}, asked, earlier)


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
    assert folder(tmp_path, "retrieval.hybrid=true").path != here
    assert folder(tmp_path, "learner.dtype=bfloat16", "learner.zero_stage=1").path != here
    assert folder(tmp_path, kb="other").path != here


def test_other_contents_of_the_same_questions_are_another_evaluation(tmp_path):
    here = folder(tmp_path).path
    assert folder(tmp_path, asked=[*QUESTIONS[:-1], dataclasses.replace(QUESTIONS[-1], answers=("Runo",))]).path != here
    pictured = [dataclasses.replace(QUESTIONS[0], image=Image.of(data)) for data in (b"one", b"two")]
    assert folder(tmp_path, asked=pictured[:1]).path != folder(tmp_path, asked=pictured[1:]).path


def test_an_evaluation_of_an_earlier_version_is_gone_on_with_where_all_that_it_says_is_so(tmp_path):
    new = folder(tmp_path)
    settings = yaml.safe_load((new.path / "settings.yaml").read_text())
    del settings["heldout"], settings["dtype"], settings["retrieval"]["hybrid"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "settings.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert folder(tmp_path, earlier="old").path == new.path  # which is there
    new.path.rename(tmp_path / "elsewhere")
    assert folder(tmp_path, earlier="old").path == tmp_path / "old"
    for other in (folder(tmp_path, "rollout.passages=2", earlier="old"), folder(tmp_path, earlier="missing")):
        assert other.path.name not in ("old", "missing")


def test_sampled_episodes_of_a_question_are_averaged(tmp_path):
    (sampled,) = methods("sampled", **{"evaluation.samples": "4", "rollout.temperature": "0.7"})
    assert (sampled.rollout.group_size, sampled.rollout.temperature, sampled.rollout.mode) == (4, 0.7, "chain")
    results = run(sampled, Workers(lambda number, sample: sample < 1), folder(tmp_path))
    assert results.rows["q3"]["counts"]["exact_match"] == [0.25, 1.0]
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


def test_oracle_routing_is_not_measured_where_nobody_knows_the_gold_steps():
    names = lambda *told, gold: [m.name for m in measured_methods(load_config(list(told)), KBS, gold)]  # noqa: E731
    assert names(gold=False) == ["policy", "random", "all"]
    assert [
        name for name in names("evaluation.methods=[every]", gold=True) if name not in names("evaluation.methods=[every]", gold=False)
    ] == ["oracle"]
    with pytest.raises(RunConfigError, match=r"names oracle, and no held-out question of data\.name=atlas has gold steps .* leave it out"):
        names("evaluation.methods=[policy,oracle]", gold=False)
    unknown = [dataclasses.replace(q, gold_steps=None) for q in QUESTIONS]
    assert not has_gold(unknown)
    assert has_gold([*unknown, dataclasses.replace(QUESTIONS[0], gold_steps=())])
    assert leaves_out_oracle(load_config([]), gold=False)
    assert not leaves_out_oracle(load_config(["evaluation.baselines=[all]"]), gold=False)
    assert not leaves_out_oracle(load_config([]), gold=True)


def test_short_arguments_are_written_out_and_a_new_data_set_forgets_the_old_path():
    arguments = written_out(["policy", "run.yaml", "data.path=x", "method=policy,single:text", "dataset=webqa"])
    assert arguments == [
        *("policy", "data.name=webqa", "data.path=''", "data.image_folder=''", "data.heldout_path=''", "retrieval.folders={}"),
        *("run.yaml", "data.path=x", "evaluation.methods=['policy','single:text']"),
    ]
    config = load_config([argument for argument in arguments[1:] if "=" in argument])
    assert (config.data.name, config.data.path, config.evaluation.methods) == ("webqa", "x", ["policy", "single:text"])


def test_another_data_set_is_asked_without_the_knowledge_bases_of_the_run(tmp_path):
    run_folder = tmp_path / "mine"
    (run_folder / "policy").mkdir(parents=True)
    (run_folder / "policy" / "config.json").write_text("{}")
    (run_folder / "config.yaml").write_text(
        resolved_yaml(load_config(["retrieval.folders.text=kbs/mine", "retrieval.folders.table=kbs/tables"]))
    )
    assert read_arguments(written_out([str(run_folder)]))[0].retrieval.folders == {"text": "kbs/mine", "table": "kbs/tables"}
    assert read_arguments(written_out([str(run_folder), "dataset=webqa"]))[0].retrieval.folders == {}
    named = read_arguments(written_out([str(run_folder), "retrieval.folders.text=kbs/wikipedia", "dataset=webqa"]))[0]
    assert named.retrieval.folders == {"text": "kbs/wikipedia"}


def test_what_was_not_measured_is_nan_and_not_zero(tmp_path):
    (policy,) = methods("policy")
    results = run(policy, Workers(lambda number, sample: False), folder(tmp_path))
    overall = compared({"policy": results}, [policy], [q.id for q in QUESTIONS])["methods"]["policy"]["overall"]
    assert math.isnan(overall["tokens_per_right_answer"]["value"])


class Broken(Workers):
    """Some searches fail, and some episodes."""

    def parts(self, items, retriever, config, at_once=4):
        for start, part, found in super().parts(items, retriever, config, at_once):
            failing = {"q2": {"search_errors": 2}, "q3": {"error": "question q3: its plan prompt is too long"}}
            yield start, part, [dataclasses.replace(t, **failing.get(t.question.id, {})) for t in found]


def test_what_went_wrong_is_stored_shown_and_failed_searches_are_made_again(tmp_path):
    (policy,) = methods("policy")
    ids = [q.id for q in QUESTIONS]
    comparison = compared({"policy": run(policy, Broken(), folder(tmp_path))}, [policy], ids)
    assert {name: comparison["methods"]["policy"][name] for name in ("failed_episodes", "search_errors")} == {
        "failed_episodes": 1,
        "search_errors": 2,
    }
    out = io.StringIO()
    print_comparison(Console(file=out, width=200), comparison, "the title")
    assert "warning, the router: 1 episodes failed and count as wrong; 2 searches failed" in out.getvalue()
    stored = Results(folder(tmp_path).path / "policy.jsonl").rows
    assert (stored["q2"]["search_errors"], stored["q3"]["error"]) == (2, "question q3: its plan prompt is too long")
    again = Workers()
    results = run(policy, again, folder(tmp_path))
    assert again.asked == ["q2"]  # a prompt that is too long stays so
    assert results.went_wrong(ids) == {"failed_episodes": 1, "search_errors": 0}
    assert Results(results.path).went_wrong(ids)["search_errors"] == 0


def test_sums_that_an_earlier_version_stored_are_read_as_means(tmp_path):
    file = tmp_path / "sampled.jsonl"
    file.write_text(json.dumps({"id": "q0", "counts": {"exact_match": [1.0, 4.0], "retrievals_per_question": [6.0, 4.0]}}) + "\n")
    assert Results(file).counts(["q0"]) == [{"exact_match": (0.25, 1.0), "retrievals_per_question": (1.5, 1.0)}]


def test_a_test_that_cannot_be_made_is_a_dash_and_a_null(tmp_path):
    policy, sampled, everything = methods("policy", "sampled", "all")
    where = folder(tmp_path)
    results = {
        "policy": run(policy, Workers(), where),
        "sampled": run(sampled, Workers(lambda number, sample: sample < 1), where),
        "all": run(everything, Workers(lambda number, sample: number < 2), where),
    }
    comparison = compared(results, [policy, sampled, everything], [q.id for q in QUESTIONS])
    assert comparison["differences"]["sampled"]["exact_match"]["p"] < 0.02
    assert math.isnan(comparison["differences"]["sampled"]["exact_match"]["p_mcnemar_corrected"])
    assert comparison["differences"]["all"]["exact_match"]["p_mcnemar_corrected"] == pytest.approx(2 * 0.5**8)
    where.write_summary(comparison)
    assert json.loads((where.path / "summary.json").read_text())["differences"]["sampled"]["exact_match"]["p_mcnemar"] is None


def test_an_evaluation_without_a_place_is_refused_at_once_with_the_mend(ray_cluster, tmp_path, capsys):
    folders = [f"runs_folder={tmp_path}", f"data.kb_folder={tmp_path / 'kbs'}"]
    assert evaluate.main(["experiments/cold_start_policy", "smoke.yaml", "train.gpus_per_rollout_worker=1", *folders]) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 evaluation find no place: one asks for 0.5 CPU, 1 GPU" in said
    assert "Mend: lower train.num_rollout_workers or train.gpus_per_evaluation_worker" in said
    assert not (tmp_path / "kbs").exists()
