"""The requests we take, field by field. What isn't here is refused by its name; null counts as left out.

Harmless fields, which say nothing about the answer, are taken and listed: user, safety_identifier, prompt_cache_key.
Others are taken only with the value that means "as usual": store false, service_tier auto, parallel_tool_calls true,
logit_bias {}.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

# Fields of OpenAI's API that no value of ours could honour; clients send them as null.
_NULL_ONLY = frozenset(
    """audio function_call functions metadata modalities prediction reasoning_effort verbosity web_search_options
    prompt_cache_retention""".split()
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Pixels(Strict):
    min_pixels: int | None = Field(None, ge=1, le=2**31)
    max_pixels: int | None = Field(None, ge=1, le=2**31)


class _Frames(_Pixels):
    total_pixels: int | None = Field(None, ge=1, le=2**36)
    fps: float | None = Field(None, gt=0, le=1000)
    num_frames: int | None = Field(None, ge=1, le=4096)
    min_frames: int | None = Field(None, ge=1, le=4096)
    max_frames: int | None = Field(None, ge=1, le=4096)


class ImageUrl(Strict):
    url: str = Field(min_length=1, description="data:, http(s):// and file:// where the server allows them")
    detail: Literal["auto", "low", "high"] | None = None


class VideoUrl(Strict):
    url: str = Field(min_length=1)


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ImagePart(_Pixels):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(_Frames):
    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class FunctionCall(Strict):
    name: str
    arguments: str


class ToolCall(Strict):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(Strict):
    role: Literal["user"]
    content: str | list[Part]


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: str | list[TextPart] | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None  # templates show it, or leave out what was thought in earlier turns
    # the openai package writes these out when a message of ours is sent back
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = Field(None, max_length=0)


class ToolMessage(Strict):
    role: Literal["tool"]
    content: str | list[TextPart]
    tool_call_id: str


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class Function(Strict):
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Literal["function"]
    function: Function


class _Named(Strict):
    name: str


class NamedTool(Strict):
    type: Literal["function"]
    function: _Named


class JsonSchema(Strict):
    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_with_its_type(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema goes with type json_schema, and only with it")
        return self


class StreamOptions(Strict):
    include_usage: bool | None = None


class ChatRequest(Strict):
    """POST /v1/chat/completions. After the line come fields that vLLM's users know, with the same meaning."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16)
    max_completion_tokens: int | None = Field(None, ge=1, le=2**31)
    max_tokens: int | None = Field(
        None, ge=1, le=2**31, description="the older name of max_completion_tokens"
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Literal[True] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # ---------------------------------------------------------------------------------------------------
    top_k: int | None = Field(None, ge=0, le=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    stop_token_ids: list[Annotated[int, Field(ge=0, le=2**31)]] | None = Field(None, max_length=64)
    ignore_eos: bool | None = None
    mm_processor_kwargs: _Frames | None = None
    chat_template_kwargs: dict[str, bool] | None = None
    qvl_parse: Literal["boxes", "document", "events", "actions"] | None = Field(
        None, description="adds qvl_parsed to each choice: what its text says, in pixels of the image sent"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {k: v for k, v in data.items() if not (v is None and k in _NULL_ONLY)}

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > 16 or any(not 0 < len(stop) <= 1024 for stop in stops):
            raise ValueError("at most 16 strings of 1 to 1024 characters")
        return value

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream true")
        if self.top_logprobs is not None and not self.logprobs:
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
        if self.tool_choice not in (None, "none") and not names:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(
                f"tool_choice names {self.tool_choice.function.name!r}; tools are {', '.join(names)}"
            )
        constrained = self.response_format is not None and self.response_format.type != "text"
        if constrained and self.calls_tools:
            raise ValueError(
                "response_format can't be had together with tools; give tool_choice none or leave one"
            )
        return self

    @property
    def calls_tools(self) -> bool:
        return bool(self.tools) and self.tool_choice != "none"

    @property
    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class TokenizeRequest(Strict):
    """POST /tokenize, as vLLM: a text, or a conversation as the model would get it."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[Tool] | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self
