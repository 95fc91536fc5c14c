"""What can go wrong with a sweep that is no bad input, each with the code that a command leaves with."""

from __future__ import annotations

from genrec.errors import ExitCode


class LedgerError(RuntimeError):
    """The record of a sweep cannot be used as asked; the message says why and what to do."""

    exit_code = ExitCode.ENVIRONMENT


class SweepExists(LedgerError):
    """A new sweep was asked for, and there is one of its name."""

    exit_code = ExitCode.INPUT


class SweepDriven(LedgerError):
    """Another process is at work on the sweep; the message names it."""

    exit_code = ExitCode.INPUT


class SweepFailed(RuntimeError):
    """No trial, or no finalist, came to a usable end; the message says what happened to them."""

    exit_code = ExitCode.FAILED
