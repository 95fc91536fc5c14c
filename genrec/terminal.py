"""How the command lines speak: bad input ends with a sentence and an exit code; foreign text drives no terminal."""

from __future__ import annotations

import errno
import shlex
import sys
from typing import Any

import click

from genrec.errors import ExitCode, InputError, nearest

LINE = "genrec.line"


class Commands(click.Group):
    """A group whose commands end bad input with a sentence and an exit code instead of a traceback."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        line = shlex.join([str(info_name), *args])
        context = super().make_context(info_name, args, *rest, **extra)
        context.meta[LINE] = line
        return context

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo(f"interrupted; what is done is kept; continue with: {ctx.meta[LINE]}", err=True)
            sys.exit(ExitCode.INTERRUPTED)
        except (InputError, OSError) as error:
            if ctx.params.get("debug") or getattr(error, "errno", None) == errno.EPIPE:
                raise
            fail(str(error), ExitCode.ENVIRONMENT if isinstance(error, OSError) else error.exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(error.format_message().rstrip(".") + nearest(args[0], self.commands)) from None


def fail(message: str, code: ExitCode = ExitCode.INPUT) -> None:
    """Print `error: ...` for every line of the message and leave with `code`."""
    for line in message.splitlines() or ["unknown error"]:
        click.echo(f"error: {printable(line)}", err=True)
    sys.exit(code)


def printable(text: str) -> str:
    """Text of foreign origin without control characters, so that a title cannot drive the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
