"""What several rooms' tests need: real data, faults on the way to S3, small finished nights to publish."""

import http.client
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from tasks.config import NightlyConfig
from tasks.contracts import (
    Check,
    Evaluation,
    Fitted,
    Measured,
    ModelScore,
    Part,
    Published,
    Recommendations,
    Run,
    Verdict,
)
from tasks.publish.night import publish_night
from tasks.run import file_sha256
from tasks.store import open_store


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project, not part of it."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data is not at {folder}; everything else is tested without it")
    return folder


CONDITIONS = ("if-none-match", "if-match")


@dataclass
class Request:
    method: str
    path: str
    conditional: bool
    number: int  # among the conditional PUTs, counted from 1, a repeated one too; 0: another request


@dataclass
class FaultProxy:
    """Forwards to the S3 server, one request at a time, and breaks what `fault` says.

    A fault is "strip conditions", "lose answer" (the server has done it, the client never hears), "flip a byte",
    "cut answer", or an HTTP status with an S3 code, as in "503 SlowDown".
    """

    server_url: str
    fault: Callable[[Request], str | None] = lambda request: None
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
            request = Request(self.command, self.path, conditional, number)
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
        if fault == "lose answer":
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


@pytest.fixture
def fault_proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """In front of the S3 server; stores opened in the test talk through it."""
    proxy = FaultProxy(s3_server)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": proxy}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


NUM_USERS = 6  # in two files of three
K = 4


@dataclass(frozen=True)
class Night:
    """A finished night of 6 users and 4 items for each. `mark` is every row's score: it tells nights apart."""

    run: Run
    fitted: Fitted
    evaluation: Evaluation
    recommendations: Recommendations
    verdict: Verdict

    def publish(self, *, attempt: str = "") -> Published:
        now = datetime(2026, 11, 24, 3, 12, 5, tzinfo=UTC)
        attempt = attempt or f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        parts = (self.run, self.fitted, self.evaluation, self.recommendations, self.verdict)
        return publish_night(open_store(self.run.store_uri), *parts, now=now, attempt=attempt)


@pytest.fixture
def make_night(tmp_path: Path) -> Callable[..., Night]:
    def make(store_uri: str, *, as_of: date = date(2026, 11, 23), mark: float = 1.0, **changes: object) -> Night:
        folder = tmp_path / f"finished-{secrets.token_hex(4)}"
        folder.mkdir()
        parts = tuple(_write_part(folder, number, mark) for number in (0, 1))
        run_key = str(changes.get("run_key", f"key of {as_of} and {mark}"))
        run = Run(
            store_uri=store_uri,
            as_of=as_of,
            run_key=run_key,
            input_fingerprint="fingerprint",
            code_version="code",
            config=NightlyConfig(),
            force=bool(changes.get("force", False)),
            work_folder=str(folder),
            inputs_path="",
            num_files=3,
            num_input_bytes=12345,
        )
        fitted = Fitted("", "", "", "f" * 64, 3, 0.2, 1.0, 1.0, 1, "cpu", 640)
        passed = bool(changes.get("passed", True))
        verdict = Verdict(passed, (Check("popularity", passed, "recall 0.30 against 0.20"),))
        recommendations = Recommendations(
            folder=str(folder),
            parts=parts,
            fingerprint="r",
            k=K,
            users=NUM_USERS,
            rows=NUM_USERS * K,
            rows_by_tier={"model": NUM_USERS * K},
            users_without_a_trained_row=0,
            short_lists=0,
            catalogue=9,
        )
        return Night(run, fitted, _evaluation(), recommendations, verdict)

    return make


def _write_part(folder: Path, number: int, mark: float) -> Part:
    users = [user for user in range(1 + 3 * number, 4 + 3 * number) for _ in range(K)]
    rows = pl.DataFrame(
        {
            "user_id": pl.Series(users, dtype=pl.Int64),
            "rank": pl.Series(list(range(1, K + 1)) * 3, dtype=pl.Int32),
            "item_id": [f"item {user}/{row}" for row, user in enumerate(users)],
            "score": pl.Series([mark] * len(users), dtype=pl.Float32),
            "tier": "model",
        }
    )
    path = folder / f"part-{number:05d}.parquet"
    rows.write_parquet(path)
    return Part(str(path), rows.height, 3, path.stat().st_size, file_sha256(path))


def _evaluation() -> Evaluation:
    measured = Measured(0.3, 0.25, 0.35)
    scores = tuple(
        ModelScore(model, part, NUM_USERS, measured, Measured(float("nan"), 0.0, 0.0), 0.5)
        for model in ("lightgcn", "popularity")
        for part in ("validation", "test")
    )
    return Evaluation("e", 20, scores, {"recall": Measured(0.1, 0.05, 0.15)}, {}, {})
