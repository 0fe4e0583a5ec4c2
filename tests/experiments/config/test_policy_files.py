"""A policy's folder that cannot work is refused before anything starts, in a line that says what to do."""

from __future__ import annotations

import json
import shutil

import pytest
from policy_families import saved_family

from experiments.config import RunConfigError
from experiments.config.policy_files import check_policy_files
from rollout.config import RolloutConfig

FITS = RolloutConfig(max_prompt_tokens=1000)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(saved_family("smolvlm"), tmp_path / "policy")


def test_a_whole_folder_and_a_hub_name_pass(folder):
    check_policy_files(str(folder), FITS)
    check_policy_files("Qwen/Qwen3-0.6B", FITS)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", r"config\.json"),
        ("tokenizer_config.json", r"tokenizer_config\.json"),
        ("model.safetensors", "no weights; expected model.safetensors"),
        (
            "chat_template.jinja",
            r"no chat template: put its chat_template\.jinja beside it, or set chat_template in tokenizer_config\.json",
        ),
    ],
)
def test_a_missing_file_is_named(folder, file, said):
    (folder / file).unlink()
    with pytest.raises(RunConfigError, match=said):
        check_policy_files(str(folder), FITS)


def test_a_template_in_the_tokenizer_s_config_is_enough(folder):
    (folder / "chat_template.jinja").unlink()
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": "{{ messages }}"}))
    check_policy_files(str(folder), FITS)


def test_a_context_that_is_too_short_names_the_setting_and_the_most_that_fits(folder):
    with pytest.raises(RunConfigError, match=r"rollout\.max_prompt_tokens is 2000; expected at most 1984: .* has a context of 2048 tokens"):
        check_policy_files(str(folder), RolloutConfig(max_prompt_tokens=2000))
