"""Methods measured on the same questions: stored question by question, resumed, and compared pair by pair."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from episodes import episode, question, step, stop
from rich.console import Console

from experiments import evaluate
from experiments.command_line.progress import Progress
from experiments.config import RunConfigError, load_config, resolved_yaml
from experiments.datasets import Dataset
from experiments.datasets.dataset import KnowledgeBaseSource
from experiments.evaluate import expand_arguments, read_arguments
from experiments.evaluation.evaluate_methods import compare_methods, measure, measured_methods
from experiments.evaluation.evaluation_folder import Results, evaluation_folder
from experiments.evaluation.metrics import METRICS, confusion
from experiments.evaluation.result_tables import print_methods
from experiments.tracking.run_folder import RunFolder
from rollout.records import Image

KBS = ["text", "text_image", "table"]
QUESTIONS = [question(number, family="even" if number % 2 == 0 else "odd") for number in range(10)]
DATA = Dataset([], [], QUESTIONS, evaluation_kbs=tuple(KnowledgeBaseSource(name, Path("kbs") / name) for name in KBS))
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
    return measured_methods(load_config(arguments), DATA)


def folder(tmp_path, *overrides: str, kb: str = "abc", asked=QUESTIONS) -> Path:
    return evaluation_folder(load_config([f"evaluation.folder={tmp_path}", *overrides]), "policy", {"text": kb}, asked)


def run(method, workers, where, traced=0):
    with Progress(Console(file=io.StringIO()), "evaluate", 1, 0) as progress:
        return measure(workers, method, DATA, RETRIEVER, where, progress, traced=traced)


def test_the_first_questions_of_each_method_become_traces_and_none_unless_asked_for(tmp_path):
    for method in methods("policy", "direct"):
        run(method, Workers(), folder(tmp_path), traced=3)
    lines = [json.loads(line) for line in (folder(tmp_path) / "traces.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["question_id"]) for line in lines] == [(m, f"q{n}") for m in ("policy", "direct") for n in range(3)]
    assert lines[0]["figures"] == {"routing_accuracy": 1.0, "exact_match": True, "f1_recall": 1.0}
    (policy,) = methods("policy")
    run(policy, Workers(), folder(tmp_path, "rollout.max_steps=2"))
    assert not (folder(tmp_path, "rollout.max_steps=2") / "traces.jsonl").exists()


def test_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    (policy,) = methods("policy")
    first, second = Workers(dies_after=6), Workers()
    with pytest.raises(KeyboardInterrupt):
        run(policy, first, folder(tmp_path))
    path = folder(tmp_path) / "policy.jsonl"
    path.write_bytes(path.read_bytes()[:-25])  # the kill came in the middle of a line
    results = run(policy, second, folder(tmp_path))
    assert second.asked == [f"q{number}" for number in (5, 6, 7, 8, 9)]
    assert sorted(results.rows) == sorted(q.id for q in QUESTIONS)
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [f"q{number}" for number in range(10)]
    again = Workers()
    run(policy, again, folder(tmp_path))
    assert again.asked == []


def test_other_settings_are_another_evaluation_and_more_workers_are_not(tmp_path):
    here = folder(tmp_path)
    assert folder(tmp_path, "train.num_rollout_workers=1", "evaluation.methods=[direct]") == here
    assert folder(tmp_path, "rollout.passages=2") != here
    assert folder(tmp_path, "evaluation.questions=3") != here
    assert folder(tmp_path, "retrieval.hybrid=true") != here
    assert folder(tmp_path, "learner.dtype=bfloat16", "learner.zero_stage=1") != here
    assert folder(tmp_path, kb="other") != here


def test_other_contents_of_the_same_questions_are_another_evaluation(tmp_path):
    here = folder(tmp_path)
    assert folder(tmp_path, asked=[*QUESTIONS[:-1], dataclasses.replace(QUESTIONS[-1], answers=("Runo",))]) != here
    pictured = [dataclasses.replace(QUESTIONS[0], image=Image.of(data)) for data in (b"one", b"two")]
    assert folder(tmp_path, asked=pictured[:1]) != folder(tmp_path, asked=pictured[1:])


def test_sampled_episodes_of_a_question_are_averaged(tmp_path):
    (sampled,) = methods("sampled", **{"evaluation.samples": "4", "rollout.temperature": "0.7"})
    assert (sampled.rollout.group_size, sampled.rollout.temperature, sampled.rollout.mode) == (4, 0.7, "chain")
    results = run(sampled, Workers(lambda number, sample: sample < 1), folder(tmp_path))
    assert results.rows["q3"]["counts"]["exact_match"] == [0.25, 1.0]
    comparison = compare_methods({"sampled": results}, [sampled], [q.id for q in QUESTIONS])
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
    comparison = compare_methods(results, [policy, everything, direct], [q.id for q in QUESTIONS])
    difference = comparison["differences"]["all"]["exact_match"]
    assert difference["value"] == pytest.approx(0.8)
    assert difference["low"] > 0
    assert difference["p"] < 0.02
    assert difference["p_corrected"] >= difference["p"]
    overall = comparison["methods"]["all"]["overall"]
    assert set(overall) == set(METRICS)
    assert comparison["methods"]["all"]["kb_shares"]["table"]["value"] == pytest.approx(0.8)
    assert {name: family["questions"] for name, family in comparison["methods"]["all"]["by_family"].items()} == {"even": 5, "odd": 5}
    assert comparison["methods"]["all"]["isolates"]
    RunFolder(where).write_summary(comparison)
    out = io.StringIO()
    print_methods(Console(file=out, width=200), comparison, "the title")
    stored = json.loads((where / "summary.json").read_text())
    again = io.StringIO()
    print_methods(Console(file=again, width=200), stored, "the title")
    assert again.getvalue() == out.getvalue()
    assert (stored["when"]["known"], stored["when"]["by_family"]["odd"]["known"]) == (9, 5)
    for part in ("the title", "no retrieval", "share of table", "+0.800", "searches of known"):
        assert part in out.getvalue()


def test_the_stored_steps_say_where_plan_turns_went_and_what_was_right(tmp_path):
    (policy,) = methods("policy")
    results = run(policy, Workers(lambda number, sample: number < 4), folder(tmp_path))
    assert confusion(results.rows.values()) == {("text", "text"): 4, ("text", "table"): 6, ("stop", "stop"): 4, ("text", "stop"): 6}


def test_a_search_for_each_right_answer_is_a_ratio_of_sums(tmp_path):
    (policy,) = methods("policy")
    results = run(policy, Workers(lambda number, sample: number < 5), folder(tmp_path))
    overall = compare_methods({"policy": results}, [policy], [q.id for q in QUESTIONS])["methods"]["policy"]["overall"]
    assert overall["retrievals_per_right_answer"]["value"] == pytest.approx(10 / 5)
    assert overall["hit_at_k"]["value"] == 0.5  # a passage of the table knowledge base is no evidence for a fact of the text


def test_every_method_is_asked_for_by_one_word_and_unknown_ones_are_named():
    names = [method.name for method in methods("every")]
    assert names[:2] == ["policy", "sampled"]
    assert {"direct", "all", "ircot", "never_stop", "random", "oracle", "single:text", "single:table"} < set(names)
    assert [method.name for method in measured_methods(load_config([]), DATA)] == ["policy", "random", "all", "oracle"]
    with pytest.raises(RunConfigError, match=r"evaluation\.methods names 'guess'"):
        methods("guess")
    with pytest.raises(RunConfigError, match="single:news"):
        methods("'single:news'")
    with pytest.raises(RunConfigError, match=r"retrieval\.folders"):
        measured_methods(load_config(["evaluation.methods=[direct,all]"]), Dataset([], [], QUESTIONS))


def test_oracle_routing_is_not_measured_where_nobody_knows_the_gold_steps():
    unknown = dataclasses.replace(DATA, heldout=[dataclasses.replace(q, gold_steps=None) for q in QUESTIONS])
    names = lambda told, data: [m.name for m in measured_methods(load_config(told), data)]  # noqa: E731
    assert names([], unknown) == ["policy", "random", "all"]
    every = ["evaluation.methods=[every]"]
    assert [name for name in names(every, DATA) if name not in names(every, unknown)] == ["oracle"]
    with pytest.raises(RunConfigError, match=r"evaluation\.methods names .oracle."):
        names(["evaluation.methods=[policy,oracle]"], unknown)
    one_known = dataclasses.replace(unknown, heldout=[*unknown.heldout, dataclasses.replace(QUESTIONS[0], gold_steps=())])
    assert "oracle" in names([], one_known)


def test_short_arguments_are_expand_arguments_and_a_new_data_set_forgets_the_old_path():
    arguments = expand_arguments(["policy", "run.yaml", "data.path=x", "method=policy,single:text", "dataset=webqa"])
    assert arguments == [
        *("policy", "data.name=webqa", "data.path=", "data.image_folder=", "data.heldout_path=", "retrieval.folders={}"),
        *("run.yaml", "data.path=x", 'evaluation.methods=["policy", "single:text"]'),
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
    assert read_arguments(expand_arguments([str(run_folder)]))[0].retrieval.folders == {"text": "kbs/mine", "table": "kbs/tables"}
    assert read_arguments(expand_arguments([str(run_folder), "dataset=webqa"]))[0].retrieval.folders == {}
    named = read_arguments(expand_arguments([str(run_folder), "retrieval.folders.text=kbs/wikipedia", "dataset=webqa"]))[0]
    assert named.retrieval.folders == {"text": "kbs/wikipedia"}


def test_what_was_not_measured_is_nan_and_not_zero(tmp_path):
    (policy,) = methods("policy")
    results = run(policy, Workers(lambda number, sample: False), folder(tmp_path))
    overall = compare_methods({"policy": results}, [policy], [q.id for q in QUESTIONS])["methods"]["policy"]["overall"]
    assert math.isnan(overall["tokens_per_right_answer"]["value"])


class Broken(Workers):
    """Some searches fail, and some episodes."""

    def parts(self, items, retriever, config, at_once=4):
        for start, part, found in super().parts(items, retriever, config, at_once):
            failing = {"q2": {"search_errors": 2}, "q3": {"error": "question q3: its plan prompt is too long"}}
            yield start, part, [dataclasses.replace(t, **failing.get(t.question.id, {})) for t in found]


def test_what_failures_is_stored_shown_and_failed_searches_are_made_again(tmp_path):
    (policy,) = methods("policy")
    ids = [q.id for q in QUESTIONS]
    comparison = compare_methods({"policy": run(policy, Broken(), folder(tmp_path))}, [policy], ids)
    found = comparison["methods"]["policy"]
    assert {name: found[name] for name in ("failed_episodes", "search_errors", "unmeasured_episodes", "questions")} == {
        "failed_episodes": 1,
        "search_errors": 2,
        "unmeasured_episodes": 1,
        "questions": len(ids),
    }
    out = io.StringIO()
    print_methods(Console(file=out, width=200), comparison, "the title")
    assert "warning, the router: 1 episodes failed" in out.getvalue()
    stored = Results(folder(tmp_path), "policy").rows
    assert (stored["q2"]["search_errors"], stored["q3"]["error"]) == (2, "question q3: its plan prompt is too long")
    assert stored["q2"]["counts"] == {}
    again = Workers()
    results = run(policy, again, folder(tmp_path))
    assert again.asked == ["q2"]  # a prompt that is too long stays so
    assert results.failures(ids) == {"failed_episodes": 1, "search_errors": 0, "unmeasured_episodes": 0}
    assert Results(folder(tmp_path), "policy").failures(ids)["search_errors"] == 0


def test_a_difference_that_cannot_be_measured_is_a_dash_and_a_null(tmp_path):
    policy, everything = methods("policy", "all")
    where = folder(tmp_path)
    results = {"policy": run(policy, Workers(), where), "all": run(everything, Workers(lambda number, sample: False), where)}
    comparison = compare_methods(results, [policy, everything], [q.id for q in QUESTIONS])
    assert math.isnan(comparison["differences"]["all"]["tokens_per_right_answer"]["value"])
    RunFolder(where).write_summary(comparison)
    assert json.loads((where / "summary.json").read_text())["differences"]["all"]["tokens_per_right_answer"]["value"] is None


def test_all_data_sets_are_checked_before_the_first_is_measured(tmp_path, capsys):
    settings = [f"data.folder={tmp_path}", f"evaluation.folder={tmp_path / 'evaluations'}", f"data.kb_folder={tmp_path / 'kbs'}"]
    assert evaluate.main(["experiments/worlds/cold_start_policy", "smoke.yaml", "dataset=atlas,nq", *settings]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "set data.path to where data.name=nq lies" in line
    assert not (tmp_path / "kbs").exists()


def test_an_evaluation_without_a_place_is_refused_at_once(ray_cluster, tmp_path, capsys):
    folders = [f"runs_folder={tmp_path}", f"data.kb_folder={tmp_path / 'kbs'}"]
    assert evaluate.main(["experiments/worlds/cold_start_policy", "smoke.yaml", "train.gpus_per_rollout_worker=1", *folders]) == 2
    assert "GPU" in capsys.readouterr().out
    assert not (tmp_path / "kbs").exists()
