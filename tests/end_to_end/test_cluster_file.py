"""The cluster file, read as Ray's launcher reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = Path(__file__).parents[2] / "ray_cluster.yaml"


def test_ray_accepts_the_cluster_file():
    validate_config(prepare_config(yaml.safe_load(CLUSTER.read_text())))


def test_there_is_a_place_for_every_room():
    kinds = yaml.safe_load(CLUSTER.read_text())["available_node_types"]
    assert kinds.keys() == {"head", "learner", "rollout", "retrieval"}
    assert {kind for kind, node in kinds.items() if node["resources"].get("GPU")} == {"learner", "rollout"}
    assert kinds["retrieval"]["resources"].keys() >= {"retrieval", "rewards"}


def test_a_misspelt_key_would_be_found():
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(yaml.safe_load(CLUSTER.read_text()) | {"max_worker": 1}))
