"""OpenAI's words in terms of the router."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis.strategies import lists, text

from experiments.serving.openai_chat import as_route_request, chunks, completion, cut
from experiments.serving.schemas import ChatRequest, Refusal

STEP = {"sub_question": "Which country?", "kb": "text", "sub_answer": "Kormu"}
STOP = {"sub_question": None, "kb": None, "sub_answer": None}
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
ANSWER = {
    "id": "7",
    "answer": "Tasla",
    "understood_as": None,
    "steps": [STEP, STOP],
    "finish_reason": "stop",
    "policy_version": 3,
    "usage": USAGE,
}


def asked(*messages: dict, **more) -> ChatRequest:
    return ChatRequest.model_validate({"model": "m", "messages": list(messages or [{"role": "user", "content": " Who? "}]), **more})


def test_the_last_user_message_is_the_question():
    first, said = {"role": "user", "content": "First?"}, {"role": "assistant", "content": "Yes."}
    found = as_route_request(asked({"role": "system", "content": "S"}, first, said, {"role": "user", "content": "Second?"}), "m")
    assert (found.question, found.image, found.temperature) == ("Second?", None, None)


def test_messages_behind_the_question_are_not_read():
    behind = [
        {"role": "assistant", "content": None, "tool_calls": [{}]},
        {"role": "tool", "content": "42"},
        {"role": "system", "content": 7},
        {},
    ]
    assert as_route_request(asked({"role": "user", "content": "Who?"}, *behind), "m").question == "Who?"


def test_texts_are_joined_and_the_image_is_taken():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    parts = [{"type": "text", "text": "Which"}, image, {"type": "text", "text": "flag?"}]
    found = as_route_request(asked({"role": "user", "content": parts}), "m")
    assert (found.question, found.image) == ("Which\nflag?", "data:image/png;base64,AAAA")
    with pytest.raises(Refusal, match="2 images; one at most"):
        as_route_request(asked({"role": "user", "content": [*parts, image]}), "m")


def test_options_are_taken_over():
    found = as_route_request(asked(temperature=0.5, top_p=0.9, max_tokens=9, seed=4, kbs=["a"], max_steps=2, k=5, stream=True), "m")
    assert (found.temperature, found.top_p, found.max_tokens, found.seed) == (0.5, 0.9, 9, 4)
    assert (found.kbs, found.max_steps, found.k, found.stream) == (["a"], 2, 5, True)


@pytest.mark.parametrize(
    ("messages", "finding"),
    [
        ([{"role": "assistant", "content": "A"}], "no message is of role user"),
        ([{"role": "user", "content": []}], "0 characters"),
        ([{"role": "user", "content": "  "}], "0 characters"),
        ([{"role": "user"}], "0 characters"),
        ([{"role": "user", "content": "x" * 4001}], "4001 characters"),
    ],
)
def test_messages_without_a_question_are_refused(messages, finding):
    with pytest.raises(Refusal, match=finding) as refusal:
        as_route_request(asked(*messages), "m")
    assert (refusal.value.status, refusal.value.code) == (422, "invalid_messages")


@pytest.mark.parametrize(
    "part", [{"type": "input_audio", "input_audio": {}}, {"type": "file"}, {"type": "image_url"}, {"text": "Who?"}, 7, None]
)
def test_a_question_in_another_form_than_text_and_image_is_refused(part):
    with pytest.raises(Refusal, match="expected text or image_url") as refusal:
        as_route_request(asked({"role": "user", "content": [{"type": "text", "text": "Who?"}, part]}), "m")
    assert (refusal.value.status, refusal.value.param) == (422, "messages[0].content")


@given(text(alphabet="ab \n"), lists(text(alphabet="ab \n", max_size=3), max_size=4))
def test_an_answer_ends_before_its_first_stop_sequence(answer, stop):
    event = {"answer": answer, "finish_reason": "length"}
    found, sought = cut(event, stop), [sequence for sequence in stop if sequence in answer and sequence]
    assert answer.startswith(found["answer"])
    assert not any(sequence in found["answer"] for sequence in stop if sequence)
    assert found["finish_reason"] == ("stop" if sought else "length")
    rest = answer[len(found["answer"]) :]
    assert any(rest.startswith(sequence) for sequence in sought) if sought else not rest


def test_a_completion_shows_the_path_as_reasoning():
    found = completion(ANSWER, "m")
    assert found["choices"][0]["message"]["content"] == "Tasla"
    nothing = completion(ANSWER | {"steps": [STEP | {"sub_answer": None}]}, "m")["choices"][0]["message"]["reasoning_content"]
    assert nothing == "Which country? [text] nothing\n"
    assert found["choices"][0]["message"]["reasoning_content"] == "Which country? [text] Kormu\n"
    assert (found["id"], found["usage"], found["system_fingerprint"]) == ("chatcmpl-7", USAGE, "policy-3")


@pytest.mark.parametrize("usage", [False, True])
def test_chunks_of_a_stream_in_order(usage):
    async def events():
        yield {"event": "planned", "step": 0, "sub_question": "Which country?", "kb": "text"}
        yield {"event": "searched", "step": 0, "passages": []}
        yield {"event": "answered", "step": 0, "sub_answer": "Kormu"}
        yield {"event": "planned", "step": 1, "sub_question": None, "kb": None}
        yield {"event": "finished", **ANSWER}

    async def streamed() -> list[dict]:
        return [chunk async for chunk in chunks(events(), asked(stream_options={"include_usage": usage}), "7", "m", 3)]

    found = asyncio.run(streamed())
    deltas = [chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]]
    reasoning = {"reasoning_content": "Which country? [text] Kormu\n"}
    assert deltas == [{"role": "assistant", "content": ""}, reasoning, {"content": "Tasla"}, {}]
    assert [chunk.get("usage", "absent") for chunk in found] == ([None] * 4 + [USAGE] if usage else ["absent"] * 4)
