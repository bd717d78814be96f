"""kdbench-serve: answer texts over HTTP. The address goes to stdout, messages go to stderr."""

import argparse
import logging
import socket
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from kdbench.console import command, obey
from kdbench.errors import Code, UserError

EPILOG = """\
MODEL is a finished run that was exported with `kdbench-export RUN --onnx`, its export, or one of the export's graphs
(.../export/onnx/model_quantized.onnx). It needs `pip install 'kdbench[serve]'`, and runs without torch.

  POST /classify {"texts": ["Oil prices rose.", "Wheat fell."]}   answers, in the order of the texts
  GET  /health                                                    200 if requests are answered; the model and its labels
  GET  /metrics                                                   figures for Prometheus

Answers have the fields of kdbench-predict --json. A request that is refused gets {"error": "..."}: 400 and 422 for what
cannot be read, 408 if it does not arrive, 413 if it is too large, 503 if the server is busy.

SIGTERM finishes the requests that were accepted. SIGHUP opens MODEL again: after a new export, requests get the new
model, without a restart. There is no password: only this machine can connect unless --host says otherwise.

examples:
  kdbench-serve outputs/reuters_r8/theseus/bert_3l-1a2b3c4d/seed0
  kdbench-serve outputs/.../seed0/export/onnx/model_quantized.onnx --port 0

exit codes: 0 stopped by a signal; 1 a stored file is damaged; 2 the command is wrong, there is no such model, or the
port cannot be used. Error messages begin with a code: docs/errors.md
"""


def _whole(least: int, most: int) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least:,} to {most:,}")
        return int(text)

    return read


def parser() -> argparse.ArgumentParser:
    made = command("kdbench-serve", "Answer texts over HTTP with the ONNX graph of an exported model.", EPILOG)
    add = made.add_argument
    add("model", type=Path, metavar="MODEL", help="an exported run, its export, or a graph of the export")
    add("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    add("--port", type=_whole(0, 65535), default=8000, help="default: 8000; 0 takes a free one and prints it")
    add("--fd", type=_whole(3, 2**20), help="serve on this open socket instead, as systemd passes it (3)")
    add("--threads", type=_whole(1, 1024), help="of the model; default: the processors of this process")
    add("--max-batch", type=_whole(1, 4096), default=32, help="texts that are answered at once; default: 32")
    add("--max-wait", type=_whole(0, 10_000), default=2, metavar="MS", help="for a fuller batch; default: 2 ms")
    add("--max-texts", type=_whole(1, 10**6), default=256, help="of a request; default: 256")
    add("--max-characters", type=_whole(1, 10**9), default=20_000, help="of a text; default: 20,000")
    add("--max-bytes", type=_whole(1, 10**9), default=2_000_000, help="of a request; default: 2,000,000")
    add("--max-waiting", type=_whole(1, 10**7), default=4096, help="texts that wait for the model; default: 4,096")
    add("--max-connections", type=_whole(1, 10**6), default=1000, help="at a time; default: 1,000")
    return made


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal. Return the exit code."""
    return obey(parser(), argv, _serve)


def _serve(options: argparse.Namespace) -> int:
    if absent := [name for name in ("fastapi", "prometheus_client", "uvicorn") if find_spec(name) is None]:
        raise UserError(Code.NOT_INSTALLED, f"kdbench-serve needs {absent[0]}: pip install 'kdbench[serve]'")
    if not options.model.exists():
        raise UserError(Code.MISSING_FILE, f"{options.model}: no such file or folder")
    from kdbench.inference.quiet import processors
    from kdbench.inference.served import open_model
    from kdbench.inference.server import Limits, Server, Service

    logging.basicConfig(format="kdbench-serve: %(message)s", level=logging.WARNING)
    threads = options.threads or len(processors())
    limits = Limits(
        batch=options.max_batch,
        wait=options.max_wait / 1000,
        texts=options.max_texts,
        characters=options.max_characters,
        body=options.max_bytes,
        waiting=max(options.max_waiting, options.max_texts),
        connections=options.max_connections,
    )
    listener = _listener(options)
    with listener:
        service = Service(lambda: open_model(options.model, threads), limits)
        if options.host not in ("127.0.0.1", "::1", "localhost") and options.fd is None:
            print(
                f"kdbench-serve: whoever reaches {options.host} can use this server: it has no password and no TLS",
                file=sys.stderr,
            )
        Server(service, lambda: print(_address(listener), flush=True)).run([listener])
    return 0


def _listener(options: argparse.Namespace) -> socket.socket:
    """Return the socket to serve on. Raises UserError if it cannot be used."""
    try:
        if options.fd is not None:
            return socket.socket(fileno=options.fd)
        family, _, _, _, address = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((str(address[0]), options.port), family=family)
    except OSError as error:
        what = f"--fd {options.fd}" if options.fd is not None else f"{options.host}:{options.port}"
        raise UserError(
            Code.UNUSABLE_ADDRESS, f"{what} cannot be used: {error.strerror or error}. Choose another --port or --host"
        ) from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
