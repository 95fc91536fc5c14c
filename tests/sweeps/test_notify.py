"""Messages at the end of a sweep, sent to a server on loopback and to real programs."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from sweeps.ledger import Ledger
from sweeps.notify import NotifySettings, message, notify
from sweeps.spec import load_spec

TINY = Path(__file__).with_name("tiny.yaml")
VARIABLE = "TEST_SWEEPS_WEBHOOK"
HOOK = NotifySettings(webhook_env=VARIABLE)


class Hook(HTTPServer):
    """Keeps what it is told and answers with `code`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.told: list[Any] = []
        self.code = 200


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.code)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Tests print nothing."""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    server = Hook()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}/secret-path")
    yield server
    server.shutdown()
    server.server_close()


def test_a_webhook_gets_the_message_as_json(hook: Hook) -> None:
    assert notify(HOOK, {"text": "done", "state": "finished"}) == []
    assert hook.told == [{"text": "done", "state": "finished"}]


@pytest.mark.parametrize("code", [302, 404, 500])
def test_a_webhook_that_refuses_or_sends_away_is_named_without_its_address(hook: Hook, code: int) -> None:
    hook.code = code
    [fault] = notify(HOOK, {"text": "done"})
    assert fault == f"the webhook of {VARIABLE} was not told: it answered {code}"
    assert len(hook.told) == 1, "a redirect is not followed"


@pytest.mark.parametrize("address", ["", "file:///etc/passwd", "http://127.0.0.1:1/secret", "http://[", "nonsense"])
def test_an_address_that_leads_nowhere_is_a_sentence_and_no_error(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, address)
    [fault] = notify(HOOK, {"text": "done"})
    assert VARIABLE in fault
    assert "secret" not in fault


def test_a_command_reads_the_message_from_its_input(tmp_path: Path) -> None:
    program = f"import sys; open({str(tmp_path / 'told')!r}, 'w').write(sys.stdin.read())"
    assert notify(NotifySettings(command=[sys.executable, "-c", program]), {"text": "$(touch x); done"}) == []
    assert json.loads((tmp_path / "told").read_text()) == {"text": "$(touch x); done"}


def test_a_command_that_fails_hangs_or_is_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.notify.TIMEOUT", 0.2)
    [fault] = notify(NotifySettings(command=["no-such-program"]), {})
    assert "no-such-program was not told: No such file" in fault
    [fault] = notify(NotifySettings(command=["sleep", "60"]), {})
    assert "it took more than" in fault
    monkeypatch.setattr("sweeps.notify.TIMEOUT", 60.0)
    [fault] = notify(NotifySettings(command=["false"]), {})
    assert "exit code 1" in fault


@pytest.mark.parametrize("settings", [{}, {"webhook_env": "http://x"}, {"command": []}])
def test_settings_that_tell_nobody_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NotifySettings(**settings)


def test_the_message_says_how_the_sweep_ended(hostile_sweep: Path, tmp_path: Path) -> None:
    found = message(Ledger.read(hostile_sweep))
    assert found["state"] == "finished"
    assert found["text"].startswith("sweep hostile: finished\n")
    assert found["winner"]["trial"] in ("trial-0000", "trial-0001", "base")
    Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})).close()
    found = message(Ledger.read(tmp_path / "new"), error="no trial \x1b[31mcame to its end")
    assert found["text"] == "sweep new: ended early\nno trial \N{REPLACEMENT CHARACTER}[31mcame to its end"
    json.dumps(found)
