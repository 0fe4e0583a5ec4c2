"""A dry run needs no GPU, no weights and no Ray, and says exactly what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image as PillowImage
from rich.console import Console

from experiments import train
from experiments.cluster.dry_run import check_placement, dry_run
from experiments.cluster.findings import Finding
from experiments.cluster.gpu_memory import learner_memory, processes_on_a_gpu, sampler_memory
from experiments.cluster.policy_shape import check_policy, policy_shape
from experiments.config import RunConfigError, find_policy, load_config
from learner.config import LearnerConfig

POLICY = find_policy("experiments/worlds/cold_start_policy")


def printed(*settings: str) -> tuple[bool, str]:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    good = dry_run(load_config(list(settings)), console)
    return good, console.export_text()


def test_the_smoke_configuration_would_start(tmp_path):
    good, text = printed("smoke.yaml", f"data.kb_folder={tmp_path}")
    assert good
    for said in (
        "what the run requests",
        "tokenizer",
        "chat template",
        "picture tokens",
        "will be built first",
        "room for everything",
    ):
        assert said in text
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_is_refused_by_a_dry_run_with_file_and_line(tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(f'{{"text": "q{i}", "answers": ["a"]}}\n' for i in range(30)) + '{"text": "\\ud83d", "answers": ["a"]}\n')
    good, text = printed("smoke.yaml", "data.name=questions", f"data.path={questions}", f"retrieval.folders.text={tmp_path}")
    assert not good
    assert f"{questions}:31:found\\ud83d,halfofasurrogatepair" in "".join(text.split())


def test_pictures_that_the_policy_cannot_look_at_are_said(tmp_path):
    PillowImage.new("RGB", (900, 3)).save(tmp_path / "thin.png")
    (tmp_path / "questions.jsonl").write_text('{"text": "What is it?", "answers": ["x"], "image": "thin.png"}\n')
    _, text = printed("smoke.yaml", "data.name=questions", f"data.path={tmp_path}/questions.jsonl", f"retrieval.folders.text={tmp_path}")
    assert "questions.jsonl:1:image'thin.png'is900x3pixels" in "".join(text.split())


@pytest.mark.parametrize(("file", "parameters"), [("paper_3b.yaml", "3,754,622,976"), ("paper_7b.yaml", "8,292,166,656")])
def test_a_paper_configuration_fits_its_gpus_and_says_what_has_to_be_brought(file, parameters):
    good, text = printed(file)
    assert parameters in text
    assert "ok    rollout GPU" in text
    assert "ok    learner GPU" in text
    assert "room for everything" in text
    if not good:  # what is not part of the repository: questions, knowledge bases
        failed = {line.split()[1] for line in text.splitlines() if line.startswith("fail")}
        assert failed <= {"data", "knowledge"}, text
        assert "r1_router_questions.jsonl" in text
        assert "set retrieval.folders.text_image" in " ".join(text.split())


def test_one_gpu_is_shared_and_its_memory_is_enough():
    _, text = printed("one_gpu_3b.yaml")
    assert "ok    every GPU" in text
    assert "room for everything" in text


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
        (CLUSTER, 4, "ok", "room for everything on mine.yaml"),
        (CLUSTER, 96, "ok", "room for everything on mine.yaml, grown to max_workers"),
        (CLUSTER, 112, "fail", "no room for 112 x learner"),
        ("a: b", 1, "fail", "no file of Ray's launcher; expected available_node_types and head_node_type"),
        (None, 1, "fail", "no such file; expected a file of Ray's launcher, or '' for none"),
        ("", 1, "warn", "not checked: ray.cluster_file is empty"),
    ],
)
def test_a_run_is_compared_with_the_cluster_of_its_own(tmp_path, cluster, learners, status, said):
    file = tmp_path / "mine.yaml"
    if cluster:
        file.write_text(cluster)
    settings = [f"learner.num_learners={learners}", "learner.gpus_per_learner=1", "train.gpus_per_rollout_worker=0.5"]
    config = load_config([*settings, f"ray.cluster_file={cluster and file}"])
    finding = check_placement(config, None, None, Console(quiet=True))
    assert finding.status == status
    assert said in f"{finding.found} {finding.fix}"


def test_the_command_ends_with_0_or_2(tmp_path, capsys):
    assert train.main(["smoke.yaml", "train.dry_run=true", f"data.kb_folder={tmp_path}"]) == 0
    assert "nothing was started" in capsys.readouterr().out
    assert train.main(["smoke.yaml", "train.dry_run=true", "train.policy=./nowhere"]) == 2
    assert "a folder with a config.json" in " ".join(capsys.readouterr().out.split())


def found_in(folder: Path, context: int = 64) -> dict[str, Finding]:
    return {finding.what: finding for finding in check_policy(policy_shape(str(folder), LearnerConfig()), context)}


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copytree(POLICY, tmp_path / "policy"))


def test_a_whole_policy_folder_is_all_right(copied):
    assert {finding.status for finding in found_in(copied).values()} == {"ok"}


def test_a_prompt_longer_than_the_context_is_refused(copied):
    assert found_in(copied, 10_000)["context"].fix == "lower rollout.max_prompt_tokens or rollout.max_new_tokens"


def test_missing_weights_are_named(copied):
    (copied / "model.safetensors").unlink()
    assert found_in(copied)["policy"].status == "fail"


def test_a_missing_chat_template_is_named(copied):
    (copied / "chat_template.jinja").unlink()
    assert "chat_template.jinja" in found_in(copied)["chat template"].fix


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


def test_only_so_many_processes_share_a_gpu_as_there_are_and_as_their_shares_allow():
    def together(*settings: str) -> dict[str, dict[str, int]]:
        return processes_on_a_gpu(load_config(list(settings)))

    assert together("paper_3b.yaml") == {"rollout GPU": {"rollout": 1}, "learner GPU": {"learner": 1}}
    assert together("one_gpu_3b.yaml") == {"every GPU": {"learner": 1, "rollout": 1}}
    assert together("smoke.yaml") == {}
    assert together("train.num_rollout_workers=1", "train.gpus_per_rollout_worker=0.1") == {"rollout GPU": {"rollout": 1}}
    four = together("train.num_rollout_workers=4", "train.gpus_per_rollout_worker=0.4")
    assert four == {"rollout GPU": {"rollout": 2}}


def memory(role: str, *settings: str) -> dict[str, int]:
    config = load_config(["paper_3b.yaml", *settings])
    policy = policy_shape("Qwen/Qwen2.5-VL-3B-Instruct", LearnerConfig()).policy.model.config
    if role == "learner":
        return learner_memory(config, policy, 4000, 4000, 100)
    return sampler_memory(config, policy, 1000)


def test_a_rollout_worker_keeps_what_a_broadcast_brought_beside_the_policy():
    assert memory("rollout", "learner.transport=collective")["weights received"] == 2 * 1000
    assert "weights received" not in memory("rollout")


def test_what_saves_memory_saves_memory():
    plain = memory("learner")
    assert plain["model states"] == 2 * 4000 + 18 * 4000 // 4  # ZeRO 2 over 4 ranks
    assert memory("learner", "learner.zero_stage=3")["model states"] < plain["model states"]
    assert memory("learner", "learner.offload=optimizer")["model states"] < plain["model states"]
    assert memory("learner", "learner.gradient_checkpointing=false")["activations"] > 5 * plain["activations"]
    assert memory("learner", "learner.kl_weight=0.1")["reference"] == 2 * 4000
