"""OpenAI's Responses API and chats of several turns, asked with OpenAI's own client."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from in_process import served
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

Q = "What is the currency of Kormu?"
FIRST = {"role": "user", "content": "What is the capital of Kormu?"}
CHAT = [FIRST, {"role": "assistant", "content": "Tasla"}, {"role": "user", "content": "and its currency?"}]


@pytest.fixture(scope="module")
def service():
    with served() as service:
        yield service


@pytest.fixture(scope="module")
def client(service):
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=60)


def test_a_response_has_the_path_as_reasoning_the_answer_and_the_usage(client, service):
    found = client.responses.create(model="m", input=Q)
    whole = httpx.post(f"{service.url}/v1/route", json={"question": Q}).json()
    assert (found.output_text, found.status, found.error, found.store) == ("Rell", "completed", None, False)
    assert [part.text for part in found.output[0].summary] == ["currency of Kormu [text] Rell"]
    assert (found.usage.input_tokens, found.usage.output_tokens) == (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"])
    Response.model_validate(found.to_dict(), strict=False)


def test_a_stream_adds_up_to_the_response(client):
    with client.responses.stream(model="m", input=Q) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    whole = client.responses.create(model="m", input=Q)
    assert final.output_text == whole.output_text == "Rell"
    assert final.output[0].summary == whole.output[0].summary
    assert final.usage == whole.usage


def test_every_event_is_of_the_form_that_the_client_knows(service):
    text = httpx.post(f"{service.url}/v1/responses", json={"input": Q, "stream": True}).text
    parts = [part.split("\n") for part in text.strip().split("\n\n")]
    known: TypeAdapter = TypeAdapter(ResponseStreamEvent)
    for name, data in parts:
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert known.validate_python(event).type == event["type"]


def test_an_error_in_mid_stream_is_told():
    def breaks(kind, prompt, sibling):
        if kind == "answer":
            raise RuntimeError("out of memory")
        return "<think> t</think><sub-question> q</sub-question><ret> Text Retriever</ret>"

    with served(breaks) as service:
        client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=60)
        last = list(client.responses.create(model="m", input=Q, stream=True))[-1]
    assert (last.type, last.code) == ("error", "engine_failed")
    assert "out of memory" in last.message


@pytest.mark.parametrize(
    "asked",
    [
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": Q}]}]},
        {"input": [{"type": "message", "role": "user", "content": Q}, {"type": "reasoning", "id": "r", "summary": []}]},
        {"instructions": "Be brief.", "store": True, "metadata": {"a": "b"}, "temperature": 0.0, "max_output_tokens": 9, "user": "me"},
        {"text": {"format": {"type": "text"}, "verbosity": "low"}, "reasoning": {"effort": "low"}, "tools": [], "truncation": "auto"},
        {"extra_body": {"kbs": ["text"], "max_steps": 1, "k": 1, "previous_response_id": None, "background": False}},
    ],
)
def test_what_clients_send_by_habit_does_no_harm(client, asked):
    assert client.responses.create(**{"model": "m", "input": Q} | asked).output_text == "Rell"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": "  "}, "messages[0].content"),
        ({"extra_body": {"history": "maybe"}}, "history"),
    ],
)
def test_what_is_not_offered_is_refused(client, asked, param):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.responses.create(**{"model": "m", "input": Q} | asked)
    assert refused.value.param.startswith(param)
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="gpt-5", input=Q)


def rewrites(service) -> int:
    return sum("question that stands alone" in prompt for prompt in service.engine.prompts)


def test_a_follow_up_is_understood_with_what_was_asked_before_and_the_path_says_so(client, service):
    before = rewrites(service)
    chat = client.chat.completions.create(model="m", messages=CHAT).choices[0].message
    assert chat.reasoning_content.splitlines() == [f"understood as: {Q}", "currency of Kormu [text] Rell"]
    response = client.responses.create(model="m", input=CHAT)
    assert [part.text for part in response.output[0].summary] == [f"understood as: {Q}", "currency of Kormu [text] Rell"]
    assert rewrites(service) == before + 2
    assert "Tasla" in [prompt for prompt in service.engine.prompts if "question that stands alone" in prompt][-1]
    streamed = client.chat.completions.create(model="m", messages=CHAT, stream=True)
    assert next(text for chunk in streamed if (text := getattr(chunk.choices[0].delta, "reasoning_content", ""))) == f"understood as: {Q}\n"


def test_history_off_asks_the_question_as_it_stands(client, service):
    before = rewrites(service)
    chat = client.chat.completions.create(model="m", messages=CHAT, extra_body={"history": "off"}).choices[0].message
    assert chat.reasoning_content == "currency of Kormu [text] Rell\n"
    client.responses.create(model="m", input=CHAT, extra_body={"history": "off"})
    client.chat.completions.create(model="m", messages=[{"role": "system", "content": "S"}, CHAT[-1]])
    assert rewrites(service) == before
    assert any("and its currency?" in prompt for prompt in service.engine.prompts)


def test_the_route_takes_earlier_turns_and_tells_how_it_understood_the_question(service):
    asked = {"question": "and its currency?", "earlier": [{"question": FIRST["content"], "answer": "Tasla"}]}
    whole = httpx.post(f"{service.url}/v1/route", json=asked).json()
    assert (whole["question"], whole["understood_as"]) == ("and its currency?", Q)
    text = httpx.post(f"{service.url}/v1/route", json=asked | {"stream": True}).text
    assert text.startswith("event: rewritten\n")
    assert json.loads(text.split("\n")[1].removeprefix("data: "))["understood_as"] == Q
    assert httpx.post(f"{service.url}/v1/route", json=asked | {"history": "off"}).json()["understood_as"] is None
    assert 'phase_seconds_count{phase="rewrite"}' in httpx.get(f"{service.url}/metrics").text


def test_of_a_long_chat_the_latest_turns_are_read_and_the_beginning_of_each(service):
    turns = [{"question": f"Question {n}?" + " x" * 1000, "answer": "A"} for n in range(50)]
    asked = {"question": "and its currency?", "earlier": turns}
    assert httpx.post(f"{service.url}/v1/route", json=asked).json()["understood_as"] == "and its currency?"  # Kormu stands nowhere
    prompt = [prompt for prompt in service.engine.prompts if "question that stands alone" in prompt][-1]
    assert [n for n in range(50) if f"Question {n}?" in prompt] == [46, 47, 48, 49]
    assert len(prompt) < 5000
