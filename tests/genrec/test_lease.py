"""A lease on a note in memory: what is told when the note cannot be written."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from genrec.lease import Lease


class MadeUpNote:
    """A note that can be made to fail."""

    def __init__(self) -> None:
        self.text: str | None = None
        self.fault: Exception | None = None
        self.tries = 0

    def read(self) -> str | None:
        return self.text

    def swap(self, old: str | None, new: str) -> bool:
        self.tries += 1
        if self.fault is not None:
            raise self.fault
        if self.text != old:
            return False
        self.text = new
        return True


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_heartbeats_that_fail_are_told_once_and_so_is_their_end(caplog: pytest.LogCaptureFixture):
    note = MadeUpNote()
    lease = Lease(note, beat=0.02, expiry=600.0)
    assert lease.try_acquire()
    note.fault = ConnectionError("s3://user:hunter2@bucket is away")
    before = note.tries
    wait_until(lambda: note.tries >= before + 3)
    note.fault = None
    wait_until(lambda: "could renew a lease again" in caplog.text)
    lease.release()
    assert caplog.text.count("cannot renew a lease (ConnectionError: s3://***@bucket is away)") == 1
    assert "hunter2" not in caplog.text


def test_a_lease_that_cannot_be_given_back_says_how_long_the_next_holder_waits(caplog: pytest.LogCaptureFixture):
    note = MadeUpNote()
    lease = Lease(note, beat=600.0, expiry=20.0)
    assert lease.try_acquire()
    note.fault = ConnectionError("away")
    lease.release()
    assert "a lease was not given back (ConnectionError: away); it ends in 20 s by itself" in caplog.text
    assert not lease.is_held()
