"""Tells somebody how a sweep ended: a webhook, a command, or both.

A message that doesn't get through never fails a sweep: what went wrong is returned as a sentence. A webhook's address
is a secret, so it stands in the environment and is never repeated in a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from genrec.terminal import printable
from sweeps.ledger import Ledger
from sweeps.spec import NotifySpec
from sweeps.status import sweep_status

TIMEOUT = 10.0
"seconds for each of both"


def message(ledger: Ledger, error: str | None = None) -> dict[str, Any]:
    """What is told: plain JSON. `error`: why the sweep ended before its end."""
    status = sweep_status(ledger)
    lines = [f"sweep {status['name']}: {status['state'] if error is None else 'ended early'}"]
    lines += [error] if error else status["verdict"][:1]
    if status["best"]:
        lines.append(f"best validation {status['metric']} {status['best']['value']:.4f} ({status['best']['trial']})")
    return {
        "text": "\n".join(printable(line) for line in lines),
        "sweep": status["name"],
        "state": status["state"],
        "error": error,
        "winner": status["winner"],
        "trials": status["trials"],
    }


def notify(settings: NotifySpec, message: Mapping[str, Any]) -> list[str]:
    """Send a message; returns what did not work, in words."""
    body = json.dumps(message).encode()
    faults = []
    if settings.webhook_env is not None and (fault := _post(settings.webhook_env, body)):
        faults.append(f"the webhook of {settings.webhook_env} was not told: {fault}")
    if settings.command is not None and (fault := _run(settings.command, body)):
        faults.append(f"the command {settings.command[0]} was not told: {fault}")
    return faults


@contextlib.contextmanager
def told(ledger: Ledger, say: Callable[[str], None]) -> Iterator[None]:
    """Send what the sweep's `notify:` asks for when the block has ended or failed; what a signal ends is resumed."""
    error: str | None = None
    try:
        yield
    except Exception as failure:
        error = str(failure)
        raise
    finally:
        settings = ledger.spec.notify
        if settings is not None and (error is not None or ledger.state == "finished"):
            for fault in notify(settings, message(ledger, error)):
                say(f"warning: {fault}")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """A webhook that moved is no webhook: the message goes nowhere but to the address that was given."""


def _post(variable: str, body: bytes) -> str | None:
    address = os.environ.get(variable, "")
    if not address:
        return "the variable is not set"
    try:
        if urlsplit(address).scheme not in ("http", "https"):
            return "the variable holds no http or https address"
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT):
            return None
    except urllib.error.HTTPError as error:
        return f"it answered {error.code}"
    except (OSError, ValueError) as error:
        return type(getattr(error, "reason", error)).__name__


def _run(command: list[str], body: bytes) -> str | None:
    try:
        done = subprocess.run(command, input=body, capture_output=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f"it took more than {TIMEOUT:.0f} s"
    except OSError as error:
        return error.strerror or type(error).__name__
    return None if done.returncode == 0 else f"it ended with exit code {done.returncode}"
