"""Load on kdbench-serve: requests a second and latencies at 1, 8 and 64 clients, and what a restart and a reload lose.

    kdbench-export RUN --int8
    python scripts/bench/serve.py RUN/export/onnx/model_quantized.onnx

Each client sends one text, waits for the answer, and sends the next. All is on this machine (127.0.0.1), and ends after
SECONDS for each number of clients. The clients share the processors with the server. They are plain sockets, because an
HTTP library takes more time for a request than the server does. A request whose connection was closed without an answer
is sent again, and counted.
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import numpy as np

CLIENTS = (1, 8, 64)
SECONDS = 10.0
TEXT = "The flight was two hours late again, and nobody at the counter could say why."


def started(model: str, fd: int | None = None) -> tuple[subprocess.Popen[str], str]:
    """Start a server, on an open socket if `fd` is given, and return it with its address once it answers."""
    where = ["--port", "0"] if fd is None else ["--fd", str(fd)]
    begin = "import sys; from kdbench.cli.serve import main; sys.exit(main())"
    command = [sys.executable, "-c", begin, model, *where]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, pass_fds=[] if fd is None else [fd])
    assert server.stdout is not None
    return server, server.stdout.readline().strip()


async def load(address: str, clients: int, seconds: float) -> tuple[list[float], Counter[str]]:
    """Return the times of the answered requests in seconds, and how all of them ended."""
    host, port = address.removeprefix("http://").split(":")
    times: list[float] = []
    ended: Counter[str] = Counter()
    until = time.perf_counter() + seconds
    body = json.dumps({"texts": [TEXT]}).encode()
    request = b"POST /classify HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    async def one() -> None:
        connection = await asyncio.open_connection(host, int(port))
        while (began := time.perf_counter()) < until:
            while (head := await _answered(*connection, request)) is None:  # closed before an answer: send again
                ended["sent again"] += 1
                connection[1].close()
                connection = await asyncio.open_connection(host, int(port))
            status = head.split(b" ", 2)[1].decode()
            ended[status] += 1
            if status == "200":
                times.append(time.perf_counter() - began)
            if b"\r\nconnection: close\r\n" in head:
                connection[1].close()
                connection = await asyncio.open_connection(host, int(port))
        connection[1].close()

    await asyncio.wait_for(asyncio.gather(*(one() for _ in range(clients))), seconds + 60)
    return times, ended


async def _answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes | None:
    """Send a request and read its answer. Return its head; None if the connection was closed without an answer."""
    try:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.split(b":")[1]))
    except (ConnectionError, asyncio.IncompleteReadError):
        return None
    return head


async def steady(model: str) -> None:
    server, address = started(model)
    try:
        await load(address, 1, 1.0)  # warms up
        for clients in CLIENTS:
            times, ended = await load(address, clients, SECONDS)
            p50, p99 = 1000 * np.percentile(times, [50, 99])
            rate = len(times) / SECONDS
            print(f"{clients:3} clients: {rate:7.0f} requests/s, p50 {p50:6.1f} ms, p99 {p99:6.1f} ms, {dict(ended)}")
        during = asyncio.create_task(load(address, 8, 6.0))
        for _ in range(2):
            await asyncio.sleep(2)
            server.send_signal(signal.SIGHUP)
        _, ended = await during
        print(f"8 clients, the model opened again twice (SIGHUP): {dict(ended)}")
    finally:
        server.terminate()
        server.wait()


async def restarted(model: str) -> None:
    """Replace the process behind one socket, as systemd does with a socket unit: connections wait in its queue."""
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        listener.set_inheritable(True)
        server, address = started(model, listener.fileno())
        during = asyncio.create_task(load(address, 8, 12.0))
        await asyncio.sleep(2)
        server.terminate()
        await asyncio.to_thread(server.wait)
        server, _ = await asyncio.to_thread(started, model, listener.fileno())
        _, ended = await during
        print(f"8 clients, the process replaced behind its socket: {dict(ended)}")
        server.terminate()
        server.wait()


def main() -> None:
    asyncio.run(steady(sys.argv[1]))
    asyncio.run(restarted(sys.argv[1]))


if __name__ == "__main__":
    main()
