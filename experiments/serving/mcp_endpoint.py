"""The MCP endpoint, `/mcp` (streamable HTTP, without sessions): tools for agents. No `from __future__ import annotations`: the SDK reads them."""

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

from fastapi import FastAPI
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings

from experiments.serving.http_routes import begin, whole
from experiments.serving.schemas import Kbs, MaxSteps, Passages, QuestionText, Refusal, RouteRequest


def add_mcp(api: FastAPI, endpoint: Any) -> None:
    """Adds the route. The server runs as long as the application does."""
    server = MCPServer("r1-router", instructions="Questions answered from knowledge bases, with every step shown.", log_level="WARNING")

    @contextmanager
    def errors() -> Iterator[None]:
        try:
            yield
        except Refusal as refusal:
            endpoint.metrics.errors.labels(refusal.code).inc()
            raise ToolError(f"{refusal.code}: {refusal.message}") from refusal

    @server.tool()
    async def ask(
        context: Context,
        question: QuestionText,
        knowledge_bases: Kbs | None = None,
        max_steps: MaxSteps | None = None,
        image: str | None = None,
    ) -> dict[str, Any]:
        """Answer a question from the knowledge bases, in several searches where it needs them. The question has to stand alone. `knowledge_bases`:
        those that may be searched; all by default. `max_steps`: searches at most. `image`: data URL of a PNG or JPEG that it is about. Returns
        `answer`, and `steps`: sub-question, knowledge base, passages and sub-answer of each search. An empty answer: none was found."""
        with errors():
            async with AsyncExitStack() as held:
                fields = {"question": question, "kbs": knowledge_bases, "max_steps": max_steps, "image": image}
                request: Any = context.request_context.request
                return await whole(request, await begin(endpoint, request, RouteRequest.model_validate(fields), held))

    @server.tool()
    async def search(knowledge_base: str, query: QuestionText, k: Passages = 5) -> list[dict[str, Any]]:
        """The `k` passages of one knowledge base that are nearest to the query, best first, with their scores; nothing is answered."""
        with errors():
            return await endpoint.search(knowledge_base, query, k)

    @server.tool()
    async def list_knowledge_bases() -> list[dict[str, Any]]:
        """Name, description, modality and number of passages of each knowledge base."""
        return endpoint.cards()

    security = TransportSecuritySettings(enable_dns_rebinding_protection=False)  # Admission has checked the host
    body = endpoint.settings.max_body_mb * 2**20
    made = server.streamable_http_app(stateless_http=True, json_response=True, max_request_body_size=body, transport_security=security)
    route: Any = made.routes[0]
    api.router.add_route("/mcp", route.endpoint, methods=["POST"])  # GET would open a stream on which nothing comes
    api.router.lifespan_context = lambda app: server.session_manager.run()
