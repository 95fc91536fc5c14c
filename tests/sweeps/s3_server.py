"""An S3 server on loopback (moto's, in a process of its own) that fails when it is asked to.

As a program it prints its address and serves until it is killed. Requests are served one at a time, as by a store whose
conditional writes are atomic; moto itself looks first and writes afterwards. Faults are set by POST to `/_faults`: a
list of {"kind", "method", "name", "skip"}; each strikes once, at the first request of the method whose path contains
`name`, after `skip` of these. GET there tells which are left.
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
from collections.abc import Iterable
from typing import Any

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


class Server:
    """The server as its tests see it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        self.environment = {
            "AWS_ENDPOINT_URL_S3": self.address,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "canary-of-the-secret-key",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def fail(self, *faults: dict[str, Any]) -> None:
        """Faults from now on, instead of all that are left."""
        request = urllib.request.Request(f"{self.address}/_faults", json.dumps(faults).encode(), method="POST")
        urllib.request.urlopen(request, timeout=60).close()

    def faults_left(self) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.address}/_faults", timeout=60) as answer:
            return json.load(answer)

    def make_bucket(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.address}/{name}", method="PUT"), timeout=60).close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class _Faulty:
    """The WSGI application around moto's."""

    def __init__(self, application: Any):
        self._application = application
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
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>asked for</Message></Error>".encode()]
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
        for fault in list(self._faults):
            if fault.get("method", environ["REQUEST_METHOD"]) == environ["REQUEST_METHOD"] and (
                fault.get("name", "") in environ["PATH_INFO"]
            ):
                if fault.get("skip", 0) > 0:
                    fault["skip"] -= 1
                    continue
                self._faults.remove(fault)
                return str(fault["kind"])
        return None


def _hang_up(environ: dict[str, Any]) -> Iterable[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return []


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, _Faulty(DomainDispatcherApplication(create_backend_app)), threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line for every request
    server.serve_forever()


if __name__ == "__main__":
    main()
