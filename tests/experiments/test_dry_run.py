"""A dry run needs no GPU, no weights and no Ray, and says exactly what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from experiments import train
from experiments.config import RunConfigError, find_policy, load_config
from experiments.dry_run import dry_run, examine_placement
from experiments.findings import Finding
from experiments.kb_findings import examine_knowledge_bases
from experiments.policy_shape import examine_policy, policy_shape
from learner.config import LearnerConfig
from retrieval_actors.knowledge_base import KnowledgeBase

POLICY = find_policy("experiments/cold_start_policy")


def printed(*settings: str) -> tuple[bool, str]:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    good = dry_run(load_config(list(settings)), console)
    return good, console.export_text()


def test_the_smoke_configuration_would_start(tmp_path):
    good, text = printed("smoke.yaml", f"data.kb_folder={tmp_path}")
    assert good
    for said in (
        "questions a worker",
        "who runs where",
        "tokenizer",
        "chat template",
        "picture tokens",
        "will be built first",
        "everything has a place",
    ):
        assert said in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("file", "parameters"), [("paper_3b.yaml", "3,754,622,976"), ("paper_7b.yaml", "8,292,166,656")])
def test_a_paper_configuration_fits_its_gpus_and_says_what_has_to_be_brought(file, parameters):
    good, text = printed(file)
    assert parameters in text
    assert "ok    rollout GPU" in text
    assert "ok    learner GPU" in text
    assert "everything has a place" in text
    if not good:  # what is not part of the repository: questions, knowledge bases
        failed = {line.split()[1] for line in text.splitlines() if line.startswith("fail")}
        assert failed <= {"data", "knowledge"}, text
        assert "r1_router_questions.jsonl" in text
        assert "set retrieval.folders.text_image" in " ".join(text.split())


def test_one_gpu_is_shared_and_its_memory_is_enough():
    _, text = printed("one_gpu_3b.yaml")
    assert "ok    every GPU" in text
    assert "everything has a place" in text


def test_a_policy_that_does_not_fit_is_told_what_to_change():
    good, text = printed("paper_7b.yaml", "learner.zero_stage=1", "learner.num_learners=1", "learner.gradient_checkpointing=false")
    assert not good
    (line,) = [line for line in text.splitlines() if line.startswith("fail  learner GPU")]
    assert "the largest part is" in line


CLUSTER = """
head_node_type: head
available_node_types:
  head: {resources: {CPU: 8}}
  gpu: {resources: {CPU: 64, GPU: 8}, min_workers: 1, max_workers: 13}
"""


@pytest.mark.parametrize(
    ("cluster", "learners", "status", "said"),
    [
        (CLUSTER, 4, "ok", "on mine.yaml: everything has a place"),
        (CLUSTER, 96, "ok", "on mine.yaml, grown to max_workers (ray.join_s=600 asks for that): everything has a place"),
        (CLUSTER, 112, "fail", "105 of 112 learner find no place"),
        ("a: b", 1, "fail", "no file of Ray's launcher; expected available_node_types and head_node_type"),
        (None, 1, "fail", "no such file; expected a file of Ray's launcher, or '' for none"),
        ("", 1, "warn", "not looked at: ray.cluster_file is empty"),
    ],
)
def test_a_run_is_laid_onto_the_cluster_of_its_own(tmp_path, cluster, learners, status, said):
    file = tmp_path / "mine.yaml"
    if cluster:
        file.write_text(cluster)
    settings = [f"learner.num_learners={learners}", "learner.gpus_per_learner=1", "train.gpus_per_rollout_worker=0.5"]
    config = load_config([*settings, "ray.cluster_file=''" if cluster == "" else f"ray.cluster_file={file}"])
    finding = examine_placement(config, None, Console(file=Path("/dev/null").open("w")))  # noqa: SIM115
    assert finding.status == status
    assert said in f"{finding.found} {finding.mend}"


def test_the_command_ends_with_0_or_2(tmp_path, capsys):
    assert train.main(["smoke.yaml", "train.dry_run=true", f"data.kb_folder={tmp_path}"]) == 0
    assert "nothing was started" in capsys.readouterr().out
    assert train.main(["smoke.yaml", "train.dry_run=true", "train.policy=./nowhere"]) == 2
    assert "no folder with a config.json there" in " ".join(capsys.readouterr().out.split())


def found_in(folder: Path, context: int = 64) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine_policy(policy_shape(str(folder), LearnerConfig()), context)}


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copytree(POLICY, tmp_path / "policy"))


def test_a_whole_policy_folder_is_all_right(copied):
    assert {finding.status for finding in found_in(copied).values()} == {"ok"}


def test_a_prompt_longer_than_the_context_is_refused(copied):
    assert found_in(copied, 10_000)["context"].mend == "lower rollout.max_prompt_tokens or rollout.max_new_tokens"


def test_missing_weights_are_named(copied):
    (copied / "model.safetensors").unlink()
    assert found_in(copied)["policy"].status == "fail"


def test_a_missing_chat_template_is_named(copied):
    (copied / "chat_template.jinja").unlink()
    assert "chat_template.jinja" in found_in(copied)["chat template"].mend


def test_a_chat_template_that_loses_the_question_is_found(copied):
    (copied / "chat_template.jinja").write_text("<|im_start|>assistant\n")
    assert "loses a message" in found_in(copied)["chat template"].found


def test_pictures_whose_tokens_are_not_their_vectors_are_found(copied):
    file = copied / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"merge_size": 1}))
    assert found_in(copied)["picture tokens"].status == "fail"


def test_a_tokenizer_with_more_words_than_the_model_is_found(copied):
    file = copied / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["vocab_size"] = 600
    file.write_text(json.dumps(config))
    assert "the model has 600" in found_in(copied)["tokenizer"].found


def test_a_model_whose_shapes_nobody_knows_says_how_to_get_it():
    with pytest.raises(RunConfigError, match=r"hf download somebody/something"):
        policy_shape("somebody/something", LearnerConfig())


def test_adapters_for_layers_that_there_are_not_are_refused(tmp_path):
    good, text = printed("smoke.yaml", f"data.kb_folder={tmp_path}", "learner.lora_rank=4", "learner.lora_targets=[w_q]")
    assert not good
    assert "learner.lora_targets names 'w_q'" in text


def test_another_knowledge_base_than_that_of_the_checkpoint_is_found(tmp_path):
    from test_doctor import kb

    from experiments.datasets import KnowledgeBaseSource
    from experiments.run_folder import COMPLETE

    source = KnowledgeBaseSource("text", kb(tmp_path / "mine", "text"))
    checkpoint = tmp_path / "smoke" / "checkpoints" / "iteration-000001"
    checkpoint.mkdir(parents=True)
    config = load_config(["smoke.yaml", f"runs_folder={tmp_path}", "train.resume=auto"])
    for fingerprint, statuses in ((KnowledgeBase.open(source.folder).fingerprint, ["ok"]), ("another", ["ok", "fail"])):
        (checkpoint / COMPLETE).write_text(json.dumps({"knowledge_bases": {"text": fingerprint}}))
        assert [finding.status for finding in examine_knowledge_bases(config, [source])] == statuses
