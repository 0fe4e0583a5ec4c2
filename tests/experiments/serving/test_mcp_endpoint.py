"""The MCP endpoint, asked with the client of the official SDK."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest
from in_process import KnownLibrary, served
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from retrieval_actors.records import Passage


@pytest.fixture(scope="module")
def service():
    with served() as service:
        yield service


def called(service, tool: str, mode: str = "auto", **arguments):
    async def call():
        async with Client(f"{service.url}/mcp", mode=mode) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(call())


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_its_tools_are_described_with_their_limits(service, mode):
    async def listed():
        async with Client(f"{service.url}/mcp", mode=mode) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(listed())}
    assert set(tools) == {"ask", "search", "list_knowledge_bases"}
    assert all(tool.description for tool in tools.values())
    steps = tools["ask"].input_schema["properties"]["max_steps"]["anyOf"][0]
    assert (steps["minimum"], steps["maximum"]) == (0, 8)
    assert tools["ask"].input_schema["required"] == ["question"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_ask_answers_as_the_route_does(service, mode):
    found = called(service, "ask", mode, question="What is the currency of Kormu?", knowledge_bases=["text"], max_steps=2)
    assert not found.is_error
    answer = found.structured_content
    whole = httpx.post(f"{service.url}/v1/route", json={"question": "What is the currency of Kormu?", "max_steps": 2}).json()
    assert (answer["answer"], answer["retrievals"]) == (whole["answer"], whole["retrievals"]) == ("Rell", 1)
    assert [step["passages"] for step in answer["steps"]] == [step["passages"] for step in whole["steps"]]
    assert service.endpoint.under_way == 0


def test_search_gives_the_passages_of_one_knowledge_base(service):
    found = called(service, "search", knowledge_base="text", query="Kormu", k=3)
    assert [passage["text"] for passage in found.structured_content["result"]] == ["Kormu 0", "Kormu 1", "Kormu 2"]


def test_the_knowledge_bases_are_listed_as_health_lists_them(service):
    found = called(service, "list_knowledge_bases").structured_content["result"]
    assert found == httpx.get(f"{service.url}/health").json()["kbs"]
    assert found[0]["description"] == "Facts about countries."


@pytest.mark.parametrize(
    ("tool", "arguments", "finding"),
    [
        ("ask", {"question": " "}, "question"),
        ("ask", {"question": "Q", "max_steps": 9}, "max_steps"),
        ("ask", {"question": "Q", "knowledge_bases": ["none"]}, "unknown_knowledge_base: knowledge base 'none' is none of text"),
        ("ask", {"question": "Q", "image": "http://10.0.0.1/a.png"}, "no address is fetched"),
        ("search", {"knowledge_base": "none", "query": "Q"}, "unknown_knowledge_base"),
        ("search", {"knowledge_base": "text", "query": "Q", "k": 21}, "k"),
    ],
)
def test_what_cannot_be_done_is_an_error_that_says_why(service, tool, arguments, finding):
    found = called(service, tool, **arguments)
    assert found.is_error
    assert finding in found.content[0].text


def test_a_knowledge_base_that_does_not_answer_is_an_error():
    class Silent(KnownLibrary):
        def search_routed(self, asked, k):
            return [[Passage("error", "", kb="text", error="no answer within 1 s")] for _ in asked]

    with served(library=Silent()) as service:
        for tool, arguments in (("ask", {"question": "Q?"}), ("search", {"knowledge_base": "text", "query": "Q"})):
            found = called(service, tool, **arguments)
            assert found.is_error
            assert "knowledge_base_unavailable: knowledge base text: no answer within 1 s" in found.content[0].text


def test_no_more_is_let_in_than_there_is_room_for_and_a_caller_that_leaves_frees_its_slot():
    class Slow(KnownLibrary):
        def __init__(self):
            super().__init__(3.0)

    with served(library=Slow(), slots=1, queue=0) as service:

        async def left() -> None:
            async with Client(f"{service.url}/mcp") as client:
                asked = asyncio.create_task(client.call_tool("ask", {"question": "Q?"}))
                end = time.monotonic() + 30
                while not service.handles.streams and time.monotonic() < end:
                    await asyncio.sleep(0.01)
                found = await client.call_tool("ask", {"question": "Q?"})
                assert "rate_limit_exceeded" in found.content[0].text
                asked.cancel()
                while service.endpoint.under_way and time.monotonic() < end:
                    await asyncio.sleep(0.01)

        asyncio.run(left())
        assert service.endpoint.under_way == 0
        assert service.handles.streams[0].cancelled


def test_the_key_is_asked_for_and_get_opens_no_stream():
    with served(key="a-long-key") as service:

        async def listed(headers: dict[str, str]) -> int:
            async with (
                create_mcp_http_client(headers=headers) as sender,
                Client(streamable_http_client(f"{service.url}/mcp", http_client=sender)) as client,
            ):
                return len((await client.list_tools()).tools)

        assert asyncio.run(listed({"authorization": "Bearer a-long-key"})) == 3
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert httpx.post(f"{service.url}/mcp", json=body).status_code == 401
        assert httpx.get(f"{service.url}/mcp", headers={"authorization": "Bearer a-long-key"}).status_code == 405
