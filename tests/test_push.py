"""kdbench-export --push against a local stand-in of the hub's API: what is sent, and what a refusal says."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from kdbench.cli import export as export_command
from kdbench.errors import Code, UserError
from kdbench.shipping.push import push
from kdbench.storage import files as store
from tests.refusals import refused

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own way to send
TOKEN = "hf_of_this_test_alone"
LARGE = (".onnx", ".safetensors")  # which the hub keeps outside git


@dataclass
class Hub:
    """What was sent to the stand-in, and with what it answers."""

    address: str = ""
    refuse: int | None = None  # status of the answer to a commit
    private: list[bool] = field(default_factory=list)
    tokens: set[str | None] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # SHA-256 -> content
    old: tuple[str, ...] = ("README.md", "onnx/model_fp16.onnx")  # in the repository before
    deleted: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    state = Hub()

    class Answer(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def body(self) -> bytes:
            if "chunked" in self.headers.get("Transfer-Encoding", ""):
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self) -> None:
            if "/tree/" in self.path:
                self.answer([{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in state.old])
            else:
                self.answer({"id": "org/name", "sha": "1" * 40, "siblings": [{"rfilename": one} for one in state.old]})

        def do_PUT(self) -> None:
            state.large[self.path.rpartition("/")[2]] = self.body()
            self.answer({})

        def do_POST(self) -> None:
            state.tokens.add(self.headers.get("Authorization"))
            raw = self.body()
            if self.path.endswith("/repos/create"):
                state.private.append(json.loads(raw).get("visibility") == "private")
                self.answer({"url": f"{state.address}/org/name", "id": "org/name", "name": "org/name"})
            elif "/preupload/" in self.path:
                files = [{"path": one["path"], "shouldIgnore": False,
                          "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular"}
                         for one in json.loads(raw)["files"]]  # fmt: skip
                self.answer({"files": files})
            elif self.path.endswith("/objects/batch"):
                objects = [one | {"actions": {"upload": {"href": f"{state.address}/store/{one['oid']}"}}}
                           for one in json.loads(raw)["objects"]]  # fmt: skip
                self.answer({"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path and state.refuse is not None:
                self.answer({"error": "You may not write here"}, state.refuse)
            elif "/commit/" in self.path:
                for line in map(json.loads, raw.splitlines()):
                    value = line["value"]
                    if line["key"] == "file":
                        state.files[value["path"]] = base64.b64decode(value["content"])
                    elif line["key"] == "lfsFile":
                        state.files[value["path"]] = state.large[value["oid"]]
                    elif line["key"] == "deletedFile":
                        state.deleted.append(value["path"])
                self.answer({"commitUrl": f"{state.address}/org/name/commit/{'2' * 40}", "commitOid": "2" * 40})
            else:  # the check of the card's header
                self.answer({"errors": [], "warnings": []})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    state.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()  # seconds until it sees its end
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", state.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", state.address)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder with files of an export, none of which is a model."""
    with store.filling(tmp_path / "export") as staged:
        (staged / "onnx").mkdir()
        (staged / "README.md").write_text("---\nlicense: mit\n---\n")
        (staged / "config.json").write_text("{}")
        (staged / "model.safetensors").write_bytes(b"weights" * 99)
        (staged / "onnx/model.onnx").write_bytes(b"graph" * 99)
    return tmp_path / "export"


def test_all_files_arrive_in_one_commit_with_the_clients_own_token(hub, export):
    assert push(export, "org/name", public=False) == f"{hub.address}/org/name"
    sent = {path.relative_to(export).as_posix(): path.read_bytes() for path in export.rglob("*") if path.is_file()}
    assert hub.files == sent and len(sent) == 5
    assert hub.private == [True] and hub.tokens - {None} == {f"Bearer {TOKEN}"}
    assert hub.deleted == ["onnx/model_fp16.onnx"]  # of an earlier upload
    push(export, "org/name", public=True)
    assert hub.private == [True, False]


@pytest.mark.parametrize(("status", "named"), [(403, "hf auth login"), (500, "HTTP 500")])
def test_a_refusal_is_one_line_and_loses_nothing(hub, export, status, named, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between attempts
    hub.refuse = status
    with refused(Code.REFUSED_UPLOAD, "org/name", named, "You may not write here", export, kind=UserError) as _:
        push(export, "org/name", public=False)
    assert hub.files == {}
    store.verify(export / store.MANIFEST)


def test_no_hub_is_one_line(hub, export, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", nobody)
    monkeypatch.setenv("HF_ENDPOINT", nobody)
    with refused(Code.REFUSED_UPLOAD, nobody, "repeat the command", kind=UserError):
        push(export, "org/name", public=False)


def test_a_changed_file_is_not_uploaded(hub, export):
    (export / "config.json").write_text("{ }")
    with pytest.raises(store.Damaged, match=r"config\.json"):
        push(export, "org/name", public=False)
    assert hub.private == [] and hub.files == {}


def test_what_cannot_be_uploaded_is_refused_before_anything_is_exported(hub, capsys, monkeypatch, tmp_path):
    for words, said in (
        (["a", "--push", "name"], "must be org/name"),
        (["a", "--push", "org/na me"], "must be org/name"),
        (["a", "b", "--push", "org/name"], "one RUN"),
        (["a", "--public"], "--public needs --push"),
    ):
        assert export_command.main(words) == 2
        out, err = capsys.readouterr()
        assert out == "" and said in err and "Traceback" not in err
    monkeypatch.delenv("HF_TOKEN")
    assert export_command.main(["a", "--push", "org/name"]) == 2
    assert "KD085 refused-upload" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        export_command.main(["a", "--push", "org/name", "--token", TOKEN])
