"""A proxy in front of the S3 server that breaks what a test asks it to break."""

import http.client
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONDITIONS = ("if-none-match", "if-match")
STALLED_S = 2.0


@dataclass
class Request:
    method: str
    path: str
    conditional: bool
    number: int  # among the conditional PUTs, counted from 1, a repeated one too; 0: another request
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FaultProxy:
    """Forwards to the S3 server, one request at a time, and breaks what `fault` says.

    A fault is "strip conditions", "lose answer" (the server has done it, the client never hears), "flip a byte",
    "cut answer", "stall" (no answer for STALLED_S, then a closed connection), or an HTTP status with an S3 code, as in
    "503 SlowDown".
    """

    server_url: str
    fault: Callable[[Request], str | None] = lambda request: None
    done: Callable[[Request], None] = lambda request: None  # told once the server has answered, before the client is
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def conditional_puts(self) -> list[Request]:
        return [request for request in self.requests if request.conditional]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def answer(self) -> None:
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = dict(self.headers.items())
        assert "Transfer-Encoding" not in headers, "the proxy does not know chunked bodies"
        conditional = self.command == "PUT" and any(name.lower() in CONDITIONS for name in headers)
        with proxy.lock:
            number = len(proxy.conditional_puts()) + 1 if conditional else 0
            request = Request(self.command, self.path, conditional, number, headers)
            proxy.requests.append(request)
            fault = proxy.fault(request) or ""
            if re.match(r"\d{3}", fault):
                status, code = int(fault[:3]), fault[4:]
                answer = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
                self._send(status, {"Content-Type": "application/xml"}, answer)
                return
            if fault == "strip conditions":
                headers = {name: value for name, value in headers.items() if name.lower() not in CONDITIONS}
            if fault == "flip a byte":
                body = body[:-1] + bytes([body[-1] ^ 1])
            status, answer_headers, answer = self._forward(headers, body)
            proxy.done(request)
        if fault == "stall":
            time.sleep(STALLED_S)
        if fault in ("lose answer", "stall"):
            self.close_connection = True
            return
        if fault == "cut answer":
            self.close_connection = True
            half = answer[: len(answer) // 2]
            answer_headers["Content-Length"] = str(len(answer))
            self._send(status, answer_headers, half, cut=True)
            return
        self._send(status, answer_headers, answer)

    def _forward(self, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self.proxy.server_url.removeprefix("http://"), timeout=30)
        try:
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            upstream.close()

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" or cut else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


for _method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
    setattr(_Handler, f"do_{_method}", _Handler.answer)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed in the middle is nothing to print."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextmanager
def running(proxy: FaultProxy) -> Iterator[None]:
    """Sets the proxy's url."""
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
