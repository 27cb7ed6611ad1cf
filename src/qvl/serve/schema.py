"""The requests we take, field by field; null counts as left out. What isn't here is in fields.py."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from qvl.serve.fields import drop_idle


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    where: ClassVar[str] = ""  # for the log: "messages." and the like
    elsewhere: ClassVar[tuple[str, ...]] = ()  # fields that clients look for here, and that count elsewhere
    lenient: ClassVar[bool] = True  # whether what isn't known may be without effect

    @model_validator(mode="before")
    @classmethod
    def _without_idle_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not cls.lenient:
            return data
        known = {field.alias or name: name for name, field in cls.model_fields.items()}
        return drop_idle(data, known | dict.fromkeys(cls.elsewhere), cls.where)


def _written(value: Any) -> str:
    return "(list)" if isinstance(value, list) else "(text)"


class _Pixels(Strict):
    min_pixels: int | None = Field(None, ge=1, le=2**31)
    max_pixels: int | None = Field(None, ge=1, le=2**31)


class _Frames(_Pixels):
    total_pixels: int | None = Field(None, ge=1, le=2**36)
    fps: float | None = Field(None, gt=0, le=1000)
    num_frames: int | None = Field(None, ge=1, le=4096)
    min_frames: int | None = Field(None, ge=1, le=4096)
    max_frames: int | None = Field(None, ge=1, le=4096)


class ProcessorSettings(_Frames):
    lenient = False  # whatever is meant for the processor changes what the model sees


class ImageUrl(Strict):
    where = "image_url."
    url: str = Field(min_length=1, description="data:, http(s):// and file:// where the server allows them")
    detail: Literal["auto", "low", "high", "original"] | None = None


class VideoUrl(Strict):
    where = "video_url."
    url: str = Field(min_length=1)


class _Part(Strict):
    where = "messages.content."
    elsewhere = ("detail",)

    @model_validator(mode="before")
    @classmethod
    def _bare_address(cls, data: Any) -> Any:
        """LangChain and others write the address itself where OpenAI has {"url": …}."""
        kind = data.get("type") if isinstance(data, dict) else None
        if kind in ("image_url", "video_url") and isinstance(data.get(kind), str):
            return {**data, kind: {"url": data[kind]}}
        return data


class TextPart(_Part):
    type: Literal["text"]
    text: str


class RefusalPart(_Part):
    type: Literal["refusal"]
    refusal: str


class ImagePart(_Pixels, _Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(_Frames, _Part):
    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
SaidPart = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
# Which of the two is meant is known by its type, so that errors speak of that one alone.
Words = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[list[TextPart], Tag("(list)")], Discriminator(_written)
]
WordsAndMedia = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[list[Part], Tag("(list)")], Discriminator(_written)
]
Said = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[list[SaidPart], Tag("(list)")], Discriminator(_written)
]


class FunctionCall(Strict):
    where = "messages.tool_calls.function."
    name: str
    arguments: str


class ToolCall(Strict):
    where = "messages.tool_calls."
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class _Message(Strict):
    where = "messages."
    name: str | None = Field(None, description="handed to the template; those of this family don't show it")


class SystemMessage(_Message):
    role: Literal["system", "developer"]
    content: Words


class UserMessage(_Message):
    role: Literal["user"]
    content: WordsAndMedia


class AssistantMessage(_Message):
    role: Literal["assistant"]
    content: Said | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None  # templates show it, or leave out what was thought in earlier turns
    reasoning: str | None = Field(None, description="vLLM's name for reasoning_content")
    refusal: str | None = Field(None, description="stands for the content where there is none")


class ToolMessage(_Message):
    role: Literal["tool"]
    content: Words
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Strict):
    where = "tools.function."
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    where = "tools."
    type: Literal["function"]
    function: Function


class _Named(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: _Named


class JsonSchema(Strict):
    where = "response_format.json_schema."
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    where = "response_format."
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self


class StructuredOutputs(Strict):
    """vLLM's: an answer that is one of several, or keeps to an expression or a grammar."""

    where = "structured_outputs."
    json_: dict[str, Any] | str | None = Field(None, alias="json")
    json_object: bool | None = None
    choice: list[str] | None = Field(None, min_length=1, max_length=4096)
    regex: str | None = Field(None, min_length=1, max_length=65536)
    grammar: str | None = Field(
        None, min_length=1, max_length=65536, description="Lark, as llguidance reads it"
    )

    @model_validator(mode="after")
    def _one(self) -> StructuredOutputs:
        given = [self.json_, self.json_object or None, self.choice, self.regex, self.grammar]
        if sum(value is not None for value in given) != 1:
            raise ValueError("give one of json, json_object, choice, regex and grammar")
        return self


