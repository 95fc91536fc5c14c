"""A signal ends what a driver does in good order, wherever it is: with its exit code and the command that goes on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweeps.interruption import SIGNALS, Interrupted, handled_by, interruptible, own_handlers_kept
from sweeps.ledger import Ledger

TINY = Path(__file__).with_name("tiny.yaml")


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(signum) for signum in SIGNALS]
    yield
    assert [signal.getsignal(signum) for signum in SIGNALS] == before


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(1)  # interrupted at once


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_the_block_by_its_name(signum: int) -> None:
    with pytest.raises(Interrupted, match=signal.Signals(signum).name) as caught, interruptible():
        send(signum)
    assert caught.value.signum == signum


def test_a_second_signal_ends_what_is_being_put_in_order() -> None:
    done = []

    def work() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            done.append("put in order")

    with pytest.raises(Interrupted) as caught, interruptible():
        work()
    assert not done
    assert caught.value.signum == signal.SIGTERM, "the code is that of the first"


def test_what_ray_makes_of_a_signal_counts_as_the_signal() -> None:
    """Its waiting raises a KeyboardInterrupt of its own for ours."""

    def wait_as_ray_does() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None

    with pytest.raises(Interrupted) as caught, interruptible():
        wait_as_ray_does()
    assert caught.value.signum == signal.SIGTERM


def test_handlers_that_ray_sets_do_not_outlast_its_start() -> None:
    def set_as_ray_does() -> None:
        signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(signum))

    def signal_after() -> None:
        with own_handlers_kept():
            set_as_ray_does()
        send(signal.SIGTERM)

    def signal_meanwhile() -> None:
        with own_handlers_kept():
            set_as_ray_does()
            send(signal.SIGTERM)

    for start in (signal_after, signal_meanwhile):
        with pytest.raises(Interrupted) as caught, interruptible():
            start()
        assert caught.value.signum == signal.SIGTERM


def test_a_keyboard_interrupt_that_no_signal_has_caused_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Interrupted)


def test_in_another_thread_and_under_nohup_signals_are_left_alone() -> None:
    seen = []

    def look() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled_by(lambda signum, frame: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


CONCLUDES_SLOWLY = """
import sys, time
import ray, ray._private.utils
from sweeps import cli, driver

def init(**options):  # what it does to signals, and nothing else
    ray._private.utils.set_sigterm_handler(lambda signum, frame: sys.exit(signum))

def conclude(*_):
    print("concluding", flush=True)
    time.sleep(120)

ray.init, ray.shutdown = init, lambda: None
driver.is_own_ray, driver.idle_gpus = lambda: True, lambda: None
driver._search = driver._reevaluate = lambda *_: None
driver.conclude = conclude
cli.main(sys.argv[1:])
"""


def test_sigterm_while_the_winner_is_exported_leaves_143_and_the_command_that_goes_on(tmp_path: Path) -> None:
    storage = tmp_path / "its storage"
    words = [sys.executable, "-c", CONCLUDES_SLOWLY, "run", str(TINY), "--storage", str(storage)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "concluding\n", driver.communicate()
        driver.send_signal(signal.SIGTERM)
        _, said = driver.communicate(timeout=60)
    assert driver.returncode == 143, said
    assert "Traceback" not in said
    command = said.partition("interrupted by SIGTERM; continue with: ")[2].strip()
    assert shlex.split(command) == ["sweeps", "resume", "tiny", "--storage", str(storage)]
    assert Ledger.read(storage / "tiny").state == "interrupted"
