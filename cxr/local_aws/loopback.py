"""A small HTTP server on loopback, in its own threads. The Runtime API and the function host use it.

Every web page that is open in a browser here can send requests to loopback. Requests that may come from a web
page are refused: otherwise a page could read X-rays, take events and answer for functions.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REFUSAL = b'{"message": "Local AWS answers programs on this machine only, at 127.0.0.1, and no web page."}'
_HOSTS = ("127.0.0.1", "localhost")  # no other name: a page's owner can point one here by DNS
_BROWSER_HEADERS = {"origin", "sec-fetch-site"}  # a page cannot omit them (Fetch); no AWS SDK sends them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer with a JSON body."""

    status: int
    body: bytes = b"null"
    headers: Mapping[str, str] = field(default_factory=dict)


def is_from_a_program(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether an HTTP request comes from a program: no web page can have sent it."""
    found = [(name.lower(), value) for name, value in headers]
    hosts = [value.partition(":")[0] for name, value in found if name == "host"]
    # Any port: a proxy before local AWS passes on its own.
    return len(hosts) == 1 and hosts[0] in _HOSTS and _BROWSER_HEADERS.isdisjoint(name for name, _ in found)


Respond = Callable[[str, Message, bytes], Reply]  # (path, headers, body)


class LoopbackServer(ThreadingHTTPServer):
    """Answers GET and POST by `respond` at 127.0.0.1, on a free port, until `close`."""

    daemon_threads = True

    def __init__(self, respond: Respond) -> None:
        super().__init__(("127.0.0.1", 0), _RequestHandler)
        self.respond = respond
        self.address = f"127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Log the error of a failed request instead of printing it."""
        logger.exception("a request failed")

    def close(self) -> None:
        """Take no more requests and free the port."""
        self.shutdown()
        self.server_close()


class _RequestHandler(BaseHTTPRequestHandler):
    server: LoopbackServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if is_from_a_program(self.headers.items()):
            reply = self.server.respond(self.path, self.headers, body)
        else:
            reply = Reply(HTTPStatus.FORBIDDEN, REFUSAL)
        with suppress(ConnectionError):  # the client was stopped, or no longer waits
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    do_GET = do_POST = _answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """Log nothing: an event may name a patient's file."""
