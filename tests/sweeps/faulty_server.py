"""A server on loopback, in a process of its own, that fails when it is asked to.

Requests are served one at a time, as by a store whose conditional writes are atomic. Faults are set by POST to
`/_faults`: a list of {"kind", "method", "name", "skip"}; each strikes once, at the first request of the method whose
address contains `name`, after `skip` of these. GET there tells which are left.
"""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

SLOW_SECONDS = 3.0
ERRORS = {
    "500": ("500 Internal Server Error", "InternalError"),
    "503": ("503 Slow Down", "SlowDown"),
    "409": ("409 Conflict", "ConditionalRequestConflict"),
    "412": ("412 Precondition Failed", "PreconditionFailed"),
    "403": ("403 Forbidden", "AccessDenied"),
    "501": ("501 Not Implemented", "NotImplemented"),
}
# slow: the answer comes after SLOW_SECONDS; closed: the connection is closed unanswered and nothing is done;
# lost: the request is done, and the connection closed instead of an answer; torn: half of the answer comes.


class FaultyServer:
    """The server as its tests see it. `program`: a file that calls `serve`."""

    environment: dict[str, str]
    "what a client needs to find it"

    def __init__(self, program: str) -> None:
        self._process = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def fail(self, *faults: dict[str, Any]) -> None:
        """Faults from now on, instead of all that are left."""
        self.ask("POST", "_faults", faults)

    def faults_left(self) -> list[dict[str, Any]]:
        return self.ask("GET", "_faults")

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or "null") if "json" in answer.headers.get("Content-Type", "") else None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Faulty:
    """The WSGI application around that of a store. `method` names the kind of a request, by S3's methods; `body` is
    the store's form of an error."""

    def __init__(
        self,
        application: Any,
        body: Callable[[str], str],
        method: Callable[[dict[str, Any]], str] = lambda environ: str(environ["REQUEST_METHOD"]),
    ):
        self._application, self._body, self._method = application, body, method
        self._faults: list[dict[str, Any]] = []
        self._turn = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/_faults":
            if environ["REQUEST_METHOD"] == "POST":
                self._faults = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._faults).encode()]
        kind = self._due(environ)
        if kind in ERRORS:
            status, code = ERRORS[kind]
            start_response(status, [("Content-Type", "text/plain")])
            return [self._body(code).encode()]
        if kind == "closed":
            return _hang_up(environ)
        answer: list[Any] = []
        with self._turn:
            body = b"".join(self._application(environ, lambda *args: answer.extend(args[:2])))
        if kind == "lost":
            return _hang_up(environ)
        if kind == "slow":
            time.sleep(SLOW_SECONDS)
        start_response(*answer)
        return [body[: len(body) // 2]] if kind == "torn" else [body]

    def _due(self, environ: dict[str, Any]) -> str | None:
        method, address = self._method(environ), f"{environ['PATH_INFO']}?{unquote(environ['QUERY_STRING'])}"
        for fault in list(self._faults):
            if fault.get("method", method) == method and fault.get("name", "") in address:
                if fault.get("skip", 0) > 0:
                    fault["skip"] -= 1
                    continue
                self._faults.remove(fault)
                return str(fault["kind"])
        return None


def _hang_up(environ: dict[str, Any]) -> Iterable[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return []


def serve(application: Any) -> None:
    """Print the address, and serve until the process is killed."""
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line for every request
    server.serve_forever()
