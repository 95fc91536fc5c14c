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
from sweeps.notify import message, notify, told
from sweeps.spec import NotifySpec
from sweeps.spec_file import load_spec

TINY = Path(__file__).with_name("tiny.yaml")
VARIABLE = "TEST_SWEEPS_WEBHOOK"
HOOK = NotifySpec(webhook_env=VARIABLE)


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
    assert notify(NotifySpec(command=[sys.executable, "-c", program]), {"text": "$(touch x); done"}) == []
    assert json.loads((tmp_path / "told").read_text()) == {"text": "$(touch x); done"}


def test_a_command_that_fails_hangs_or_is_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.notify.TIMEOUT", 0.2)
    [fault] = notify(NotifySpec(command=["no-such-program"]), {})
    assert "no-such-program was not told: No such file" in fault
    [fault] = notify(NotifySpec(command=["sleep", "60"]), {})
    assert "it took more than" in fault
    monkeypatch.setattr("sweeps.notify.TIMEOUT", 60.0)
    [fault] = notify(NotifySpec(command=["false"]), {})
    assert "exit code 1" in fault


@pytest.mark.parametrize("settings", [{}, {"webhook_env": "http://x"}, {"command": []}])
def test_settings_that_tell_nobody_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        NotifySpec(**settings)


def test_the_message_says_how_the_sweep_ended(hostile_sweep: Path, tmp_path: Path) -> None:
    found = message(Ledger.read(hostile_sweep))
    assert found["state"] == "finished"
    assert found["text"].startswith("sweep hostile: finished\n")
    assert found["winner"]["trial"] in ("trial-0000", "trial-0001", "base")
    Ledger.create(tmp_path / "new", load_spec(TINY, {"name": "new"})).close()
    found = message(Ledger.read(tmp_path / "new"), error="no trial \x1b[31mcame to its end")
    assert found["text"] == "sweep new: ended early\nno trial \N{REPLACEMENT CHARACTER}[31mcame to its end"
    json.dumps(found)


def with_command(tmp_path: Path) -> tuple[Ledger, Path]:
    """A new sweep that writes what it is told into a file."""
    heard = tmp_path / "heard.json"
    program = f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read() + '\\n')"
    spec = load_spec(TINY, {"name": "new", "notify": {"command": [sys.executable, "-c", program]}})
    return Ledger.create(tmp_path / "new", spec), heard


def test_an_end_and_a_failure_are_told_once_and_a_signal_is_not(tmp_path: Path) -> None:
    ledger, heard = with_command(tmp_path)
    with pytest.raises(KeyboardInterrupt), told(ledger, print):
        raise KeyboardInterrupt
    assert not heard.exists()
    with pytest.raises(OSError, match="disk"), told(ledger, print):
        raise OSError("no space on the disk")
    with told(ledger, print):
        ledger.mark("finished")
    ledger.close()
    first, second = (json.loads(line) for line in heard.read_text().splitlines())
    assert first["error"] == "no space on the disk"
    assert (second["error"], second["state"]) == (None, "finished")


def test_a_message_that_does_not_get_through_is_a_warning(tmp_path: Path) -> None:
    spec = load_spec(TINY, {"name": "new", "notify": {"command": ["no-such-program"]}})
    said: list[str] = []
    with Ledger.create(tmp_path / "new", spec) as ledger, told(ledger, said.append):
        ledger.mark("finished")
    assert len(said) == 1
    assert said[0].startswith("warning: the command no-such-program was not told")
