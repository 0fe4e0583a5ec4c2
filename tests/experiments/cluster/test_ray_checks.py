"""What is looked at before Ray or a service is started: each is one line, within seconds, with what to set."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.cluster.findings import refuse
from experiments.cluster.ray_checks import check_head, check_output, check_temporary_files, start_findings
from experiments.command_line.reachable import held_port
from experiments.config import RunConfigError, TrainConfig, load_config
from experiments.tracking.mlflow_connection import unreachable

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "http_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def listener():
    """A server that takes connections and says nothing, on every address: Ray asks for this machine by its outer one."""
    with socket.socket() as silent:
        silent.bind(("0.0.0.0", 0))
        silent.listen()
        yield silent.getsockname()[1]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Pytest's own are too deep for Ray's sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def refusal(config: TrainConfig | None = None) -> str:
    with pytest.raises(RunConfigError) as refused:
        refuse(start_findings(config or TrainConfig()))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_surroundings_in_which_nothing_is_missing_pass():
    refuse(start_findings(TrainConfig()))


# A Ray that is to be joined


def test_a_head_that_nobody_answers_for_is_refused(monkeypatch, free_port):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port}")
    began = time.monotonic()
    with pytest.raises(RunConfigError, match=rf"nothing answers at RAY_ADDRESS=127.0.0.1:{free_port} .*unset it"):
        refuse(start_findings(TrainConfig()))
    assert time.monotonic() - began < 10


def test_whoever_listens_there_and_stays_silent_is_given_up_within_seconds(monkeypatch, listener):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener}")
    began = time.monotonic()
    assert "a process listens there, but does not answer" in refusal()
    assert time.monotonic() - began < 10


def test_a_server_that_is_no_head_is_told_from_one(monkeypatch, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as web:
        port = web.stdout.readline().split("port ")[1].split()[0]
        found = check_head(f"127.0.0.1:{port}")
        web.kill()
    assert found.status == "fail"
    assert "HTTP/2" in found.found


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "a-host", ":6379", "::1"])
def test_what_is_no_address_of_a_head_is_refused_at_once(monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    began = time.monotonic()
    assert f"RAY_ADDRESS={address} is no address of a Ray cluster; expected HOST:PORT" in refusal()
    assert time.monotonic() - began < 5


def test_a_head_of_this_version_is_joined(ray_cluster):
    import ray

    found = check_head(ray.get_runtime_context().gcs_address)
    assert found.status == "ok"
    assert f"Ray {ray.__version__} answers" in found.found


# A Ray that is to be started


def test_a_temporary_folder_of_a_long_path_is_refused_before_ray_is_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / ("x" * 100)))
    assert "bytes too long: Ray's sockets lie below it, and a socket's path has at most 107; set RAY_TMPDIR" in refusal()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert check_temporary_files().status == "ok"


def test_the_longest_path_that_passes_is_one_that_ray_takes(monkeypatch):
    from ray._private.utils import validate_socket_filepath

    def passes(length: int) -> bool:
        monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * length)
        return check_temporary_files().status == "ok"

    longest = max(length for length in range(1, 60) if passes(length))
    socket_in = "/tmp/{}/ray/session_2026-11-28_03-54-36_570530_{}/sockets/plasma_store"
    validate_socket_filepath(socket_in.format("x" * longest, os.getpid()))
    with pytest.raises(OSError, match="107"):
        validate_socket_filepath(socket_in.format("x" * (longest + 1), os.getpid()))


def test_folders_that_cannot_be_written_name_their_variable(monkeypatch, tmp_path, short_folder):
    for folder in (tmp_path, short_folder):
        (folder / "file").touch()
    monkeypatch.setenv("TMPDIR", str(short_folder / "file"))
    assert "file cannot be written (Not a directory); set RAY_TMPDIR" in refusal()
    assert "set evaluation.folder to a folder" in check_output(str(tmp_path / "file/below"), "evaluation.folder").fix


def test_a_full_disk_is_seen_before_ray_is(monkeypatch, mounted, short_folder):
    disk = mounted("4m")
    (short_folder / "disk").symlink_to(disk)
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder / "disk"))
    assert "4 MiB free; Ray needs 100 there: make room, or set RAY_TMPDIR" in refusal()
    (disk / "large").write_bytes(bytes(4 * 2**20))
    assert "cannot be written (No space left on device)" in refusal()


def test_little_shared_memory_is_a_warning():
    said: list[str] = []
    refuse(start_findings(load_config(["ray.object_store_mb=1000000000"])), said.append)
    assert len(said) == 1
    assert "docker: --shm-size=" in said[0]


# Stores of MLflow


def test_a_store_that_does_not_answer_is_known_within_seconds(listener, free_port, tmp_path):
    began = time.monotonic()
    assert "does not answer" in unreachable(f"http://127.0.0.1:{listener}")
    assert "does not answer" in unreachable(f"http://127.0.0.1:{free_port}")
    assert "does not answer" in unreachable(f"postgresql://user:word@127.0.0.1:{free_port}/runs")
    assert time.monotonic() - began < 10
    (tmp_path / "file").touch()
    assert "is no folder" in unreachable(f"sqlite:///{tmp_path}/file/mlflow.db")
    assert not unreachable(f"sqlite:///{tmp_path}/mlflow.db")


# A free port


def service_like(port: int, **more) -> subprocess.Popen:
    """Listens as Ray Serve does: beside anybody else."""
    code = f"""
import socket, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", {port}))
listener.listen()
print("listens", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **more)
    assert process.stdout.readline() == "listens\n"
    return process


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_port_that_another_service_shares_is_refused_and_its_holder_named(host, free_port):
    with service_like(free_port) as other:
        with pytest.raises(RunConfigError, match=rf"serve.port={free_port} on {host} is taken by process {other.pid} \(.*python"):
            held_port(host, free_port)
        other.kill()


def test_a_port_is_kept_from_the_next_command_and_open_for_serve(free_port):
    code = f"from experiments.command_line.reachable import held_port; held_port('127.0.0.1', {free_port})"
    with held_port("127.0.0.1", free_port):
        refused = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert f"serve.port={free_port} on 127.0.0.1 is taken by" in refused.stderr
        with service_like(free_port) as serve:
            serve.kill()
    held_port("127.0.0.1", free_port).close()


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("no-host.invalid", 8000, "serve.host is 'no-host.invalid'"),
        ("203.0.113.9", 8000, "Cannot assign requested address"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_line(host, port, said):
    with pytest.raises(RunConfigError, match=said):
        held_port(host, port)
