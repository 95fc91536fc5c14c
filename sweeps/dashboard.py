"""optuna-dashboard over a sweep's ledger, for looking: on this machine only, and it can write nothing.

A ledger has one writer, its driver; so whatever would change something is refused, by method and by the ledger itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from genrec.errors import InputError
from sweeps.ledger import Ledger

HOST = "127.0.0.1"
Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """A line a request would bury everything else on the terminal."""


def open_dashboard(ledger: Ledger, port: int) -> WSGIServer:
    """A server that is bound and waits for `serve_forever()`. `port` 0: any free one.

    Raises `InputError` when the extra `dashboard` is missing or the port is taken.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError:
        raise InputError("the dashboard needs an extra package: pip install 'genrec-sweeps[dashboard]'") from None
    application = wsgi(ledger.storage)
    try:
        return make_server(HOST, port, _for_looking(application), handler_class=_Quiet)
    except OSError as error:
        raise InputError(f"port {port} can't be used ({error.strerror}); choose another with --port") from None


def _for_looking(application: Any) -> Application:
    """Only reads, and only for pages of this very server: a foreign page in the same browser gets nothing."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        host = str(environ.get("HTTP_HOST", "")).rsplit(":", 1)[0]
        if host not in (HOST, "localhost") or environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response("403 Forbidden", [("Content-Type", "text/plain")])
            return [b"this dashboard is for looking, on this machine\n"]
        found: Iterable[bytes] = application(environ, start_response)
        return found

    return answer
