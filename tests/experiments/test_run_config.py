"""Settings: what is said wrongly is said back in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.config import CONFIGS, RunConfigError, TrainConfig, flat, load_config, resolved_yaml
from experiments.config.rules import check
from learner.config import LearnerConfig


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train=3"], r"train is '3'; expected keys and values"),
        (["missing.yaml"], r"missing\.yaml: no such configuration file; shipped are .*laptop\.yaml"),
        (["a.yaml", "b.yaml"], r"expected one CONFIG\.yaml"),
    ],
)
def test_an_argument_that_cannot_be_used_is_one_line(arguments: list[str], said: str):
    with pytest.raises(RunConfigError, match=said) as caught:
        load_config(arguments)
    assert "\n" not in str(caught.value)


def test_a_value_that_cannot_be_used_in_a_file_names_the_file_and_the_key(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    for content, said in (
        ("train: {iterations: soon}", r"mine\.yaml: train\.iterations is 'soon'"),
        ("learner: {lr: 0}", r"mine\.yaml: learner\.lr is '0'"),
    ):
        file.write_text(content)
        with pytest.raises(RunConfigError, match=said):
            load_config([str(file)])


def test_checking_a_configuration_does_not_change_it():
    config = load_config(["reward.terms.information_gain=1", "reward.terms.step=1"])
    before = resolved_yaml(config)
    check(config)
    assert resolved_yaml(config) == before
    assert config.rollout.gold_gains


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
    config = load_config(["train.iterations=7", "retrieval.folders.text=kbs/mine", "learner.environment.A=b"])
    file = tmp_path / "config.yaml"
    file.write_text(resolved_yaml(config))
    assert load_config([str(file)]) == config


def test_flat_settings_have_dotted_keys():
    assert flat(TrainConfig())["rollout.group_size"] == TrainConfig().rollout.group_size


def test_every_shipped_configuration_loads():
    assert all(load_config([file.name]).name for file in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize(("cap", "correction"), [("0.0", "none"), ("3.0", "truncate")])
def test_a_run_of_an_older_version_keeps_its_settings_under_today_s_names(tmp_path: Path, cap: str, correction: str):
    file = tmp_path / "config.yaml"
    file.write_text(f"train: {{gpus_per_evaluation_worker: null, iterations: 7}}\nlearner: {{lr: 3e-5, sampler_cap: {cap}}}\n")
    found = load_config([str(file)])
    assert (found.train.iterations, found.learner.lr, found.learner.sampler_correction) == (7, 3e-5, correction)
    assert found.learner.sampler_high == (3.0 if correction == "truncate" else LearnerConfig().sampler_high)
