"""Bodies of requests and answers. FastAPI checks by them what comes in, and writes the OpenAPI description from them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_QUESTION_CHARS = 4000
MAX_STEPS = 8
MAX_PASSAGES = 20
MAX_TOKENS = 1_000_000
"""What may be asked for; a turn never gets more than the service's rollout.max_new_tokens."""

QuestionText = Annotated[str, StringConstraints(max_length=MAX_QUESTION_CHARS, pattern=r"\S")]
Kbs = Annotated[list[Annotated[str, StringConstraints(max_length=200)]], Field(min_length=1, max_length=64)]
Steps = Annotated[int, Field(ge=0, le=MAX_STEPS)]
K = Annotated[int, Field(ge=1, le=MAX_PASSAGES)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Seconds = Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)]


class RouteRequest(BaseModel):
    """A question for `POST /v1/route`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    question: QuestionText
    image: str | None = Field(None, description="Data URL of a PNG or JPEG that the question is about.")
    kbs: Kbs | None = Field(None, description="Knowledge bases that may be asked; all, if not said.")
    max_steps: Steps | None = Field(None, description="Retrievals that may be made.")
    k: K | None = Field(None, description="Passages that are read after a retrieval.")
    temperature: Temperature = Field(0.0, description="0: the most probable token, always the same answer.")
    top_p: TopP = 1.0
    max_tokens: Tokens | None = Field(None, description="Of each turn.")
    seed: Seed | None = Field(None, description="Same seed, same policy version: same answer.")
    timeout_s: Seconds | None = Field(None, description="Seconds that the answer may take; never more than the service allows.")
    stream: bool = Field(False, description="Server-sent events, one for every step as it happens.")
    pictures: bool = Field(False, description="Passages with a picture carry a small version of it.")


class Passage(BaseModel):
    id: str
    title: str
    text: str
    score: float
    error: str
    image: str | None = None


class Step(BaseModel):
    """One turn of the path: what was asked, where, what came back, what was read from it."""

    thought: str | None
    decision: Literal["retrieve", "stop", "malformed"]
    sub_question: str | None
    kb: str | None
    passages: list[Passage]
    answer_thought: str | None
    sub_answer: str | None
    seconds: dict[str, float] = Field(description="Of the phases plan, search and answer.")


class Usage(BaseModel):
    """Tokens, summed over all turns of the episode."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class RouteAnswer(BaseModel):
    """The whole trajectory."""

    id: str
    question: str
    answer: str
    thought: str | None
    steps: list[Step]
    retrievals: int
    finish_reason: Literal["stop", "length"]
    policy_version: int
    usage: Usage
    seconds: float


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    url: str = Field(description="A data URL of a PNG or JPEG.")
    detail: str | None = None


class ImagePart(BaseModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(BaseModel):
    """As OpenAI's clients send it. The question is the last user message: every question stands alone. Parameters that would change the answer
    and that this service does not have are refused, others that clients send by habit are ignored."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=200)]
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    n: int | None = None
    seed: Seed | None = None
    kbs: Kbs | None = Field(None, description="Extension: knowledge bases that may be asked.")
    max_steps: Steps | None = Field(None, description="Extension: retrievals that may be made.")
    k: K | None = Field(None, description="Extension: passages that are read after a retrieval.")
    timeout_s: Seconds | None = None


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    reasoning_content: str | None = Field(None, description="The path: every query, where it went, and what it brought.")


class Choice(BaseModel):
    index: int = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str = Field(description="The policy version.")
    choices: list[Choice]
    usage: Usage
    policy_version: int


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "r1-router"
    policy_version: int


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class KnowledgeBase(BaseModel):
    name: str
    description: str
    modality: str
    passages: int
    fingerprint: str


class Health(BaseModel):
    status: Literal["starting", "loading", "ready", "draining"]
    progress: str
    model: str
    policy_version: int
    kbs: list[KnowledgeBase]
    under_way: int
    reload_error: str | None = None


class Example(BaseModel):
    question: str
    image: str | None = None


class ExampleList(BaseModel):
    data: list[Example]


class ReloadRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    policy: Annotated[str, StringConstraints(min_length=1, max_length=4096)] = Field(description="A policy folder.")
    policy_version: Annotated[int, Field(ge=0, lt=2**63)]


class Reloaded(BaseModel):
    policy: str
    policy_version: int


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


Json = dict[str, Any]
