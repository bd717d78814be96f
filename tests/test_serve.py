"""kdbench-serve: the answers are kdbench-predict's; what is refused and how; nothing accepted is lost."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import kdbench
from kdbench.cli import serve
from kdbench.errors import Code, UserError
from kdbench.inference import connections, served, server
from kdbench.inference.batching import Batcher
from kdbench.inference.calibration import Calibration
from kdbench.inference.served import open_model
from kdbench.inference.server import Limits, Refused, Server, Service, read_request
from kdbench.storage import files as store
from tests.refusals import refused

TEXTS = ["apple near the old pear", "a big lead", "river of gold is one lake", "zebra"]
LIMITS = Limits(batch=8, wait=0.0, texts=16, characters=100, body=5000, waiting=64, connections=100)


@pytest.fixture
def export(configure: Any, execute: Any, shared_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """`export("method=logit_kd")` -> a copy of a finished run with its graph, which is made once."""

    def make(method: str) -> Path:
        places = [f"{key}={shared_folder / 'served' / key}" for key in ("outputs", "cache_dir")]
        run = execute(configure("student.layers=1", method, "export.onnx=true", *places))["folder"]
        return Path(shutil.copytree(run, tmp_path / f"copy{len(list(tmp_path.iterdir()))}"))

    return make


@pytest.mark.parametrize("method", ["method=logit_kd", "method=tfidf"])
def test_answers_are_those_of_the_classifier(export: Any, method: str) -> None:
    run = export(method)
    model, expected = open_model(run, 1), kdbench.load_classifier(run / "export/onnx")(TEXTS)
    for answer, other in zip(model(TEXTS), expected, strict=True):
        assert answer["label"] == other.label
        name = "probabilities" if "probabilities" in answer else "scores"
        assert answer[name] == pytest.approx(getattr(other, name), abs=1e-5)
    assert [open_model(path, 1).digest for path in (run / "export", run / "export/onnx/model.onnx")] == [
        model.digest
    ] * 2


def test_temperature_and_thresholds_change_the_answers(export: Any) -> None:
    model = open_model(export("method=logit_kd"), 1)
    (cold,), (warm,) = model(TEXTS[:1]), replace(model, calibration=Calibration(1000.0))(TEXTS[:1])
    assert max(warm["probabilities"].values()) == pytest.approx(1 / 3, abs=0.01)
    assert max(cold["probabilities"].values()) > max(warm["probabilities"].values())
    several = replace(model, task="multi_label")
    for threshold, labels in ((0.0, model.labels), (1.0, [])):
        judged = replace(several, calibration=Calibration(1.0, dict.fromkeys(model.labels, threshold)))
        assert judged(TEXTS[:1])[0]["labels"] == labels


def test_what_cannot_be_served_is_refused(export: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with refused(Code.NOT_A_RUN, "kdbench-export", kind=UserError):
        open_model(tmp_path, 1)
    run = export("method=logit_kd")
    graph = run / "export/onnx/model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + b"x")
    assert serve.main([str(run)]) == 1
    assert "KD073 damaged-file" in capsys.readouterr().err
    graph.unlink()
    with refused(Code.NOT_A_RUN, "model.onnx", "--onnx", kind=UserError):
        open_model(run, 1)
    assert serve.main([str(run)]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and "model.onnx" in error and "Traceback" not in error
    assert serve.main([str(tmp_path / "nowhere")]) == 2
    assert "KD042" in capsys.readouterr().err


def test_a_tagger_is_not_served(export: Any) -> None:
    run = export("method=logit_kd")
    settings = run / "export/config.yaml"
    settings.write_text(settings.read_text().replace("task: classification", "task: token_classification"))
    store.write_record(run / "export/MANIFEST.json", {}, _files(run / "export"))
    with refused(Code.UNSUPPORTED_TASK, "token_classification", kind=UserError):
        open_model(run, 1)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != store.MANIFEST]


def test_an_export_that_is_replaced_while_it_is_read_is_never_half_read(
    export: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = export("method=logit_kd")
    old = open_model(run, 1)
    other = run.with_name("new")
    shutil.copytree(run / "export", other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"id2label": {"0": "x", "1": "y", "2": "z"}}))
    store.write_record(other / "MANIFEST.json", {}, _files(other))
    read = store.contents

    def replaced(path: Path, names: list[str], optional: list[str] = ()) -> dict[str, bytes]:  # type: ignore[assignment]
        found = read(path, names[:2], optional)  # the first files are the old ones
        if other.is_dir():
            (run / "export").rename(run / "before")
            other.rename(run / "export")
        return found | read(path, names, optional)

    monkeypatch.setattr(served, "contents", lambda *given, **more: replaced(*given, **more))
    monkeypatch.setattr(served, "PAUSE", 0.0)
    new = open_model(run, 1)
    assert (old.labels, new.labels) == (["fruit", "metal", "water"], ["x", "y", "z"]) and old.digest != new.digest


def test_content_is_what_was_checked(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    store.write_record(tmp_path / store.MANIFEST, {}, [tmp_path / "a", tmp_path / "b"])
    assert store.contents(tmp_path / store.MANIFEST, ["a"], ["b", "c"]) == {"a": b"a", "b": b"b"}
    for change in (lambda: (tmp_path / "a").write_bytes(b"c"), (tmp_path / "a").unlink):
        change()
        with pytest.raises(store.Damaged):
            store.contents(tmp_path / store.MANIFEST, ["a"])
    with pytest.raises(store.Damaged):
        store.contents(tmp_path / store.MANIFEST, ["c"])


class Fake:
    """A model whose answer to a text is its length, after a while."""

    task, labels, path = "classification", ["a"], Path("model.onnx")

    def __init__(self, digest: str = "one", seconds: float = 0.0, pairs: bool = False) -> None:
        self.digest, self.seconds, self.pairs = digest, seconds, pairs
        self.batches: list[int] = []

    def __call__(self, texts: list[str], pairs: list[str] | None) -> list[Any]:
        self.batches.append(len(texts))
        time.sleep(self.seconds)
        if "bad" in texts:
            raise RuntimeError("bad")
        return [{"label": self.digest, "size": len(text)} for text in texts]


@asynccontextmanager
async def serving(model: Any, **changes: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Server]]:
    """A server in this process, and a client of it."""
    ready = asyncio.Event()
    service = Service(lambda: model, replace(LIMITS, **changes))
    made = Server(service, ready.set)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    running = asyncio.create_task(made.serve([listener]))
    await ready.wait()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=30, limits=limits, trust_env=False
        ) as client:
            yield client, made
    finally:  # without the client's open connections, for which a stop waits
        made.should_exit = True
        await running


def ask(client: httpx.AsyncClient, *texts: Any) -> Any:
    return client.post("/classify", json={"texts": list(texts)})


def test_requests_are_answered_in_batches_and_counted() -> None:
    model = Fake(seconds=0.02)

    async def do() -> None:
        async with serving(model) as (client, _):
            found = await asyncio.gather(*(ask(client, "x" * size, "y", " ") for size in range(1, 31)))
            for size, one in enumerate(found, 1):
                assert one.status_code == 200
                expected = [{"label": "one", "size": size}, {"label": "one", "size": 1}, None]  # a blank text
                assert one.json() == {"model": "one", "answers": expected}
            assert (await ask(client)).json()["answers"] == []
            assert sum(model.batches) == 60 and max(model.batches) == 8 and len(model.batches) < 30
            health = (await client.get("/health")).json()
            assert (health["status"], health["model"], health["labels"]) == ("ok", "one", ["a"])
            figures = (await client.get("/metrics")).text
            assert 'kdbench_requests_total{status="200"} 31.0' in figures and "kdbench_texts_total 60.0" in figures
            assert (
                "kdbench_waiting_texts 0.0" in figures
                and 'kdbench_model{digest="one",path="model.onnx"} 1.0' in figures
            )

    asyncio.run(do())


def test_an_idle_model_waits_for_a_fuller_batch() -> None:
    model = Fake()

    async def do() -> None:
        async with serving(model, wait=0.3) as (client, _):
            await asyncio.gather(*(ask(client, "x") for _ in range(4)))
            began = time.monotonic()
            await asyncio.gather(*(ask(client, "x") for _ in range(8)))  # full: it does not wait
            assert time.monotonic() - began < 0.25

    asyncio.run(do())
    assert model.batches == [4, 8]


BAD = [
    (b"", 400, "JSON"),
    (b'{"texts": ["a"', 400, "JSON"),
    (b"\xff\xfe", 400, "JSON"),
    (b"[" * 4000, 400, "JSON"),
    (b"[]", 422, "texts"),
    (b'{"text": "a"}', 422, "texts"),
    (b'{"texts": ["a"], "pairs": ["b"]}', 422, "single texts"),
    (b'{"texts": "a"}', 422, "list"),
    (b'{"texts": ["a", 1]}', 422, "texts[1]"),
    (b'{"texts": ["\\ud800"]}', 422, "texts[0]"),
    (json.dumps({"texts": ["a"] * 17}).encode(), 413, "17"),
    (json.dumps({"texts": ["a", "x" * 101]}).encode(), 413, "texts[1] has 101"),
    (b'{"texts": ["' + b"x" * 10_000_000 + b'"]}', 413, "5,000 bytes"),
]  # fmt: skip


def test_bad_input_gets_a_clear_answer_and_the_server_goes_on() -> None:
    async def parts(body: bytes) -> AsyncIterator[bytes]:  # without a length
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    async def do() -> None:
        async with serving(Fake()) as (client, _):
            for body, status, named in BAD:
                answer = await client.post("/classify", content=body)
                assert answer.status_code == status and named in answer.json()["error"], (body[:40], answer.text)
                assert (await ask(client, "x")).status_code == 200
                answer = await client.post("/classify", content=parts(body))
                assert answer.status_code == status, (body[:40], answer.text)

    asyncio.run(do())


def test_an_answer_does_not_wait_for_the_client_to_confirm_its_head() -> None:
    async def do() -> None:
        async with serving(Fake()) as (client, made):
            await ask(client, "x")
            (connection,) = made.server_state.connections
            accepted = connection.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    asyncio.run(do())


def test_other_paths_say_what_there_is() -> None:
    async def do() -> None:
        async with serving(Fake()) as (client, _):
            for method, path, status in (("GET", "/", 404), ("GET", "/classify", 405), ("GET", "/docs", 404)):
                answer = await client.request(method, path)
                assert answer.status_code == status and "POST /classify" in answer.json()["error"]

    asyncio.run(do())


def test_pairs() -> None:
    assert read_request(b'{"pairs": ["b"], "texts": ["a"]}', True, LIMITS) == (["a"], ["b"])
    for body in (b'{"texts": ["a"]}', b'{"texts": ["a"], "pairs": []}', b'{"texts": ["a"], "pairs": [1]}'):
        with pytest.raises(Refused) as caught:
            read_request(body, True, LIMITS)
        assert caught.value.status == 422

    async def do() -> None:
        async with serving(Fake(pairs=True)) as (client, _):
            answer = await client.post("/classify", json={"texts": ["", ""], "pairs": ["b", ""]})
            assert answer.json()["answers"] == [{"label": "one", "size": 0}, None]

    asyncio.run(do())


def test_a_text_on_which_the_model_fails_does_not_fail_its_neighbours() -> None:
    async def do() -> None:
        async with serving(Fake(), wait=0.2) as (client, _):
            bad, good = await asyncio.gather(ask(client, "x", "bad"), ask(client, "good"))
            assert (bad.status_code, good.status_code) == (500, 200) and "log" in bad.json()["error"]

    asyncio.run(do())


def test_a_request_is_answered_by_one_model() -> None:
    old, new = Fake("old", 0.02), Fake("new")

    async def do() -> None:
        batcher = Batcher(old, 4, 0.0, 100, lambda batch: None)  # type: ignore[arg-type]
        running = asyncio.create_task(batcher.run())
        first = asyncio.create_task(batcher.answer(["x"] * 10, None))
        await asyncio.sleep(0)
        batcher.model = new  # type: ignore[assignment]
        second = asyncio.create_task(batcher.answer(["x"] * 10, None))  # while texts of the first still wait
        (model, answers), (later, others) = await asyncio.gather(first, second)
        assert (model.digest, later.digest) == ("old", "new")
        assert {one["label"] for one in answers} == {"old"} and {one["label"] for one in others} == {"new"}
        running.cancel()

    asyncio.run(do())
    assert old.batches == new.batches == [4, 4, 2]


def test_too_many_texts_in_the_queue_are_refused() -> None:
    async def do() -> None:
        async with serving(Fake(seconds=0.1), waiting=20) as (client, _):
            found = await asyncio.gather(*(ask(client, *["x"] * 10) for _ in range(8)))
            statuses = [one.status_code for one in found]
            assert statuses.count(200) >= 2 and statuses.count(503) >= 2 and len({*statuses}) == 2
            assert all(one.headers["retry-after"] == "1" for one in found if one.status_code == 503)
            assert (await ask(client, "x")).status_code == 200

    asyncio.run(do())


def test_a_new_model_is_used_after_sighup_and_a_broken_one_is_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "GRACE", 0.1)
    models: list[Any] = [Fake("old")]

    def load() -> Any:
        if isinstance(models[-1], Exception):
            raise models[-1]
        return models[-1]

    async def until(client: httpx.AsyncClient, words: str) -> None:
        for _ in range(200):
            if words in (await client.get("/metrics")).text:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(words)

    async def do() -> None:
        ready = asyncio.Event()
        made = Server(Service(load, LIMITS), ready.set)
        listener = socket.create_server(("127.0.0.1", 0))
        running = asyncio.create_task(made.serve([listener]))
        await ready.wait()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            models.append(Fake("new"))
            os.kill(os.getpid(), signal.SIGHUP)
            await until(client, 'kdbench_reloads_total{result="done"} 1.0')
            assert (await ask(client, "x")).json()["model"] == "new"
            models.append(UserError(Code.DAMAGED_FILE, "half of it"))
            os.kill(os.getpid(), signal.SIGHUP)
            await until(client, 'kdbench_reloads_total{result="failed"} 1.0')
            assert (await ask(client, "x")).json()["model"] == "new"
            os.kill(os.getpid(), signal.SIGTERM)
            await running

    asyncio.run(do())
    assert "half of it" in caplog.text


def test_what_was_accepted_before_a_stop_is_answered() -> None:
    async def do() -> None:
        async with serving(Fake(seconds=0.3)) as (client, made):
            asked = [asyncio.create_task(ask(client, "x")) for _ in range(20)]
            await asyncio.sleep(0.15)
            made.should_exit = True
            found = await asyncio.gather(*asked)
            assert [one.status_code for one in found] == [200] * 20
            assert {one.headers.get("connection") for one in found[8:]} == {"close"}  # after the first batch

    asyncio.run(do())


async def raw(port: int | None, sent: bytes) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await reader.read()
    finally:
        writer.close()


def test_connections_beyond_the_limit_are_refused_and_silent_ones_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD", 1.0)
    body = b'{"texts": ["x"]}'
    request = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    async def do() -> None:
        async with serving(Fake(), connections=20) as (client, _):
            port = client.base_url.port
            assert (await ask(client, "x")).status_code == 200  # this connection stays
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(150)]
            refused_ = await raw(port, request)
            assert refused_.startswith(b"HTTP/1.1 503") and b"too many connections" in refused_
            assert (await ask(client, "x")).status_code == 200
            slow = asyncio.create_task(raw(port, b"POST /classify HTTP/1.1\r\nhost"))
            await asyncio.wait_for(slow, 10)  # the head never comes
            for reader, writer in silent:
                assert await asyncio.wait_for(reader.read(), 10) == b""
                writer.close()
            async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as other:
                assert (await ask(other, "x")).status_code == 200  # room again

    asyncio.run(do())


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.2)

    async def do() -> None:
        async with serving(Fake()) as (client, _):
            head = b"POST /classify HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{"
            assert (await asyncio.wait_for(raw(client.base_url.port, head), 10)).startswith(b"HTTP/1.1 408")

    asyncio.run(do())


RUN = """
import sys
unpickled = []
sys.addaudithook(lambda event, args: unpickled.append(args) if event == "pickle.find_class" else None)
from kdbench.cli.serve import main
code = main(sys.argv[1:])
print("torch" in sys.modules, "transformers" in sys.modules, unpickled)
sys.exit(code)
"""


def test_the_command(export: Any) -> None:
    """From start to SIGTERM, without torch and without a pickle."""
    run = export("method=logit_kd")
    words = [sys.executable, "-c", RUN, str(run), "--port", "0", "--threads", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), process.stderr.read()
            answer = httpx.post(f"{url}/classify", json={"texts": TEXTS}, timeout=60, trust_env=False).json()
            assert serve.main([str(run), "--port", url.rpartition(":")[2]]) == 2  # another has the port
        finally:
            process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (0, "False False []\n", "")
    expected = kdbench.load_classifier(run)(TEXTS)
    assert [one["label"] for one in answer["answers"]] == [one.label for one in expected]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else True)
    assert serve.main(["anything"]) == 2
    assert "KD028 not-installed  kdbench-serve needs uvicorn: pip install 'kdbench[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--port", "70000"], ["--port", "x"], ["--max-batch", "0"], ["--fd", "1"]])
def test_numbers_out_of_range_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        serve.main(["model", *words])
    assert "must be a whole number from" in capsys.readouterr().err
