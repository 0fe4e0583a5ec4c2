"""Schemas of requests, answers and errors, from which FastAPI validates and writes the OpenAPI description; and the job of a router replica."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints
from starlette.responses import JSONResponse

from rollout.records import Image

MAX_QUESTION_CHARS = 4000
MAX_STOPS = 4
EARLIER_TURNS, EARLIER_CHARS = 4, 500  # of a chat, that are read
PHASES = {"rewritten": "rewrite", "planned": "plan", "searched": "search", "answered": "answer"}  # event -> the phase that ends with it


def _whole_characters(text: Any) -> Any:
    """Replaces halves of surrogate pairs, which JavaScript clients send when they cut a text inside an emoji."""
    return text.encode(errors="replace").decode() if isinstance(text, str) else text


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


QuestionText = Annotated[str, StringConstraints(max_length=MAX_QUESTION_CHARS, pattern=r"\S"), BeforeValidator(_whole_characters)]
Kbs = Annotated[list[Annotated[str, StringConstraints(max_length=200)]], Field(min_length=1, max_length=64)]
MaxSteps = Annotated[int, Field(ge=0, le=8)]
Passages = Annotated[int, Field(ge=1, le=20)]
ChatText = Annotated[str, BeforeValidator(_whole_characters), AfterValidator(lambda text: text[:EARLIER_CHARS])]
Stops = Annotated[list[str], Field(max_length=MAX_STOPS), BeforeValidator(_as_list, json_schema_input_type=str | list[str])]


class Options(BaseModel, allow_inf_nan=False):
    """Options of both kinds of requests; null is the same as leaving one out."""

    kbs: Kbs | None = Field(None, description="Knowledge bases that may be searched; default: all.")
    max_steps: MaxSteps | None = Field(None, description="Retrievals at most.")
    k: Passages | None = Field(None, description="Passages that are read after a retrieval.")
    history: Literal["on", "off"] | None = Field(None, description="off: the question is asked as it stands, whatever was asked before it.")
    temperature: float | None = Field(None, ge=0, le=2, description="0, the default: the most probable token, always the same answer.")
    top_p: float | None = Field(None, ge=0, le=1, description="0: the most probable token, as temperature 0.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Same seed, same policy version: same answer.")
    timeout_s: float | None = Field(None, gt=0, le=3600, description="Seconds for the answer; never more than the service allows.")
    min_confidence: float | None = Field(None, ge=0, le=1, description="Answers with less confidence become `unknown`; 0: none do.")
    stream: bool | None = Field(None, description="Server-sent events, one for every step as it happens.")


class EarlierTurn(BaseModel, extra="forbid", strict=True):
    """A question of the chat before this one, and its answer; 500 characters of each are read."""

    question: ChatText
    answer: ChatText = ""


class RouteRequest(Options, extra="forbid", strict=True):
    """A question for `POST /v1/route`."""

    question: QuestionText
    image: str | None = Field(None, description="Data URL of a picture that the question is about.")
    max_tokens: int | None = Field(None, ge=1, description="Of each turn; never more than the service allows.")
    pictures: bool | None = Field(None, description="Passages with a picture carry a small version of it.")
    earlier: Annotated[list[EarlierTurn], AfterValidator(lambda turns: turns[-EARLIER_TURNS:])] | None = Field(
        None,
        description="What was asked before in this chat: a follow-up is first put into a question that stands alone. The last 4 are read.",
    )

    @property
    def sampling_temperature(self) -> float:
        """0: greedy, which `top_p=0` also means."""
        return 0.0 if self.top_p == 0 else self.temperature or 0.0

    @property
    def chat(self) -> list[tuple[str, str]]:
        """The earlier questions and answers that the question may follow on from."""
        return [] if self.history == "off" else [(turn.question, turn.answer) for turn in self.earlier or []]


@dataclass(frozen=True)
class PolicyReference:
    """Which weights answer."""

    folder: str  # in Hugging Face format, or a name on the hub; every node must be able to read it
    version: int  # every answer carries it


@dataclass(frozen=True)
class RouteJob:
    """A question for a router replica."""

    request: RouteRequest
    request_id: str
    image: Image | None
    kbs: tuple[str, ...]  # that may be searched
    policy: PolicyReference
    seed: int  # a retry gives the same answer
    deadline_s: float  # from now


class ChatRequest(Options, extra="allow"):
    """As OpenAI's clients send it. The last message of role user is the question; it may follow on from earlier ones and their answers. Parameters
    that would change the answer and are not supported are refused; others are ignored."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str | None = Field(None, description="As in /v1/models; optional.")
    stream_options: dict[str, Any] | None = Field(None, description="`include_usage`: the last chunk has the tokens.")
    max_tokens: int | None = Field(None, description="Of each turn; 0 or less: as many as the service allows.")
    max_completion_tokens: int | None = Field(None, description="The same; wins over max_tokens.")
    stop: Stops | None = Field(None, description=f"The answer ends before the first of these texts; {MAX_STOPS} at most.")


class ResponsesRequest(Options, extra="allow"):
    """As OpenAI's clients send it to the Responses API. Nothing is stored: earlier turns of a chat stand in `input`."""

    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str | None = Field(None, description="As in /v1/models; optional.")
    text: dict[str, Any] | None = Field(None, description="`format`: no other than text.")
    max_output_tokens: int | None = Field(None, description="Of each turn; 0 or less: as many as the service allows.")


class ReloadRequest(BaseModel, extra="forbid", strict=True):
    """Which policy is loaded; also the answer once it is."""

    policy: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(description="A policy folder.")
    policy_version: Annotated[int, Field(ge=0, lt=2**63)]


class Error(BaseModel):
    error: dict[Literal["message", "type", "param", "code"], str | None]


ERROR_TYPES = {401: "authentication", 429: "rate_limit", 500: "server", 503: "service_unavailable", 504: "timeout"}
"""Status -> OpenAI's error type, before `_error`; all others are `invalid_request_error`."""


@dataclass(eq=False)
class Refusal(Exception):
    """A request is answered with an error, in the form that OpenAI's clients know."""

    status: int
    code: str  # for programs
    message: str  # one line for people
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, Any]:
        kind = ERROR_TYPES.get(self.status, "invalid_request")
        return {"error": {"message": self.message, "type": f"{kind}_error", "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after_s is None else {"retry-after": str(self.retry_after_s)}
        return JSONResponse(self.body(), self.status, headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {}))


def unavailable(code: str, message: str) -> Refusal:
    return Refusal(503, code, message, retry_after_s=2)
