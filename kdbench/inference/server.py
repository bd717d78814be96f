"""The HTTP server of kdbench-serve: POST /classify, GET /health, GET /metrics."""

import asyncio
import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from kdbench.errors import UserError
from kdbench.inference.batching import Batch, Batcher, Busy
from kdbench.inference.connections import limited, raise_file_limit
from kdbench.inference.served import ServedModel

log = logging.getLogger("kdbench.serve")
BODY_SECONDS = 30.0  # for the body of a request [ours]
STOP_SECONDS = 30.0  # for the requests that were accepted before the server stops [ours]
DISCARDED = 64_000_000  # bytes of a body that is too large which are still read, so that the refusal arrives [ours]
EXAMPLE = '{"texts": ["a text", "another"]}'


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and what the server holds."""

    batch: int  # texts that the model answers at once
    wait: float  # seconds that an idle model waits for more texts
    texts: int  # of a request
    characters: int  # of a text
    body: int  # bytes
    waiting: int  # texts in the queue
    connections: int


class Refused(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Figures:
    """What GET /metrics shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        add: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("kdbench_requests", "Requests to /classify, by HTTP status.", ["status"], **add)
        self.seconds = Histogram("kdbench_request_seconds", "Time of a request to /classify, with waiting.", **add)
        self.texts = Counter("kdbench_texts", "Texts that were answered.", **add)
        sizes = [1, 2, 4, 8, 16, 32, 64, 128]
        self.batch_texts = Histogram("kdbench_batch_texts", "Texts of a batch.", buckets=sizes, **add)
        self.batch_seconds = Histogram("kdbench_batch_seconds", "Time of a batch in the model.", **add)
        self.waiting = Gauge("kdbench_waiting_texts", "Texts that wait for the model.", **add)
        self.model = Gauge("kdbench_model", "1 for the model in use.", ["digest", "path"], **add)
        self.reloads = Counter("kdbench_reloads", "Reloads of the model by SIGHUP.", ["result"], **add)

    def batch(self, one: Batch) -> None:
        self.texts.inc(one.texts)
        self.batch_texts.observe(one.texts)
        self.batch_seconds.observe(one.seconds)

    def uses(self, model: ServedModel) -> None:
        self.model.clear()
        self.model.labels(model.digest, str(model.path)).set(1)


class Service:
    """The model with its queue and its figures."""

    def __init__(self, load: Callable[[], ServedModel], limits: Limits) -> None:
        """`load` opens the model, now and at each reload. Raises UserError."""
        self.load, self.limits, self.figures = load, limits, Figures()
        self.batcher = Batcher(load(), limits.batch, limits.wait, limits.waiting, self.figures.batch)
        self.figures.uses(self.model)
        self.figures.waiting.set_function(lambda: len(self.batcher.queue))

    @property
    def model(self) -> ServedModel:
        return self.batcher.model

    async def reload(self) -> None:
        """Open the model again; requests that come later get the new one. If it cannot be opened, the old one stays."""
        try:
            found = await asyncio.to_thread(self.load)
        except UserError as error:
            self.figures.reloads.labels("failed").inc()
            log.error("not reloaded, the model from before is used: %s", error.line)
            return
        self.batcher.model = found
        self.figures.uses(found)
        self.figures.reloads.labels("done").inc()
        log.warning("reloaded: %s (%s)", found.path, found.digest)

    async def classify(self, request: Request) -> dict[str, Any]:
        """Return the answers to a request. Raises Refused."""
        body = await _body(request, self.limits.body)
        texts, pairs = read_request(body, self.model.pairs, self.limits)
        answers: list[Any] = [None] * len(texts)
        # as for kdbench-predict, the answer to a blank text is null
        asked = [at for at, text in enumerate(texts) if (text + (pairs[at] if pairs else "")).strip()]
        model = self.model
        if asked:
            given = [texts[at] for at in asked], [pairs[at] for at in asked] if pairs else None
            try:
                model, found = await self.batcher.answer(*given)
            except Busy:
                raise Refused(503, f"{self.limits.waiting} texts are waiting: try again later") from None
            for at, one in zip(asked, found, strict=True):
                answers[at] = one
        return {"model": model.digest, "answers": answers}


async def _body(request: Request, most: int) -> bytes:
    """Return the body of a request. Raises Refused if it is too large, or does not arrive."""
    too_large = Refused(413, f"the body is larger than {most:,} bytes: send fewer or shorter texts")
    promised = request.headers.get("content-length", "0")
    if promised.isdecimal() and int(promised) > DISCARDED:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size <= most:
                    parts.append(part)
                elif size > DISCARDED:
                    break
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY_SECONDS:g} seconds") from None
    if size > most:
        raise too_large
    return b"".join(parts)


