"""The routes. Each parses, calls the service and formats; thinking is done elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import qvl
from qvl.errors import QvlError
from qvl.serve.chat import Completion, constraints_of, conversation_of, conversation_to_count, params_of
from qvl.serve.completions import launched_text
from qvl.serve.guard import Guard
from qvl.serve.metrics import CONTENT_TYPE
from qvl.serve.parse import parser_of
from qvl.serve.problems import Problem, problem_of, to_json, validation_problem
from qvl.serve.responses import ResponsesAnswer, chat_request_of
from qvl.serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ResponsesRequest,
    TokenizeRequest,
)
from qvl.serve.service import Flight, Service

T = TypeVar("T")


def create_app(service: Service) -> FastAPI:
    """The application around a loaded model. Its lifespan starts and stops the engine's thread."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    # no /docs: that page would load scripts from elsewhere
    app = FastAPI(title="qvl", version=qvl.__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_problems(app, service)
    _add_chat(app, service)
    _add_information(app, service)

    def refused(status: int) -> None:
        service.metrics.refused[status] += 1

    app.add_middleware(Guard, options=service.options, refused=refused, shape=service.shape)
    if service.options.cors_origins:  # outermost: a browser asks whether it may ask, without a key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.options.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    return app


# --------------------------------------------------------------------------------------------------- problems


def _add_problems(app: FastAPI, service: Service) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return validation_problem(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        if error.status_code in (404, 405):
            paths = sorted(path for path in app.openapi()["paths"])
            message += f"; known: {', '.join(paths)}"
        return Problem(error.status_code, message, headers=error.headers).response()

    @app.exception_handler(QvlError)
    async def known(_: Request, error: QvlError) -> Response:
        return problem_of(error, service.hide).response()

    @app.exception_handler(MemoryError)
    async def no_memory(_: Request, error: MemoryError) -> Response:
        return problem_of(error, service.hide).response()

    @app.exception_handler(Exception)
    async def unknown(_: Request, error: Exception) -> Response:
        return problem_of(error, service.hide).response()


# ------------------------------------------------------------------------------------------------------- chat


def _add_chat(app: FastAPI, service: Service) -> None:
    errors = {code: {"description": text} for code, text in _ERRORS.items()}

    @app.post("/v1/chat/completions", response_class=Response, responses=errors)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """An answer to a conversation with images and videos, whole or as server-sent events."""
        return await _answered(body, request, service, body.n or 1, _launched)

    @app.post("/v1/completions", response_class=Response, responses=errors)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Texts that go on, whole or as server-sent events."""
        return await _answered(body, request, service, len(body.prompts) * (body.n or 1), launched_text)

    @app.post("/v1/responses", response_class=Response, responses=errors)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """As chat completions, in the form of OpenAI's Responses. Nothing is stored."""
        return await _answered(body, request, service, 1, _launched_response)

    @app.post("/tokenize", response_class=Response, responses=errors)
    async def tokenize(body: TokenizeRequest) -> Response:
        """How many tokens a text or a conversation takes, and which."""
        if body.model is not None:
            _check_model(body.model, service)
        with service.enter(1):
            tokenizer = service.processor.tokenizer
            if body.prompt is not None:
                ids = await service.tokenized(body.prompt)
            else:
                ids = (await service.inputs(conversation_to_count(body))).input_ids.tolist()
        counted: dict[str, Any] = {"count": len(ids), "max_model_len": service.max_model_len, "tokens": ids}
        if body.return_token_strs:
            counted["token_strs"] = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
        return json_response(counted)

    @app.post("/detokenize", response_class=Response, responses=errors)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of tokens."""
        if body.model is not None:
            _check_model(body.model, service)
        tokenizer = service.processor.tokenizer
        if max(body.tokens, default=0) >= len(tokenizer):
            raise Problem(
                400,
                f"tokens: {max(body.tokens)} is none; there are {len(tokenizer)}",
                param="tokens",
                code="invalid_value",
            )
        return json_response({"prompt": tokenizer.decode(body.tokens, keep_control=True)})


_ERRORS: dict[int | str, str] = {
    400: "A field that isn't supported, or a value that can't be; named in error.param",
    401: "The API key is missing or wrong",
    404: "No such model",
    408: "The body didn't arrive in time",
    413: "The body is too large, or its text longer than any prompt",
    415: "The body isn't JSON",
    429: "Too much is waiting: come back after Retry-After seconds",
    500: "The device failed; other requests go on",
    503: "The server is shutting down: come back after Retry-After seconds",
}


class _Asked(Protocol):
    model: str
    stream: bool | None


class _Answer(Protocol):
    async def whole(self) -> dict[str, Any]: ...

    def pieces(self) -> AsyncIterator[bytes]: ...


B = TypeVar("B", bound=_Asked)


async def _answered(
    body: B,
    request: Request,
    service: Service,
    count: int,
    launch: Callable[[B, Service, Flight], Awaitable[_Answer]],
) -> Response:
    """Whole or as a stream; an answer nobody waits for any more is given up."""
    _check_model(body.model, service)
    flight = service.enter(count)
    with contextlib.ExitStack() as held:
        held.enter_context(flight)
        answer = await unless_gone(request, launch(body, service, flight))
        if answer is None:
            return Response(status_code=499)  # the client has gone
        if body.stream:
            held.pop_all()  # the stream closes the flight
            return EventStream(answer.pieces(), flight)
        whole = await unless_gone(request, answer.whole())
        return Response(status_code=499) if whole is None else json_response(whole)


async def _launched_response(body: ResponsesRequest, service: Service, flight: Flight) -> ResponsesAnswer:
    chat = chat_request_of(body)
    return ResponsesAnswer(body, chat, await _launched(chat, service, flight), service)


async def _launched(body: ChatRequest, service: Service, flight: Flight) -> Completion:
    params = params_of(body)
    constraints = await constraints_of(body, service)
    inputs = await service.inputs(conversation_of(body))
    parse = parser_of(body, inputs, service.model.generation, service.model.name)
    # a grammar leaves no room for thoughts: what it forces is the answer
    thinks = service.model.opens_thinking(inputs) and constraints[0] is None
    await flight.launch(inputs, params, constraints)
    return Completion(body, service, flight, thinks, parse)


def _check_model(name: str, service: Service) -> None:
    if name != service.options.model_name:
        raise Problem(
            404,
            f"no model {name!r} here; this server has {service.options.model_name}",
            param="model",
            code="model_not_found",
        )


def json_response(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


async def unless_gone(request: Request, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None when the client leaves first; then `work` is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await _cancelled(task, gone)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Server-sent events until their end or the client's, whichever is first; closes the flight after either."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[bytes], flight: Flight):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._pieces = pieces
        self._flight = flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            self._flight.close()
            await _cancelled(pump, gone)

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


# ------------------------------------------------------------------------------------------------ information


def _add_information(app: FastAPI, service: Service) -> None:
    name, limits = service.options.model_name, service.model.limits

    def described() -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": service.started,
            "owned_by": "qvl",
            "max_model_len": service.max_model_len,
            # what a client needs to know at which size an image is seen
            "family": service.model.family,
            # null where every image has one size
            "pixel_limits": None if limits is None else dataclasses.asdict(limits),
        }

    @app.get("/v1/models", response_class=Response)
    async def models() -> Response:
        return json_response({"object": "list", "data": [described()]})

    @app.get(
        "/v1/models/{model:path}", response_class=Response, responses={404: {"description": _ERRORS[404]}}
    )
    async def model(model: str) -> Response:
        _check_model(model, service)
        return json_response(described())

    @app.get("/health", response_class=Response, responses={503: {"description": "The engine doesn't run"}})
    async def health() -> Response:
        """Whether the engine runs; a server for which this is not 200 has to be started anew."""
        alive = service.loop.alive
        reason = service.hide(str(service.loop.failure))
        status = {"status": "ok"} if alive else {"status": "failed", "reason": reason}
        return json_response(status, 200 if alive else 503)

    @app.get("/ping", response_class=Response, responses={503: {"description": "The engine doesn't run"}})
    @app.post("/ping", response_class=Response, responses={503: {"description": "The engine doesn't run"}})
    async def ping() -> Response:
        """As SageMaker asks: 200 while the engine runs."""
        return Response(status_code=200 if service.loop.alive else 503)

    @app.get("/version", response_class=Response)
    async def version() -> Response:
        return json_response({"version": qvl.__version__})

    @app.get("/ready", response_class=Response, responses={503: {"description": "Takes nothing new now"}})
    async def ready() -> Response:
        """Whether requests are taken on."""
        taking = service.loop.alive and not service.draining
        return json_response({"status": "ready" if taking else "not ready"}, 200 if taking else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics_text(), media_type=CONTENT_TYPE)
