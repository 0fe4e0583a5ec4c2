"""What every command does alike: errors in one line, signals, proxies."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.command_line.entry_point import FAILED, STOPPED, WRONG_INPUT, command, reach_loopback_directly
from experiments.config import RunConfigError
from rewards.terms import RewardError

ROOT = Path(__file__).parents[3]


def outcome(error: BaseException, capsys) -> tuple[int, str]:
    @command
    def main(arguments: list[str]) -> int:
        raise error

    code = main([])
    said = capsys.readouterr().out.strip()
    assert "\n" not in said
    return code, said


def test_errors_of_ours_are_their_message_and_tell_wrong_input_from_failure(capsys):
    assert outcome(RunConfigError("serve.port is 0"), capsys) == (WRONG_INPUT, "error: serve.port is 0")
    assert outcome(RewardError("a reward is nan"), capsys) == (FAILED, "error: a reward is nan")
    assert outcome(KeyboardInterrupt(), capsys) == (STOPPED, "stopped")


def test_a_plain_value_error_that_our_code_raised_is_its_message(capsys):
    from retrieval_actors.embedders.registry import check_embedder_name

    @command
    def main(arguments: list[str]) -> int:
        check_embedder_name("bert")
        return 0

    assert main([]) == WRONG_INPUT
    assert capsys.readouterr().out.startswith("error: unknown embedder 'bert'")


def test_an_error_of_a_library_is_one_line_and_a_file_with_the_traceback(capsys):
    @command
    def main(arguments: list[str]) -> int:
        return len(re.compile("("))  # ValueError or not: it was not we who raised it

    assert main([]) == FAILED
    said = capsys.readouterr().out.strip()
    found = re.fullmatch(r"error: \w*[eE]rror: .*unterminated subpattern.* \(traceback: (\S+)\)", said)
    assert found, said
    assert "Traceback (most recent call last)" in Path(found[1]).read_text()
    Path(found[1]).unlink()


def test_an_error_from_an_actor_says_what_went_wrong_in_the_actor(ray_cluster, capsys):
    import ray

    @ray.remote
    def fails():
        raise LookupError("no such passage")

    @command
    def main(arguments: list[str]) -> int:
        return ray.get(fails.remote())

    assert main([]) == FAILED
    said = capsys.readouterr().out.strip()
    assert said.startswith("error: LookupError: no such passage (traceback: ")
    assert "\n" not in said


def test_every_command_goes_through_the_same_door():
    mains = [file for file in sorted((ROOT / "experiments").glob("*.py")) if "\ndef main(arguments" in file.read_text()]
    assert len(mains) >= 10
    assert not [file.name for file in mains if "\n@command\ndef main(arguments" not in file.read_text()]


def test_this_machine_is_reached_without_a_proxy(monkeypatch):
    import httpx

    monkeypatch.setenv("no_proxy", "intranet")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, timeout=0.5)
        reach_loopback_directly()
        with pytest.raises(httpx.ReadTimeout):  # reached
            httpx.get(url, timeout=0.5)
    assert os.environ["no_proxy"] == "intranet,localhost,127.0.0.1,::1"


BLOCKED = """
import ctypes, signal
from experiments.cluster.ray_session import bounded
signal.signal(signal.SIGTERM, signal.default_int_handler)
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
lock(mutex)
with bounded("Ray's start"):
    lines = ["starts"]
    while True:
        try:
            while lines:
                print(lines.pop(), flush=True)
            lock(mutex)
        except KeyboardInterrupt:
            pass  # the signal came in front of the lock
"""
RAY = """
import ray
from experiments.cluster.ray_session import bounded
with bounded("Ray's start"):
    print("starts", flush=True)
    ray.init(address="127.0.0.1:{port}", logging_level="error")
"""
WORKING = """
import sys, time
from experiments.command_line.entry_point import command
@command
def main(arguments):
    try:
        print("starts", flush=True)
        time.sleep(60)
    finally:
        print("leaves in order", flush=True)
sys.exit(main([]))
"""


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (WORKING, signal.SIGTERM),
        (BLOCKED, signal.SIGINT),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in ((WORKING, signal.SIGINT), (BLOCKED, signal.SIGTERM))),
        *(pytest.param(RAY, number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_a_signal_ends_a_command_within_seconds(code, number):
    """Also where C++ code waits, as Ray's does for a head that is not there: no signal handler of Python runs then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, "-c", code.format(port=port)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "starts\n"
            if code is RAY:
                assert "Failed to connect to GCS" in process.stderr.readline()
            began = time.monotonic()
            process.send_signal(number)
            said, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert time.monotonic() - began < 10
    assert process.returncode == STOPPED, said
    assert ("leaves in order\nstopped" if code is WORKING else "stopped during Ray's start") in said