class StreamOptions(Strict):
    where = "stream_options."
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = Field(
        None, description="with include_usage: every piece says how many tokens there are so far"
    )


class Sampling(Strict):
    """How answers are drawn, by OpenAI's and vLLM's names."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = Field(
        None, max_length=1024, description="token id → -100 to 100, added before tokens are drawn"
    )
    top_k: int | None = Field(None, ge=0, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31)]] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > 16 or any(not 0 < len(stop) <= 1024 for stop in stops):
            raise ValueError("at most 16 strings of 1 to 1024 characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _token_biases(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        for token, bias in (value or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 10):
                raise ValueError(f"{token!r} is not a token id")
            if not -100 <= bias <= 100:
                raise ValueError(f"{bias:g} for token {token}: must be from -100 to 100")
        return value


class ChatRequest(Sampling):
    """POST /v1/chat/completions. After the line come fields that vLLM's users know, with the same meaning."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    max_tokens: int | None = Field(
        None, ge=1, le=2**31, description="the older name of max_completion_tokens"
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: one call at most")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="none turns thinking off and others turn it on, where the template can"
    )
    # ---------------------------------------------------------------------------------------------------
    mm_processor_kwargs: ProcessorSettings | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="variables of the template; one that it doesn't use has no effect"
    )
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        None, description="the answer goes on with the last message, an assistant's"
    )
    structured_outputs: StructuredOutputs | None = None
    qvl_parse: Literal["boxes", "document", "events", "actions"] | None = Field(
        None, description="adds qvl_parsed to each choice: what its text says, in pixels of the image sent"
    )

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise ValueError(
                f"max_tokens {self.max_tokens} and max_completion_tokens {self.max_completion_tokens} are the "
                "same limit: give one"
            )
        names = [tool.function.name for tool in self.tools or []]
        if len(set(names)) < len(names):
            raise ValueError("tools have the same name twice")
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice names {self.tool_choice.function.name!r}; tools are {', '.join(names)}"
            )
        if self.structured_outputs is not None and (self.constrained or self.forced):
            raise ValueError(
                "structured_outputs and response_format or a forced tool call are two forms of an answer: leave one"
            )
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "add_generation_prompt begins a new message, continue_final_message goes on: leave one"
            )
        return self

    @property
    def constrained(self) -> bool:
        return self.response_format is not None and self.response_format.type != "text"

    @property
    def forced(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    @property
    def calls_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_logprobs(self) -> int | None:
        """How many likely tokens are told beside each; None: no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


Ids = list[Annotated[int, Field(ge=0, le=2**31)]]


def _prompt_kind(value: Any) -> str:
    if isinstance(value, str):
        return "(text)"
    first = value[0] if isinstance(value, list) and value else None
    return "(texts)" if isinstance(first, str) else "(many)" if isinstance(first, list) else "(ids)"


class CompletionRequest(Sampling):
    """POST /v1/completions: a text goes on, special tokens in it counting as such. Without images."""

    model: str
    prompt: Annotated[
        Annotated[str, Tag("(text)")]
        | Annotated[list[str], Tag("(texts)")]
        | Annotated[Ids, Tag("(ids)")]
        | Annotated[list[Ids], Tag("(many)")],
        Discriminator(_prompt_kind),
    ]
    max_tokens: int | None = Field(None, ge=1, le=2**31, description="16 when left out, as OpenAI")
    logprobs: int | None = Field(None, ge=0, le=20)
    suffix: None = None
    structured_outputs: StructuredOutputs | None = None

    @field_validator("prompt")
    @classmethod
    def _few_prompts(cls, value: str | list[Any]) -> str | list[Any]:
        if isinstance(value, list) and not value:
            raise ValueError("is empty")
        if isinstance(value, list) and not isinstance(value[0], int) and len(value) > 64:
            raise ValueError(f"{len(value)} prompts; at most 64 are taken at once")
        return value

    @property
    def prompts(self) -> list[str | list[int]]:
        value = self.prompt
        return [value] if isinstance(value, str) or isinstance(value[0], int) else list(value)

    @property
    def limit(self) -> int:
        return self.max_tokens or 16

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class ResponsesRequest(Strict):
    """POST /v1/responses. Nothing is stored: each request brings its whole conversation."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=2**31)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None
    # sampling that vLLM's users know, as in chat
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class TokenizeRequest(Strict):
    """POST /tokenize, as vLLM: a text, or a conversation as the model would get it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class DetokenizeRequest(Strict):
    """POST /detokenize, as vLLM."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=2**31)]] = Field(max_length=1_000_000)
