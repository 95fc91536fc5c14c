"""Under which circumstances a session drives a sweep: code, versions, data, host, command line.

They are facts of the ledger, one entry a session that differs from the one before. A resumed sweep says what is
different; on other data, or with other code in its stages, it does not go on unless it is told to, for its trials could
no longer be compared.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import genrec
import sweeps
from genrec.durable import file_hash
from genrec.errors import InputError
from genrec.masking import masked_command
from genrec.pipeline import CODE_VERSIONS, stage_keys
from sweeps.folders import storage_of, sweeps_command
from sweeps.ledger import Ledger

SESSIONS = "sessions"
PACKAGES = ("torch", "ray", "optuna", "numpy", "genrec-sweeps")
MOST_CODE_BYTES = 2**20
_COMPARED = ("git", "versions", "stages", "data")


def note_session(
    ledger: Ledger, say: Callable[[str], None], *, accept_data: bool = False, accept_code: bool = False
) -> None:
    """Record this session's circumstances, and say what is different from the last ones.

    Raises `InputError` when the data, or the code of the stages, are others than those of the recorded trials and
    `accept_data`, or `accept_code`, is not given.
    """
    now, sessions = circumstances(ledger), ledger.fact(SESSIONS) or []
    if sessions:
        before = sessions[-1]
        now["data"] = now["data"] or before["data"]
        for line in differences(before, now):
            say(f"warning: since the last session {line}")
        faults = _contradictions(ledger, before, now, accept_data=accept_data, accept_code=accept_code)
        if faults:
            raise InputError("\n".join(faults))
        same = {key: value for key, value in now.items() if key != "at"}
        if same == {key: before.get(key) for key in same}:
            ledger.stamp(code=code_of(now))
            return
    ledger.set_fact(SESSIONS, [*sessions, now])
    ledger.stamp(code=code_of(now))


def _contradictions(
    ledger: Ledger, before: Mapping[str, Any], now: Mapping[str, Any], *, accept_data: bool, accept_code: bool
) -> list[str]:
    """Why trials of this session could not be compared with the recorded ones; a line each, with the way on."""
    name, storage = ledger.folder.name, storage_of(ledger.folder.parent)
    faults = []
    old, new = before.get("stages") or {}, now.get("stages") or {}
    changed = [f"{stage} {old[stage]} -> {new[stage]}" for stage in new if old.get(stage, new[stage]) != new[stage]]
    if changed and not accept_code:
        go_on = sweeps_command("resume", name, "--accept-code", storage=storage)
        faults.append(
            f"sweep {name}: the code that trains is not that of its trials (stage versions {', '.join(changed)}); fix: "
            f"the version that it began with, a new sweep (sweeps run FILE --name ANOTHER), or, to mix them all the "
            f"same: {go_on}"
        )
    same_reader = old.get("dataset") == new.get("dataset")  # otherwise equal data have another key
    if same_reader and before["data"] not in (None, now["data"]) and not accept_data:
        go_on = sweeps_command("resume", name, "--accept-data", storage=storage)
        faults.append(
            f"sweep {name}: the data are not those of its trials (dataset {before['data']}, now {now['data']}); "
            f"fix: start a new sweep, or, to mix them all the same: {go_on}"
        )
    return faults


def circumstances(ledger: Ledger) -> dict[str, Any]:
    """Those of this process, as plain JSON. `data` is the key of the base's dataset; null while it is not there."""
    config = ledger.spec.base_config()
    try:
        data = stage_keys(config)["dataset"]
    except (InputError, OSError):  # the first trial says it in full
        data = None
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "command": masked_command(sys.argv),
        "seed": ledger.spec.seed,
        "git": git_state(*(Path(package.__path__[0]) for package in (sweeps, genrec))),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "stages": dict(CODE_VERSIONS),
        "data": data,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of code, versions and data is not as it was, a phrase each."""
    found = []
    for key in _COMPARED:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
            found += [f"{key} {name} changed from {old.get(name)} to {new.get(name)}" for name in names]
        else:
            found.append(f"{key} changed from {old} to {new}")
    return found


def code_of(session: Mapping[str, Any]) -> str:
    """One word for the code: the commit, with the hash of what is not committed, or else the package's version."""
    git = session["git"]
    if git is None:
        return str(session["versions"]["genrec-sweeps"])
    return git["commit"][:12] + (f"+{git['difference'][:12]}" if git["difference"] else "")


def git_state(folder: Path, *further: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the code of `folder` belongs to, and a hash of what is not committed (null when
    nothing is): changes anywhere, and files that git neither knows nor ignores in `folder` and the `further` ones.
    None where it belongs to no checkout."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "diff", "HEAD", "--binary")
    if commit is None or changes is None:
        return None
    digest = hashlib.sha256(changes)
    untracked = [path for place in (folder, *further) for path in _untracked(place)]
    for path in untracked:
        digest.update(_fingerprint(path))
    return {
        "commit": commit.decode().strip(),
        "difference": digest.hexdigest() if changes or untracked else None,
    }


def _untracked(folder: Path) -> list[Path]:
    """Files below `folder` that git neither knows nor ignores."""
    listed = _git(folder, "ls-files", "--others", "--exclude-standard", "-z") or b""
    return sorted(folder / os.fsdecode(name) for name in listed.split(b"\0") if name)


def _fingerprint(path: Path) -> bytes:
    """Name and content; of a large file, which is no code, name and size."""
    try:
        size = path.stat().st_size
        content = file_hash(path) if path.is_file() and size <= MOST_CODE_BYTES else str(size)
    except OSError:  # gone since, or a link to nowhere
        content = "unreadable"
    return f"\0{path.parent.name}/{path.name}\0{content}".encode(errors="surrogateescape")


def _git(folder: Path, *words: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            timeout=30,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
