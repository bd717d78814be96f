"""Answer the texts of many requests together: what waits is taken as one batch, in the order of arrival."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from kdbench.inference.served import ServedModel


class Busy(Exception):
    """So many texts wait that no more are taken."""


@dataclass(eq=False)
class _Request:
    """The texts of a request. One model answers all of them, even if another is loaded meanwhile."""

    model: ServedModel
    texts: Sequence[str]
    pairs: Sequence[str] | None
    done: "asyncio.Future[list[Any]]"
    since: float
    answers: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """What was computed at once, for the figures."""

    texts: int
    seconds: float


class Batcher:
    """A queue of texts before a model that runs in a thread of its own.

    While a batch is computed, the next one gathers. An idle model waits `wait` seconds for more texts.
    """

    def __init__(
        self, model: ServedModel, largest: int, wait: float, most_waiting: int, seen: Callable[[Batch], None]
    ) -> None:
        """`largest`: texts of a batch. `most_waiting`: texts in the queue. `seen` is called with each batch."""
        self.model = model  # of the requests to come
        self.largest, self.wait, self.most_waiting, self.seen = largest, wait, most_waiting, seen
        self.queue: deque[tuple[_Request, int]] = deque()  # a text by its request and place
        self.arrived, self.full = asyncio.Event(), asyncio.Event()
        self.pool = ThreadPoolExecutor(1, "kdbench-model")

    async def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> tuple[ServedModel, list[Any]]:
        """Return the answers to n >= 1 texts, and the model that gave them. Raises Busy, or what the model raises."""
        if len(self.queue) + len(texts) > self.most_waiting:
            raise Busy
        loop = asyncio.get_running_loop()
        request = _Request(self.model, texts, pairs, loop.create_future(), time.monotonic())
        request.answers = [None] * len(texts)
        self.queue += [(request, at) for at in range(len(texts))]
        self.arrived.set()
        if len(self.queue) >= self.largest:
            self.full.set()
        return request.model, await request.done

    async def run(self) -> None:
        """Answer until it is cancelled."""
        loop = asyncio.get_running_loop()
        left: dict[_Request, int] = {}  # texts without an answer
        while True:
            await self.arrived.wait()
            await self._gather()
            batch = self._take()
            found = await loop.run_in_executor(self.pool, self._computed, batch)
            for (request, at), answer in zip(batch, found, strict=True):
                request.answers[at] = answer
                left[request] = left.get(request, len(request.texts)) - 1
                if not left[request]:
                    del left[request]
                    _finish(request)

    async def _gather(self) -> None:
        """Wait until a batch is full, or its first text has waited long enough."""
        rest = self.queue[0][0].since + self.wait - time.monotonic()
        if rest > 0 and len(self.queue) < self.largest:
            self.full.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(rest):
                    await self.full.wait()

    def _take(self) -> list[tuple[_Request, int]]:
        """Take the next batch off the queue: texts for one model."""
        batch: list[tuple[_Request, int]] = []
        while self.queue and len(batch) < self.largest:
            if batch and self.queue[0][0].model is not batch[0][0].model:
                break
            batch.append(self.queue.popleft())
        if not self.queue:
            self.arrived.clear()
        return batch

    def _computed(self, batch: list[tuple[_Request, int]]) -> list[Any]:
        """Return an answer or an exception for each text. If the batch fails, each text is tried alone."""
        began = time.perf_counter()
        model = batch[0][0].model
        texts = [request.texts[at] for request, at in batch]
        pairs = [request.pairs[at] for request, at in batch if request.pairs is not None] or None
        try:
            answers: list[Any] = list(model(texts, pairs))
        except Exception as error:
            answers = [error] if len(batch) == 1 else [one for part in batch for one in self._computed([part])]
        else:
            self.seen(Batch(len(batch), time.perf_counter() - began))
        return answers


def _finish(request: _Request) -> None:
    """Give a request its answers, or the error of one of its texts. Its client may have gone."""
    if request.done.done():
        return
    error = next((one for one in request.answers if isinstance(one, Exception)), None)
    if error is None:
        request.done.set_result(request.answers)
    else:
        request.done.set_exception(error)
