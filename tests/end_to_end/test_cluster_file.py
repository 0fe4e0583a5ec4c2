"""The cluster files, read as those read them who start the clusters: Ray's launcher, and KubeRay's operator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

from experiments.cluster.placement import cluster_file_nodes, missing, on_nodes_of_roles, requests_of
from experiments.config import CONFIGS, load_config

CLUSTER = Path(__file__).parents[2] / "ray_cluster.yaml"
KUBERAY = CONFIGS / "kuberay"
PAPER = ("paper_3b.yaml", "paper_7b.yaml")


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


def test_the_set_up_installs_this_repository_with_the_pinned_versions():
    commands = " ".join(yaml.safe_load(CLUSTER.read_text())["setup_commands"])
    assert "constraints.txt" in commands
    assert "-e '~/r1-router[gpu]'" in commands


def test_the_command_that_the_file_names_is_a_run_that_leaves_nothing_in_the_copy_of_its_job():
    lines = [line.removeprefix("#") for line in CLUSTER.read_text().splitlines() if line.startswith("#   ")]
    words = " ".join(lines).partition(" -- ")[2].split()
    assert words[:3] == ["python", "-m", "experiments.train"]
    config = load_config(words[3:])
    assert config.train.resume == "auto"
    assert config.tracking.uri.startswith("sqlite:////")
    assert all(Path(path).is_absolute() for path in (config.runs_folder, config.data.path, *config.retrieval.folders.values()))


def test_every_node_asks_for_the_token_that_it_was_given():
    cluster = yaml.safe_load(CLUSTER.read_text())
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"  # where Ray looks for it, on every machine
    starts = [line for key in ("head", "worker") for line in cluster[f"{key}_start_ray_commands"] if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)


def object_stores() -> dict[str, int]:
    """Where a node is started -> bytes of its object store."""
    cluster = yaml.safe_load(CLUSTER.read_text())
    found = {
        f"launcher, {key}": int(re.search(r"--object-store-memory=(\d+)", cluster[f"{key}_start_ray_commands"][-1])[1])
        for key in ("head", "worker")
    }
    for file in MANIFESTS:
        for group in groups_of(file):
            found[f"{file}, {group.get('groupName', 'head')}"] = int(group["rayStartParams"]["object-store-memory"])
    return found


@pytest.mark.parametrize("file", PAPER)
def test_the_object_store_of_every_node_is_as_large_as_the_paper_configurations_ask(file):
    stores = object_stores()
    assert len(stores) == 10
    assert min(stores.values()) >= load_config([file]).ray.object_store_mb * 2**20


def lacking(file: str, nodes: list[dict[str, float]]) -> str:
    config = load_config([file])
    return missing(requests_of(on_nodes_of_roles(config, {name for node in nodes for name in node}), []), nodes)


@pytest.mark.parametrize("file", PAPER)
def test_the_nodes_that_are_started_have_room_for_the_paper_configurations(file):
    nodes = cluster_file_nodes(CLUSTER)
    assert lacking(file, nodes) == ""
    fewer = list(nodes)
    fewer.remove(next(node for node in nodes if "rollout" in node))
    assert "4 x rollout" in lacking(file, fewer) or "4 x evaluation" in lacking(file, fewer)


# KubeRay. The published schema of each of the two resources has 700,000 characters, most of them Kubernetes' own pod template; below is the
# part that is ours to get wrong: which keys there are (KubeRay 1.5.1) and what kind of value belongs there.
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
CONTAINER = {
    "type": "object",
    "required": ["name", "image", "resources"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "image": {"type": "string"},
        "ports": {"type": "array", "items": {"type": "object", "required": ["containerPort"]}},
        "resources": {"type": "object", "required": ["requests", "limits"]},
        "volumeMounts": {"type": "array", "items": {"type": "object", "required": ["name", "mountPath"]}},
    },
}
TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "additionalProperties": False,
            "properties": {
                "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
                "volumes": {"type": "array", "items": {"type": "object", "required": ["name"]}},
            },
        }
    },
}
GROUP = {
    "type": "object",
    "required": ["groupName", "template", "rayStartParams", "replicas", "minReplicas", "maxReplicas"],
    "additionalProperties": False,
    "properties": {
        "groupName": {"type": "string"},
        "template": TEMPLATE,
        "rayStartParams": TEXTS,
        "numOfHosts": {"type": "integer"},
        **{key: {"type": "integer", "minimum": 0} for key in ("replicas", "minReplicas", "maxReplicas")},
    },
}
RAY_CLUSTER = {
    "type": "object",
    "required": ["headGroupSpec", "rayVersion"],
    "additionalProperties": False,
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {"type": "object", "properties": {"mode": {"enum": ["disabled", "token"]}}, "additionalProperties": False},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "headGroupSpec": {
            "type": "object",
            "required": ["template", "rayStartParams"],
            "additionalProperties": False,
            "properties": {"template": TEMPLATE, "rayStartParams": TEXTS, "serviceType": {"type": "string"}},
        },
        "workerGroupSpecs": {"type": "array", "items": GROUP},
    },
}
RAY_JOB = {
    "type": "object",
    "required": ["entrypoint", "rayClusterSpec"],
    "additionalProperties": False,
    "properties": {
        "entrypoint": {"type": "string"},
        "rayClusterSpec": RAY_CLUSTER,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        "runtimeEnvYAML": {"type": "string"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "backoffLimit": {"type": "integer"},
        "ttlSecondsAfterFinished": {"type": "integer"},
        "activeDeadlineSeconds": {"type": "integer"},
    },
}
MANIFESTS = {"ray_cluster.yaml": ("RayCluster", RAY_CLUSTER), "ray_job.yaml": ("RayJob", RAY_JOB)}


@pytest.mark.parametrize("file", MANIFESTS)
def test_a_manifest_has_the_keys_of_its_resource(file):
    manifest, (kind, schema) = yaml.safe_load((KUBERAY / file).read_text()), MANIFESTS[file]
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", kind)
    Draft202012Validator(schema).validate(manifest["spec"])
    misspelt = manifest["spec"] | {"rayVersions": "2"}
    assert [error.message for error in Draft202012Validator(schema).iter_errors(misspelt)]


def spec_of(file: str) -> dict:
    spec = yaml.safe_load((KUBERAY / file).read_text())["spec"]
    return spec.get("rayClusterSpec", spec)


def groups_of(file: str) -> list[dict]:
    return [spec_of(file)["headGroupSpec"], *spec_of(file)["workerGroupSpecs"]]


@pytest.mark.parametrize("file", MANIFESTS)
def test_every_pod_has_shared_memory_for_its_object_store(file):
    for group in groups_of(file):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (volume,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        assert {"name": volume, "emptyDir": {"medium": "Memory"}} in pod["volumes"]
        limit = int(container["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
        assert int(group["rayStartParams"]["object-store-memory"]) <= limit / 2  # it counts against the limit of the pod


@pytest.mark.parametrize("file", MANIFESTS)
@pytest.mark.parametrize("config", PAPER)
def test_the_pods_have_a_place_for_the_paper_configurations(file, config):
    nodes = []
    for group in spec_of(file)["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        custom = yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"]).replace('\\"', '"'))
        pod = {"CPU": limits["cpu"], "GPU": float(limits.get("nvidia.com/gpu", 0)), "memory": 2.0**40}
        nodes += [pod | custom] * group["replicas"]
    assert lacking(config, nodes) == ""


def test_the_cluster_files_name_the_ray_that_is_pinned():
    pinned = next(line for line in (CLUSTER.parent / "constraints.txt").read_text().splitlines() if line.startswith("ray=="))
    for file in MANIFESTS:
        assert f"ray=={spec_of(file)['rayVersion']}" == pinned
        assert f"rayproject/ray:{pinned.removeprefix('ray==')}" in (KUBERAY / file).read_text()


def test_the_job_of_the_manifest_is_a_run_that_is_understood():
    words = yaml.safe_load((KUBERAY / "ray_job.yaml").read_text())["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "experiments.train"]
    config = load_config(words[3:])
    assert (config.name, config.train.resume, config.ray.join_s) == ("paper_3b", "auto", 600)
