"""The explorer in the browser: its page, and the questions that the page asks."""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from loopax.errors import ConfigError
from loopax.recipes.vae.explorer import Explorer

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Answers for an `explorer`, which is set before `serve_forever`, to this machine only."""

    explorer: Explorer
    daemon_threads = True

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        return f"http://{HOST}:{self.server_port}/"

    def serve_until_interrupted(self) -> None:
        """Answers until Ctrl-C comes.

        Not until KeyboardInterrupt: Python drops an exception that a signal raises inside of a
        finaliser or of a callback of the garbage collection, and the server would go on.
        """

        def end(*_: object) -> None:
            threading.Thread(target=self.shutdown).start()  # it waits for this thread

        before = signal.signal(signal.SIGINT, end)
        try:
            self.serve_forever()
        finally:
            signal.signal(signal.SIGINT, before)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that has left is no news."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


def listen(port: int = 0) -> Server:
    """A server on a port of this machine, on any free one for 0.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        return Server((HOST, port), _Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"port {port} cannot be had: {reason}; leave it out for any free one"
        ) from error


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    # An answer goes out whole and at once: its second half would wait 40 ms for an acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if not self._is_for_this_machine():
            return
        if self.path == "/":
            page = resources.files(__package__) / "explorer.html"
            self._send(200, "text/html; charset=utf-8", page.read_bytes())
        elif self.path == "/model.json":
            self._send_json(self.server.explorer.facts)
        else:
            self._refuse(404, "there is no such page")

    def do_POST(self) -> None:
        if not self._is_for_this_machine():
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        explorer = self.server.explorer
        try:
            question = json.loads(body)
            if self.path == "/decode":
                self._send(200, "application/octet-stream", explorer.decode(**question))
            elif self.path == "/encode":
                self._send_json(explorer.encode(**question))
            elif self.path == "/sample":
                self._send_json(explorer.sample(**question))
            else:
                self._refuse(404, "there is no such question")
        except OSError:
            raise
        except Exception:  # One question that fails must not end the server.
            traceback.print_exc()
            self._refuse(500, "this failed; the terminal of loopax explore says why")

    def _is_for_this_machine(self) -> bool:
        """Refuses what names another host.

        A foreign page may point a name of its own at 127.0.0.1, and would then read the answers.
        """
        port = self.server.server_port
        if self.headers.get("host", "").lower() in {f"{HOST}:{port}", f"localhost:{port}"}:
            return True
        self.close_connection = True  # What else it may have sent is not read.
        self._refuse(403, f"the host must be {HOST}:{port}")
        return False

    def _send_json(self, content: Any) -> None:
        self._send(200, "application/json", json.dumps(content, allow_nan=False).encode())

    def _refuse(self, status: int, reason: str) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{reason}\n".encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """A line for every move of a slider would help nobody."""
