"""OpenAI's own client against the service."""

from __future__ import annotations

import openai
import pytest


@pytest.fixture(scope="module")
def openai_client(service):
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def model(openai_client) -> str:
    return openai_client.models.list().data[0].id


def test_a_completion_has_the_answer_the_path_and_the_usage(openai_client, client, model, text_question):
    found = openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": text_question.text}])
    path = client.post("/v1/route", json={"question": text_question.text}).json()
    assert found.object == "chat.completion"
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content == path["answer"]
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.total_tokens == path["usage"]["total_tokens"]
    assert path["steps"][0]["sub_question"] in found.choices[0].message.reasoning_content
    assert found.model == model
    assert found.policy_version == 0


def test_the_model_is_found_by_its_name(openai_client, model):
    assert openai_client.models.retrieve(model) == openai_client.models.list().data[0]
    with pytest.raises(openai.NotFoundError, match="is not served"):
        openai_client.models.retrieve("gpt-5")


def test_a_stream_adds_up_to_the_completion(openai_client, model, text_question):
    messages = [{"role": "user", "content": text_question.text}]
    whole = openai_client.chat.completions.create(model=model, messages=messages)
    stream = openai_client.chat.completions.create(model=model, messages=messages, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons == [None] * (len(reasons) - 1) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_image_goes_with_the_question(openai_client, client, model, image_question, image_url, stream):
    content = [{"type": "text", "text": image_question.text}, {"type": "image_url", "image_url": {"url": image_url}}]
    found = openai_client.chat.completions.create(model=model, messages=[{"role": "user", "content": content}], stream=stream)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in found) if stream else found.choices[0].message.content
    assert said == client.post("/v1/route", json={"question": image_question.text, "image": image_url}).json()["answer"]


def test_extensions_go_in_the_extra_body(openai_client, model, text_question):
    messages = [{"role": "user", "content": text_question.text}]
    found = openai_client.chat.completions.create(model=model, messages=messages, extra_body={"kbs": ["table"], "max_steps": 1, "k": 1})
    assert "[text]" not in found.choices[0].message.reasoning_content


def test_errors_are_those_that_the_client_knows(openai_client, model, text_question):
    messages = [{"role": "user", "content": text_question.text}]
    create = openai_client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="is not served") as wrong_model:
        create(model="gpt-5", messages=messages)
    assert (wrong_model.value.code, wrong_model.value.param) == ("model_not_found", "model")
    for extra, param in [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 3.0}, "temperature"),
    ]:
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            create(model=model, messages=messages, **extra)
        assert refused.value.param == param
    far = [
        {"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "image_url", "image_url": {"url": "http://10.0.0.1/a.png"}}]}
    ]
    with pytest.raises(openai.UnprocessableEntityError, match="no address is fetched"):
        create(model=model, messages=far)


def test_what_clients_send_by_habit_does_no_harm(openai_client, model, text_question):
    messages = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": text_question.text}]
    plain = openai_client.chat.completions.create(model=model, messages=messages)
    habit = {"user": "me", "presence_penalty": 0, "n": 1, "response_format": {"type": "text"}, "metadata": {"a": "b"}, "max_tokens": 500}
    assert openai_client.chat.completions.create(model=model, messages=messages, **habit).choices == plain.choices