def read_request(body: bytes, pairs: bool, limits: Limits) -> tuple[list[str], list[str] | None]:
    """Return the texts of a body, and the second texts if the model reads pairs. Raises Refused."""
    example = EXAMPLE if not pairs else '{"texts": ["a question"], "pairs": ["its answer"]}'
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, f"the body is not JSON: {reason}. Send {example}") from None
    known = ["texts", "pairs"] if pairs else ["texts"]
    if not isinstance(value, dict) or sorted(value) != sorted(known):
        needed = "this model reads pairs of texts" if pairs else "this model reads single texts"
        raise Refused(422, f"the body must be an object with the keys {' and '.join(known)}, as {needed}: {example}")
    columns = [_texts(value[name], name, limits) for name in known]
    if pairs and len(columns[0]) != len(columns[1]):
        raise Refused(422, f"there are {len(columns[0])} texts and {len(columns[1])} pairs: give one for each text")
    return columns[0], columns[1] if pairs else None


def _texts(value: Any, name: str, limits: Limits) -> list[str]:
    """Return the list of texts under a key. Raises Refused."""
    if not isinstance(value, list):
        raise Refused(422, f"{name} must be a list of texts: {EXAMPLE}")
    if len(value) > limits.texts:
        raise Refused(
            413, f"{name} has {len(value):,} texts, and at most {limits.texts:,} are taken: send several requests"
        )
    for at, text in enumerate(value):
        if not isinstance(text, str):
            raise Refused(422, f"{name}[{at}] is not a text: {EXAMPLE}")
        if len(text) > limits.characters:
            raise Refused(
                413, f"{name}[{at}] has {len(text):,} characters, and at most {limits.characters:,} are taken"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Refused(422, f"{name}[{at}] is no Unicode text: it has half of a surrogate pair") from None
    return value


def application(service: Service) -> FastAPI:
    """Return the ASGI application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        answering = asyncio.create_task(service.batcher.run())
        yield
        answering.cancel()
        service.batcher.pool.shutdown()

    # No pages: they load scripts from elsewhere.
    app = FastAPI(title="kdbench-serve", docs_url=None, redoc_url=None, lifespan=lifespan)

    @app.post("/classify")
    async def classify(request: Request) -> Response:
        began = time.perf_counter()
        try:
            response = JSONResponse(await service.classify(request))
        except Refused as error:
            retry = {"retry-after": "1"} if error.status == 503 else None
            response = JSONResponse({"error": str(error)}, error.status, retry)
        except Exception:
            log.exception("a text could not be answered")
            response = JSONResponse({"error": "the model failed on this text; the server's log has the reason"}, 500)
        service.figures.requests.labels(response.status_code).inc()
        service.figures.seconds.observe(time.perf_counter() - began)
        return response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        model = service.model
        return {"status": "ok", "model": model.digest, "task": model.task, "labels": model.labels, "pairs": model.pairs}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.figures.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        known = "there are POST /classify, GET /health and GET /metrics"
        return JSONResponse({"error": f"{error.detail}: {known}"}, error.status_code, error.headers)

    return app


class Server(uvicorn.Server):
    """Serve until SIGTERM or SIGINT, then finish what was accepted. SIGHUP opens the model again."""

    def __init__(self, service: Service, ready: Callable[[], None]) -> None:
        """`ready` is called as soon as requests are accepted."""
        served, in_all = raise_file_limit(service.limits.connections)
        if served < service.limits.connections:
            log.warning("at most %d connections, because of the limit of open files (ulimit -n)", served)
        super().__init__(
            uvicorn.Config(
                application(service), http=limited(served, in_all), loop="asyncio", ws="none", lifespan="on",
                log_config=None, access_log=False, server_header=False,
                timeout_graceful_shutdown=round(STOP_SECONDS),
            )
        )  # fmt: skip
        self.service, self.ready = service, ready
        self.reloading: set[asyncio.Task[None]] = set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replace uvicorn's, which ends the process by the signal again, so that a clean stop looks like a crash."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        yield

    def _stop(self) -> None:
        self.force_exit, self.should_exit = self.should_exit, True  # the second signal does not wait

    def _reload(self) -> None:
        task = asyncio.get_running_loop().create_task(self.service.reload())
        self.reloading.add(task)
        task.add_done_callback(self.reloading.discard)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()
