"""What a signal does while a sweep is driven: the first ends the work in good order, the next one at once.

Ray sets a handler of its own for SIGTERM, which leaves by `sys.exit(15)`: no word how to go on, and an exit code that
no scheduler takes for an interruption. Whoever starts Ray puts back what was there (`own_handlers_kept`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"those that end a sweep, resumably"

Handler = Callable[[int, Any], Any]


class Interrupted(KeyboardInterrupt):
    """A signal ended what was under way; `signum` says which. The sweep is resumable."""

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"interrupted by {signal.Signals(signum).name}")


@contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Let `handler` have the signals for the block; the handlers before are put back. In another thread than the main
    one nothing changes. What `nohup` has made deaf to SIGHUP stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    before = {signum: signal.getsignal(signum) for signum in SIGNALS if not (deaf and signum == signal.SIGHUP)}
    for signum in before:
        signal.signal(signum, handler)
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier if earlier is not None else signal.SIG_DFL)


class _Interruption:
    """The handler of `interruptible`; `signum`: the first signal that came."""

    signum: int | None = None

    def __call__(self, signum: int, frame: Any) -> None:
        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)  # should even this one be held up somewhere, the next one kills
        self.signum = self.signum or signum
        raise Interrupted(self.signum)


@contextmanager
def interruptible() -> Iterator[None]:
    """End the block by `Interrupted` when a signal comes; a second one ends what is then still being put in order.

    A block inside the block changes nothing.
    """
    if isinstance(signal.getsignal(signal.SIGTERM), _Interruption):
        yield
        return
    handler = _Interruption()
    try:
        with handled_by(handler):
            yield
    except KeyboardInterrupt as stop:
        if handler.signum is None or isinstance(stop, Interrupted):
            raise
        raise Interrupted(handler.signum) from None  # Ray makes a plain KeyboardInterrupt of what its waiting meets


@contextmanager
def own_handlers_kept() -> Iterator[None]:
    """In a block that is interruptible: what the block sets as handlers is undone at its end, and its `sys.exit` upon
    SIGTERM counts as the signal that it was."""
    before = signal.getsignal(signal.SIGTERM)
    if not isinstance(before, _Interruption) or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        yield
    except SystemExit as end:
        if end.code == signal.SIGTERM:
            before.signum = before.signum or signal.SIGTERM
            raise Interrupted(signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
