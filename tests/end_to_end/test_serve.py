"""The service: a real Serve, a real policy and knowledge bases, asked over HTTP."""

from __future__ import annotations

import json
import threading
import time

import httpx
from serving_process import POLICY, without_times

from experiments.serve import main
from experiments.serving.application import newest_subject
from experiments.worlds.atlas import KNOWLEDGE_BASES


def events_of(response: httpx.Response) -> list[dict]:
    lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_health_says_what_is_served(client):
    health = client.get("/health")
    assert health.status_code == 200
    assert health.json()["status"] == "ready"
    assert {kb["name"] for kb in health.json()["kbs"]} == {"text", "text_image", "table"}
    assert all(kb["passages"] and kb["fingerprint"] for kb in health.json()["kbs"])


def test_a_question_is_answered_with_the_whole_path_the_same_every_time(client, text_question):
    first, second = (client.post("/v1/route", json={"question": text_question.text}).json() for _ in range(2))
    assert first["answer"]
    assert (first["question"], first["policy_version"]) == (text_question.text, 0)
    assert first["seconds"] > 0
    step = first["steps"][0]
    assert step["decision"] == "retrieve"
    assert step["sub_question"]
    assert step["sub_answer"]
    assert step["kb"] in KNOWLEDGE_BASES
    assert set(step["seconds"]) == {"plan", "search", "answer"}
    assert {"id", "title", "text", "score", "error", "image"} == step["passages"][0].keys()
    assert first["usage"]["total_tokens"] == first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"] > 0
    assert without_times(first) == without_times(second)


def test_a_stream_tells_every_step_in_order_and_ends_with_the_same_path(client, text_question):
    with client.stream("POST", "/v1/route", json={"question": text_question.text, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = events_of(response)
    whole = client.post("/v1/route", json={"question": text_question.text}).json()
    *steps, last = events
    assert last.pop("event") == "finished"
    assert without_times(last) == without_times(whole)
    expected = [
        (name, number)
        for number, step in enumerate(whole["steps"])
        for name in (("planned", "searched", "answered") if step["kb"] else ("planned",))
    ]
    assert [(event["event"], event["step"]) for event in steps] == expected


def test_a_picture_is_looked_at_and_passages_show_theirs(client, image_question, image_url):
    asked = {"question": image_question.text, "image": image_url, "pictures": True, "kbs": ["text_image"]}
    answered = client.post("/v1/route", json=asked)
    assert answered.status_code == 200
    pictures = [passage["image"] for step in answered.json()["steps"] for passage in step["passages"]]
    assert pictures
    assert all(picture.startswith("data:image/png;base64,") for picture in pictures)


def test_options_of_a_request_hold(client, world):
    question = next(question for question in world.questions(64, 0) if question.gold_steps)
    for kbs in (["table"], ["text", "text_image"]):
        steps = client.post("/v1/route", json={"question": question.text, "kbs": kbs, "max_steps": 1, "k": 2}).json()["steps"]
        asked = [step for step in steps if step["decision"] == "retrieve"]
        assert len(asked) <= 1
        assert {step["kb"] for step in asked} <= set(kbs)
        assert all(len(step["passages"]) == 2 for step in asked)
    answered = client.post("/v1/route", json={"question": question.text, "max_steps": 0}).json()
    assert (answered["retrievals"], answered["steps"]) == (0, [])


def test_questions_asked_at_once_get_the_answers_they_get_alone(client, world):
    questions = [question.text for question in world.questions(30, 0) if question.image is None][:8]
    alone = {text: without_times(client.post("/v1/route", json={"question": text}).json()) for text in questions}
    together: dict[str, dict] = {}

    def ask(text: str) -> None:
        together[text] = without_times(client.post("/v1/route", json={"question": text}).json())

    threads = [threading.Thread(target=ask, args=(text,)) for text in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert together == alone


def test_metrics_count_what_was_asked(client, text_question):
    def counted(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(f"r1_router_{name}"))

    names = ("steps_count", "searches_total", "phase_seconds_count", 'requests_total{route="/v1/route",status="200"}')
    before = [counted(name) for name in names]
    with client.stream("POST", "/v1/route", json={"question": text_question.text, "stream": True}) as response:
        events = events_of(response)
    after = [counted(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, events[-1]["retrievals"], len(events) - 1, 1]
    assert counted("slots_in_use") == 0


def test_a_client_that_goes_away_frees_its_slot(client, service, text_question):
    with (
        service.client() as leaving,
        leaving.stream("POST", "/v1/route", json={"question": text_question.text, "stream": True}) as response,
    ):
        next(response.iter_lines())
    end = time.monotonic() + 10
    while client.get("/health").json()["under_way"] and time.monotonic() < end:
        time.sleep(0.05)
    assert client.get("/health").json()["under_way"] == 0


def test_the_log_tells_of_a_request_and_nothing_that_was_in_it(client, service, image_question, image_url):
    key = "key-that-must-not-be-written"
    headers = {"authorization": f"Bearer {key}", "x-request-id": "seen-by-the-test"}
    answered = client.post("/v1/route", json={"question": image_question.text, "image": image_url}, headers=headers)
    assert answered.headers["x-request-id"] == answered.json()["id"] == "seen-by-the-test"
    end, lines = time.monotonic() + 10, []
    while not lines and time.monotonic() < end:  # it is written when the answer is on its way
        written = service.requests.read_text()
        lines = [line for line in map(json.loads, written.splitlines()) if line["request_id"] == "seen-by-the-test"]
    (line,) = lines
    assert (line["route"], line["status"], line["kind"]) == ("/v1/route", 200, "image")
    assert line["seconds"] > 0
    for secret in (key, image_url[40:80], image_question.text):
        assert secret not in written
        assert secret not in service.said.read_text()


def test_what_cannot_be_served_is_refused_before_anything_starts(tmp_path, capsys):
    (tmp_path / "kb").mkdir()
    for arguments, finding in [
        ([str(tmp_path / "none")], "none"),
        ([str(POLICY), "serve.prt=1"], "unknown key serve.prt; did you mean serve.port?"),
        ([str(POLICY), f"retrieval.folders.text={tmp_path / 'kb'}"], "kb.json is missing"),
        ([str(POLICY), "serve.host=0.0.0.0"], "serve.host is"),
        ([str(POLICY), "serve.slots=0"], "serve.slots is '0'; expected"),
    ]:
        assert main(arguments) == 2
        said = capsys.readouterr().out
        assert finding in said
        assert said.count("\n") == 1


def test_without_a_subject_the_newest_run_is_served_or_the_shipped_policy(tmp_path):
    assert newest_subject(str(tmp_path)) == "experiments/worlds/cold_start_policy"
    for name in ("first", "second"):
        (tmp_path / name / "policy").mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        (tmp_path / name / "policy/config.json").touch()
    (tmp_path / "unfinished").mkdir()
    assert newest_subject(str(tmp_path)) == str(tmp_path / "second")
