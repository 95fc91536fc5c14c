"""The token by which the processes of a Ray cluster know each other, and the folder that a local Ray works in.

Whoever reaches a Ray cluster without a token runs code on it. Ray's own token file can be read by everyone on the
machine and its folders written by everyone; ours are for their owner alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from ray._raylet import Config  # type: ignore[attr-defined]

from genrec.errors import InputError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def require_token() -> None:
    """Make the Ray that this process will start ask for a token; one is made where there is none.

    Raises `InputError` where the environment switches tokens off.
    """
    mode = os.environ.get(MODE, "token").lower()
    if mode != "token":
        raise InputError(f"{MODE}={mode}: a Ray that asks for no token runs anyone's code; fix: unset {MODE}")
    if not os.environ.get(TOKEN) and not os.environ.get(TOKEN_PATH):
        try:
            _keep_private(token_file())
        except (OSError, RuntimeError):  # no home, or one that cannot be written: the token lives as long as we do
            os.environ[TOKEN] = secrets.token_hex(32)
    _enable()


def use_token_if_there_is_one() -> None:
    """Show the token to the Ray that this process will join, unless the environment says otherwise."""
    if MODE in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # no home
        if os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH) or token_file().is_file():
            _enable()


def wrong_token(address: str) -> ConnectionError:
    """The error for a cluster that does not take our token; it names the address and never the token."""
    return ConnectionError(
        f"the Ray at {address} wants another token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (or put the token "
        "into ~/.ray/auth_token)"
    )


def token_file() -> Path:
    """Where Ray looks for the token. Raises RuntimeError where the user has no home."""
    return Path.home() / ".ray" / "auth_token"


def private_folder() -> Path:
    """A folder of this user alone, for the sessions of a local Ray. Raises OSError if someone else has its name."""
    folder = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / f"sweeps-ray-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise OSError(f"{folder}: belongs to another user; set RAY_TMPDIR to a folder of your own")
    folder.chmod(0o700)
    return folder


def _enable() -> None:
    os.environ[MODE] = "token"
    Config.initialize("")  # Ray read its environment when it was imported


def _keep_private(path: Path) -> None:
    """The token's file, there and readable by its owner alone; two processes that make it agree on one."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.chmod(0o700)
    if not path.exists():
        new = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
        new.unlink()
    path.chmod(0o600)
