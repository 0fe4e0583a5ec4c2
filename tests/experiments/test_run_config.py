"""Settings: what is said wrongly is said back in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config import CONFIGS, RunConfigError, TrainConfig, flat, load_config, resolved_yaml


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rollout.group_sise=3"], r"unknown key rollout\.group_sise; did you mean rollout\.group_size\?"),
        (["iterations=3"], r"unknown key iterations; did you mean train\.iterations\?"),
        (["train.iterations=many"], r"train\.iterations.*many"),
        (["train=3"], r"train is 3; expected keys and values"),
        (["train.iterations=0"], r"train\.iterations is 0; expected at least 1"),
        (["retrieval.replicas=0"], r"retrieval\.replicas is 0; expected at least 1"),
        (["retrieval.deadline_s=0"], r"retrieval\.deadline_s is 0\.0; expected seconds above 0"),
        (["rollout.mode=tree"], r"rollout\.mode is 'tree'; expected branch, chain or offline"),
        (["rollout.mode=offline"], r"does not go with data\.name=atlas"),
        (["evaluation.baselines=[oracel]"], r"evaluation\.baselines"),
        (["reward.query_weight=1"], r"reward\.query_weight .* has to be 1"),
        (["learner.zero_stage=9"], r"learner\.zero_stage"),
        (["missing.yaml"], r"missing\.yaml: no such configuration file; shipped are .*laptop\.yaml"),
        (["a.yaml", "b.yaml"], r"expected one CONFIG\.yaml"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_its_key(arguments: list[str], said: str):
    with pytest.raises(RunConfigError, match=said) as caught:
        load_config(arguments)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("learner:\n  learning_rate: 1\n")
    with pytest.raises(RunConfigError, match=r"mine\.yaml: unknown key learner\.learning_rate"):
        load_config([str(file)])


def test_a_file_that_is_not_yaml_is_one_line(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: [1, 2\n")
    with pytest.raises(RunConfigError, match=r"mine\.yaml: not YAML") as caught:
        load_config([str(file)])
    assert "\n" not in str(caught.value)


def test_the_command_line_wins_over_the_file_and_the_file_over_its_base(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("name: base\ntrain: {iterations: 1, seed: 1, questions_per_iteration: 1}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nname: mine\ntrain: {iterations: 2, seed: 2}\n")
    config = load_config([str(tmp_path / "mine.yaml"), "train.iterations=3"])
    assert (config.name, config.train.iterations, config.train.seed, config.train.questions_per_iteration) == ("mine", 3, 2, 1)


def test_the_resolved_configuration_reads_back_to_itself(tmp_path: Path):
    config = load_config(["train.iterations=7", "retrieval.folders.text=kbs/mine", "learner.kind_weights.plan=2"])
    file = tmp_path / "config.yaml"
    file.write_text(resolved_yaml(config))
    assert load_config([str(file)]) == config


def test_flat_settings_have_dotted_keys():
    assert flat(TrainConfig())["rollout.group_size"] == TrainConfig().rollout.group_size


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_shipped_configuration_loads(file: str):
    assert load_config([file]).name
