"""The explorer in the browser: its page, and the questions that the page asks.

`Site` answers requests, and `listen` puts a site behind a port of this machine, which nothing but
this machine can reach.
"""

from __future__ import annotations

import json
import secrets
import socketserver
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

import loopax
from loopax.errors import ConfigError
from loopax.recipes.vae.explorer import Explorer, RequestError
from loopax.recipes.vae.trained import TrainedVAE

HOST = "127.0.0.1"
NO_STORE = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Request:
    """A request as it came: header names in small letters."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """What goes back."""

    status: int
    kind: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Site:
    """The page and the questions it asks, for requests that name this machine as their host.

    A foreign page may point a name of its own at 127.0.0.1 and then read whatever answers to that
    name; so only this machine's names are answered to.
    """

    def __init__(self, explorer: Explorer, port: int) -> None:
        self.hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self.largest_question_bytes = explorer.largest_question_bytes
        self._routes: dict[str, tuple[str, Callable[..., Response]]] = {
            "/": ("GET", lambda _: _page()),
            "/model.json": ("GET", lambda _: _json(explorer.facts)),
            "/sample": ("POST", lambda question: _json(explorer.sample(question))),
            "/encode": ("POST", lambda question: _json(explorer.encode(question))),
            "/decode": (
                "POST",
                lambda question: Response(
                    200, "application/octet-stream", explorer.decode(question)
                ),
            ),
        }

    def answer(self, request: Request) -> Response:
        """The response to a request, whatever it is; a failure is told in the terminal only."""
        try:
            self.check(request)
            question = _question(request.body) if request.method == "POST" else None
            return self._routes[request.path][1](question)
        except RequestError as refused:
            return refusal(refused)
        except Exception:  # One question that fails must not end the server.
            traceback.print_exc()
            return refusal(
                RequestError(500, "this failed; the terminal of loopax explore says why")
            )

    def check(self, request: Request) -> None:
        """What can be told before the body is read.

        Raises:
            RequestError: it is from elsewhere, or asks for what there is not.
        """
        headers = request.headers
        if headers.get("host", "").lower() not in self.hosts:
            raise RequestError(403, f"the host must be one of {', '.join(sorted(self.hosts))}")
        if headers.get("origin", "").removeprefix("http://") not in {"", *self.hosts}:
            raise RequestError(403, "only the explorer's own page may ask")
        if request.path not in self._routes:
            raise RequestError(404, "there is no such page")
        method, _ = self._routes[request.path]
        if request.method != method:
            raise RequestError(405, f"only {method} is answered here", {"Allow": method})
        if method == "POST":
            self._check_body(headers)

    def _check_body(self, headers: Mapping[str, str]) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(415, "the question must be application/json")
        length = headers.get("content-length", "")
        if "transfer-encoding" in headers or not (length.isascii() and length.isdigit()):
            raise RequestError(411, "the question's length must be given")
        if len(length) > 12 or int(length) > self.largest_question_bytes:
            raise RequestError(413, f"a question has at most {self.largest_question_bytes} bytes")


def refusal(refused: RequestError) -> Response:
    """A refusal as one line of text."""
    return Response(refused.status, "text/plain", f"{refused}\n".encode(), refused.headers)


def _page() -> Response:
    nonce = secrets.token_urlsafe(16)
    page = resources.files(__package__).joinpath("explorer.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    body = page.replace("NONCE", nonce).encode()
    return Response(200, "text/html", body, {"Content-Security-Policy": policy})


def _json(content: Any) -> Response:
    return Response(200, "application/json", json.dumps(content, allow_nan=False).encode())


def _question(body: bytes) -> dict[str, Any]:
    try:
        question = json.loads(body)
    except (ValueError, RecursionError):
        raise RequestError(400, "the question is not JSON") from None
    if not isinstance(question, dict):
        raise RequestError(400, "the question must be a JSON object")
    return question


class Server(ThreadingHTTPServer):
    """Answers with what `site` says, on this machine only."""

    daemon_threads = True

    def server_bind(self) -> None:
        # Without the look-up of this machine's name, which can take seconds and serves nothing.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has left is no news."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()

    def explore(self, trained: TrainedVAE) -> None:
        """Gets ready to answer about a trained VAE."""
        self.site = Site(Explorer(trained), self.server_port)

    @cached_property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"


def listen(port: int = 0) -> Server:
    """A server on a port of this machine, on any free one for 0; `explore` makes it ready.

    Raises:
        ConfigError: it cannot be had.
    """
    if not 0 <= port < 2**16:
        raise ConfigError(f"port is {port}; it must be within 0 and {2**16 - 1}")
    try:
        return Server((HOST, port), _Handler)
    except OSError as error:
        raise ConfigError(
            f"port {port} cannot be had: {error.strerror}; leave it out for any free one"
        ) from error


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version = f"loopax/{loopax.__version__}"
    sys_version = ""
    timeout = 60
    # An answer goes out whole and at once: its second half would wait 40 ms for an acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers)
        try:
            self.server.site.check(request)
        except RequestError as refused:
            # What it may have sent is not read, so nothing more can be read after it.
            self.close_connection = True
            self._send(refusal(refused))
            return
        if self.command == "POST":
            body = self.rfile.read(int(headers["content-length"]))
            request = Request(self.command, self.path, headers, body)
        self._send(self.server.site.answer(request))

    # The standard library calls these names.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _answer  # noqa: N815

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", f"{response.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(response.body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        for name, value in {**NO_STORE, **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is not even a request gets its refusal as text too."""
        del explain
        self.close_connection = True
        # It may not have come so far as to say which version it speaks.
        self.request_version = self.protocol_version
        self._send(refusal(RequestError(code, (message or "this is no request").splitlines()[0])))

    def log_message(self, format: str, *args: Any) -> None:
        """A line for every move of a slider would help nobody."""
