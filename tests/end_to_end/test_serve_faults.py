"""What dies under the service costs time or a clear 503, never a wrong answer and never a hanging one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
from serving_process import POLICY, ROOT, without_times


class Asking:
    """Asks the same question again and again from several threads, and keeps every answer."""

    def __init__(self, service, question: str, threads: int = 3):
        self.answers: list = []
        self._service, self._question, self._ended = service, question, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(timeout=90)
        assert not any(thread.is_alive() for thread in self._threads)

    def _ask(self) -> None:
        with self._service.client() as client:
            while not self._ended.is_set():
                self.answers.append(client.post("/v1/route", json={"question": self._question}, timeout=80))
                time.sleep(0.05)

    def wait_for_answers(self, count: int, seconds: float = 90) -> None:
        """Until `count` more questions have been answered with 200."""
        wanted, end = self.answered + count, time.monotonic() + seconds
        while self.answered < wanted:
            assert time.monotonic() < end, [answer.status_code for answer in self.answers]
            time.sleep(0.05)

    @property
    def answered(self) -> int:
        return sum(answer.status_code == 200 for answer in self.answers)


@pytest.mark.parametrize(
    "title",
    ["ShardActor", "ServeReplica:router:Router", pytest.param("ServeReplica:router:KnowledgeBases", marks=pytest.mark.slow)],
)
def test_what_is_killed_comes_back_and_no_answer_is_wrong(service, client, text_question, title):
    alone = without_times(client.post("/v1/route", json={"question": text_question.text}).json())
    with Asking(service, text_question.text) as asking:
        asking.wait_for_answers(3)
        (killed, *_) = service.workers(title)
        killed.kill()
        killed.wait(timeout=10)
        asking.wait_for_answers(6)
    for answer in asking.answers:
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 200:
            assert without_times(answer.json()) == alone
        else:
            assert answer.json()["error"]["code"]
    assert service.workers(title)
    assert client.get("/health").json()["under_way"] == 0


def test_a_policy_is_replaced_under_load_without_losing_a_question(service, client, text_question):
    policy = str(POLICY)
    alone = without_times(client.post("/v1/route", json={"question": text_question.text}).json())
    version = client.get("/health").json()["policy_version"]
    with Asking(service, text_question.text) as asking:
        asking.wait_for_answers(2)
        reloaded = client.post("/v1/admin/reload", json={"policy": policy, "policy_version": version + 1})
        assert (reloaded.status_code, reloaded.json()["policy_version"]) == (200, version + 1)
        asking.wait_for_answers(4)
    assert {answer.status_code for answer in asking.answers} == {200}
    found = [without_times(answer.json()) for answer in asking.answers]
    assert {answer["policy_version"] for answer in found} == {version, version + 1}
    assert all(answer | {"policy_version": alone["policy_version"]} == alone for answer in found)
    assert client.get("/v1/models").json()["data"][0]["policy_version"] == version + 1
    client.post("/v1/admin/reload", json={"policy": policy, "policy_version": version}).raise_for_status()


def test_a_policy_that_does_not_load_changes_nothing(client, tmp_path):
    before = client.get("/health").json()
    (tmp_path / "config.json").write_text("{}")
    for folder, code in [(str(tmp_path / "none"), "no_such_policy"), (str(tmp_path), "policy_does_not_load")]:
        refused = client.post("/v1/admin/reload", json={"policy": folder, "policy_version": 7})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, code)
    assert client.get("/health").json() == before


def test_a_second_service_on_the_port_is_refused_and_told_who_holds_it(service):
    port = service.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", "serve", str(POLICY), f"serve.port={port}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 2
    assert f"serve.port={port} on 127.0.0.1 is taken by process {service.process.pid} (" in done.stdout
    assert service.client().get("/health").status_code == 200
