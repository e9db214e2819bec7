"""The router as a server that speaks OpenAI's API: `create_app` makes the application.

    app = create_app(VLLMEngine("http://127.0.0.1:8000/v1", model="router"), ModelRegistry.from_file("models.toml"))
    uvicorn.run(app, port=8787)

`router-r1 serve` does this, with options.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from langgraph.checkpoint.base import BaseCheckpointSaver
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from typing_extensions import Unpack

from langgraph_router_r1.calls.client import Clients
from langgraph_router_r1.engines.base import RouterEngine
from langgraph_router_r1.fork import ForkError
from langgraph_router_r1.registry import ModelRegistry, UnknownModelError
from langgraph_router_r1.serving import chat, responses, run_pages
from langgraph_router_r1.serving.database import open_database
from langgraph_router_r1.serving.errors import ApiError, invalid, invalid_fields
from langgraph_router_r1.serving.keys import Key, Keys, KeysError, check_models
from langgraph_router_r1.serving.metrics import Metrics
from langgraph_router_r1.serving.options import ServerSettings
from langgraph_router_r1.serving.page import page_files
from langgraph_router_r1.serving.reply import whole_reply
from langgraph_router_r1.serving.responses_wire import ResponsesRequest
from langgraph_router_r1.serving.run_events import Decisions, ForkRequest, RunRequest, events_of, run_events
from langgraph_router_r1.serving.runs import Run, Runs
from langgraph_router_r1.serving.shadow import Shadow, ShadowRouter
from langgraph_router_r1.serving.store import NOBODY, Allowance, Store, StoredRun
from langgraph_router_r1.serving.targets import MakePlanner, Target, Targets, check_names
from langgraph_router_r1.serving.wire import Asked, ChatRequest, Wire
from langgraph_router_r1.settings import RouterSettings
from langgraph_router_r1.strategies import Strategy

logger = logging.getLogger(__name__)

MAX_CLIENT_ID_CHARS = 128

W = TypeVar("W", bound=Wire)


def create_app(
    engine: RouterEngine | Strategy,
    registry: ModelRegistry,
    settings: ServerSettings | None = None,
    *,
    make_planner: MakePlanner | None = None,
    shadow: ShadowRouter | None = None,
    **router: Unpack[RouterSettings],
) -> FastAPI:
    """Return the application.

    Args:
        engine: Where the router LLM's tokens come from, or the strategy that decides without one.
        registry: The models that may be asked. `app.state.api.serve(registry)` serves another one from then on.
        settings: Of the server.
        make_planner: Makes the planner for a registry, which requests then can name; None for a server without one.
        shadow: A second router that is given a share of the requests, too.
        **router: Of the router; see `RouterSettings`.

    Raises:
        ValueError: A model has the router's name, or a setting is wrong.
        KeysError: Two keys are the same, or one names a model that is not there.

    Example:
        >>> from langgraph_router_r1.testing import ScriptedChatModel, ScriptedEngine
        >>> small = ModelDescriptor(name="small", model=ScriptedChatModel(["Lima"]), price="free")
        >>> app = create_app(ScriptedEngine(["<answer> Lima </answer>"]), ModelRegistry([small]))
    """
    settings = settings or ServerSettings()
    api = Api(engine, registry, settings, router, make_planner, shadow)
    # Without FastAPI's own pages: they fetch scripts from elsewhere.
    app = FastAPI(title="router-r1", lifespan=api.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.api = api
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.allowed_hosts), www_redirect=False)
    for path, method, endpoint in (
        ("/v1/chat/completions", "POST", api.chat),
        ("/v1/responses", "POST", api.responses),
        ("/v1/models", "GET", api.models),
        ("/v1/models/{name:path}", "GET", api.model),
        ("/v1/runs", "GET", api.list_runs),
        ("/v1/runs", "POST", api.start_run),
        ("/v1/runs/{run_id}", "GET", api.run),
        ("/v1/runs/{run_id}/decisions", "POST", api.decide),
        ("/v1/runs/{run_id}/fork", "POST", api.fork_run),
        ("/v1/feedback", "POST", api.feedback),
        ("/v1/usage", "GET", api.usage),
        ("/healthz", "GET", api.healthz),
        ("/readyz", "GET", api.readyz),
        ("/metrics", "GET", api.metrics_page),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    for path, response in page_files().items():
        app.add_api_route(path, response, methods=["GET"], response_model=None)
    app.add_exception_handler(ApiError, api.explain)
    app.add_exception_handler(SQLAlchemyError, api.explain)
    app.add_exception_handler(HTTPException, api.explain)
    app.add_exception_handler(Exception, api.explain)
    return app


class Api:
    """The endpoints of a server."""

    def __init__(
        self,
        engine: RouterEngine | Strategy,
        registry: ModelRegistry,
        settings: ServerSettings,
        router: RouterSettings,
        make_planner: MakePlanner | None,
        shadow: ShadowRouter | None,
    ) -> None:
        """Take the parts; see `create_app`."""
        check_names(registry, has_planner=make_planner is not None)
        check_models(settings.keys, registry, has_planner=make_planner is not None)
        if shadow is not None and shadow.registry is not None:
            check_names(shadow.registry)
        self._make_planner = make_planner
        self._engine, self._registry, self._settings, self._router = engine, registry, settings, router
        self._clients = router.get("clients") or Clients()
        self._shadow_router = shadow
        # Models that fail for the shadow must not rest for the server.
        self._shadow_clients = Clients()
        self._keys, self._metrics = Keys(settings.keys), Metrics()
        self._saver: BaseCheckpointSaver[Any] | None = None
        self._started_at = int(time.time())
        self._watchers: set[asyncio.Task[None]] = set()
        self.runs: Runs
        self.shadow: Shadow | None = None

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Open the database, and look after it, for as long as the server runs."""
        async with open_database(str(self._settings.database)) as (engine, self._saver):
            store, targets = Store(engine), self._targets(self._registry)
            self.runs = Runs(store, self._saver, targets, self._settings, self._metrics)
            looks_after = [asyncio.create_task(self.runs.look_after())]
            if (given := self._shadow_router) is not None:
                targets, metrics = self._shadow_targets(given, self._registry), self._metrics.of_shadow()
                self.shadow = Shadow(given.settings, targets, store, self._saver, self._settings, metrics)
                looks_after.append(asyncio.create_task(self.shadow.runs.look_after()))
            try:
                yield
            finally:
                await self.runs.stop()
                if self.shadow is not None:
                    await self.shadow.stop()
                for task in looks_after:
                    task.cancel()
                await asyncio.wait(looks_after)

    def serve(
        self, registry: ModelRegistry, shadow: ShadowRouter | None = None, keys: Sequence[Key] | None = None
    ) -> None:
        """Serve another registry from now on; runs that have begun keep theirs.

        Args:
            registry: The models that may be asked.
            shadow: Takes the place of the shadow that the server was made with; by default that one stays.
            keys: Take the place of the known ones; by default those stay.

        Raises:
            ValueError: A model has the router's name.
            KeysError: Two keys are the same, or there are none any more: the server would be open to anyone.
        """
        if keys is not None and self._keys and not keys:
            msg = "there are no keys any more: a server with keys must keep one"
            raise KeysError(msg)
        known = self._keys if keys is None else Keys(keys)
        targets, given = self._targets(registry), shadow or self._shadow_router
        if self.shadow is not None and given is not None:
            self.shadow.serve(given.settings, self._shadow_targets(given, registry))
            self._shadow_router = given
        self.runs.targets, self._keys = targets, known
        try:
            check_models(known.all, registry, has_planner=self._make_planner is not None)
        except KeysError as error:
            # A name that is not served locks its user out. To keep a key that was taken back would be worse.
            logger.warning("%s", error)

    def _targets(self, registry: ModelRegistry) -> Targets:
        assert self._saver is not None
        return Targets(self._engine, registry, self._saver, self._clients, self._router, self._make_planner)

    def _shadow_targets(self, shadow: ShadowRouter, registry: ModelRegistry) -> Targets:
        assert self._saver is not None
        pool = registry if shadow.registry is None else shadow.registry
        if shadow.engine is not None:
            return Targets(shadow.engine, pool, self._saver, self._shadow_clients, shadow.router)
        # Replies that one of the two has paid for would be free for the other.
        return Targets(self._engine, pool, self._saver, self._shadow_clients, {**self._router, "cache": None})

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        body = await self._read(request, ChatRequest)
        run = await self._start(request, body.asked())
        if body.stream:
            options = body.stream_options
            return _stream(run, chat.chunks(run, include_usage=options is not None and options.include_usage))
        return _json(run, chat.completion(run, await whole_reply(run)))

    async def responses(self, request: Request) -> Response:
        """`POST /v1/responses`."""
        body = await self._read(request, ResponsesRequest)
        run = await self._start(request, body.asked())
        if body.stream:
            return _stream(run, responses.events(run))
        return _json(run, responses.response(run, await whole_reply(run)))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`: what the key may ask for."""
        key = self._key(request)
        listed = [self._model(name) for name in self.runs.targets.names if key is None or key.may_use(name)]
        return JSONResponse({"object": "list", "data": listed})

    async def model(self, request: Request, name: str) -> Response:
        """`GET /v1/models/{name}`."""
        key = self._key(request)
        self.runs.targets.find(name)
        _check_use(key, name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        registry = self.runs.targets.registry
        about = None
        if name in registry:
            model = registry[name]
            about = run_pages.model_page(
                model,
                is_resting=self.runs.targets.is_resting(model),
                calls=self._metrics.calls().get(model.name, {}),
                figures=self.runs.targets.figures.get(model.name),
            )
        return {"id": name, "object": "model", "created": self._started_at, "owned_by": "router-r1", "router_r1": about}

    async def list_runs(self, request: Request) -> Response:
        """`GET /v1/runs`: the runs of the key, the latest first."""
        key = self._key(request)
        try:
            wanted = run_pages.RunsQuery.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise invalid_fields(error) from None
        found = await self.runs.store.find(
            key=None if key is None else key.name,
            client_id=wanted.client_request_id,
            search=wanted.search,
            before=wanted.before,
            limit=wanted.limit,
        )
        return JSONResponse({"object": "list", "data": [run_pages.run_page(run) for run in found]})

    async def run(self, request: Request, run_id: str) -> Response:
        """`GET /v1/runs/{run_id}`: a run of the key, with its record."""
        found = await self._stored(request, run_id)
        page = run_pages.run_page(found, with_record=True)
        if found.status == "waiting":
            page["approval"] = await self.runs.approval(run_id)
        return JSONResponse(page)

    async def start_run(self, request: Request) -> Response:
        """`POST /v1/runs`: ask, and receive the router's own events."""
        body = await self._read(request, RunRequest)
        asked = body.asked()
        return await self._follow(request, asked, self.runs.targets.find(asked.model, approve=body.approve))

    async def fork_run(self, request: Request, run_id: str) -> Response:
        """`POST /v1/runs/{run_id}/fork`: a new run that asks another model at one call of this one."""
        body = await self._read(request, ForkRequest)
        _check_use(self._key(request), body.model)
        found = await self._stored(request, run_id)
        if found.record is None or found.status == "waiting":
            raise ApiError(409, f"the run is {found.status}: only a run with a record can be forked", "no_record")
        if self.runs.targets.find(found.model).model is not None:
            raise invalid("the run asked one model directly; only a run of the router can be forked")
        if found.record.images:
            raise invalid("the question came with images, which are not kept; the run can't be forked here")
        try:
            target = self.runs.targets.fork(found.record, asked=found.model, **body.model_dump())
        except (ForkError, UnknownModelError) as error:
            raise invalid(str(error)) from None
        asked = events_of(found.model, found.record.question, budget_usd=found.record.limits["budget_usd"])
        return await self._follow(request, asked, target)

    async def decide(self, request: Request, run_id: str) -> Response:
        """`POST /v1/runs/{run_id}/decisions`: go on with a run that waits for approval."""
        body = await self._read(request, Decisions)
        for name in body.edited_models():
            _check_use(self._key(request), name)
        found = await self._stored(request, run_id)
        asked, target = events_of(found.model, found.question), self.runs.targets.find(found.model, approve=True)
        run = await self.runs.resume(asked, target, run_id, body.decisions)
        self._watch(request, run)
        return _stream(run, run_events(run))

    async def feedback(self, request: Request) -> Response:
        """`POST /v1/feedback`: what a user thinks of the answer of a run of the key; the latest word counts."""
        body = await self._read(request, run_pages.FeedbackRequest)
        found = await self._stored(request, body.run_id)
        if found.status != "ended":
            raise ApiError(409, f"the run is {found.status}: only a run that has an answer can be rated", "no_answer")
        feedback = await self.runs.store.rate(found.id, body.score, body.comment)
        return JSONResponse({"object": "router_r1.feedback", "run_id": found.id, **asdict(feedback)})

    async def _follow(self, request: Request, asked: Asked, target: Target) -> Response:
        run = await self._start(request, asked, target)
        return _stream(run, run_events(run))

    async def _stored(self, request: Request, run_id: str) -> StoredRun:
        """Return a run of the key.

        Raises:
            ApiError: There is none.
        """
        key = self._key(request)
        found = await self.runs.store.get(run_id, None if key is None else key.name)
        if found is None:
            raise ApiError(404, "there is no such run", "run_not_found")
        return found

    async def usage(self, request: Request) -> Response:
        """`GET /v1/usage`: what the key has spent today and in this month, and what it may; days are UTC's."""
        key = self._key(request)
        spent = await self.runs.store.spent("" if key is None else key.name)
        may = Allowance() if key is None else key.allowance
        budget = {"day_usd": may.day_usd, "month_usd": may.month_usd}
        return JSONResponse({"today_usd": spent["today"], "month_usd": spent["month"], "budget": budget})

    async def healthz(self) -> Response:
        """`GET /healthz`: the process lives."""
        return JSONResponse({"status": "ok"})

    async def readyz(self) -> Response:
        """`GET /readyz`: it takes requests."""
        await self.runs.store.ping()
        if self.runs.is_stopping:
            raise ApiError(503, "the server is stopping", "stopping")
        return JSONResponse({"status": "ok"})

    async def metrics_page(self) -> Response:
        """`GET /metrics`, for Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def explain(self, _: Request, error: Exception) -> Response:
        """Return an error as OpenAI's clients expect it."""
        match error:
            case ApiError():
                explained = error
            case HTTPException():
                explained = ApiError(error.status_code, f"{error.detail}", "http_error")
            case SQLAlchemyError():
                logger.error("the database can't be used: %s", type(error).__name__, exc_info=error)
                explained = ApiError(503, "the server's database does not answer", "no_database")
            case _:
                explained = ApiError(500, "the server failed; its log says why", "server_failed")
        if not explained.has_run:
            self._metrics.refused(explained.code)
        return JSONResponse(explained.body, explained.status, explained.headers)

    def _key(self, request: Request) -> Key | None:
        return self._keys.of(request.headers.get("authorization"))

    async def _start(self, request: Request, asked: Asked, target: Target | None = None) -> Run:
        key = self._key(request)
        _check_use(key, asked.model)
        client_id = request.headers.get("x-client-request-id")
        if client_id is not None and not (client_id.isascii() and 0 < len(client_id) <= MAX_CLIENT_ID_CHARS):
            raise invalid(f"X-Client-Request-Id must have 1 to {MAX_CLIENT_ID_CHARS} ASCII characters")
        target = target or self.runs.targets.find(asked.model, max_tokens=asked.max_tokens)
        run = await self.runs.start(asked, target, NOBODY if key is None else key.account, client_id=client_id)
        self._watch(request, run)
        if self.shadow is not None:
            self.shadow.follow(run)
        return run

    def _watch(self, request: Request, run: Run) -> None:
        watcher = asyncio.create_task(_cancel_when_left(request, run))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _read(self, request: Request, kind: type[W]) -> W:
        """Return the body of a request.

        Raises:
            ApiError: Its key is not known, or it is too large or not what it must be.
        """
        self._key(request)  # before anything is read
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            # A page of another site can send anything else without the browser asking first.
            raise ApiError(415, "the body must be JSON, with 'Content-Type: application/json'", "not_json")
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._settings.max_body_bytes:
                message = f"the body is larger than {self._settings.max_body_bytes:,} bytes"
                raise ApiError(413, message, "too_large")
        try:
            return kind.model_validate_json(bytes(body))
        except ValidationError as error:
            raise invalid_fields(error) from None


async def _cancel_when_left(request: Request, run: Run) -> None:
    """Cancel a run if its client leaves before it is over."""
    assert run.task is not None
    left = asyncio.create_task(_left(request))
    await asyncio.wait([left, run.task], return_when=asyncio.FIRST_COMPLETED)
    left.cancel()
    run.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_use(key: Key | None, model: str) -> None:
    if key is not None and not key.may_use(model):
        raise ApiError(403, f"the key may not use the model {model!r}", "model_not_allowed", param="model")


def _headers(run: Run) -> dict[str, str]:
    return {"X-Request-Id": run.id, "Cache-Control": "no-store"}


def _json(run: Run, body: dict[str, Any]) -> Response:
    return JSONResponse(body, headers=_headers(run))


def _stream(run: Run, events: AsyncIterator[bytes]) -> Response:
    # nginx would keep the pieces back until it has a page of them.
    headers = {**_headers(run), "X-Accel-Buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)
