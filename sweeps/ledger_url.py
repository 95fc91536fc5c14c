"""The URL of a ledger in a database: what a sweep file may say, and what it means on this machine. No Optuna here.

A password never stands in a file: `postgresql://HOST/DATABASE` finds it in `~/.pgpass` or `PGPASSWORD`, and
`${NAME}` is read from the environment wherever the ledger is opened, so that neither is recorded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit

from genrec.errors import InputError

POINTER = "ledger.json"
"beside a sweep whose ledger is in a database: where"
DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "MySQLdb")}
"packages that speak to a database; the first that is installed is taken"
_SQLALCHEMY_NAME = {"MySQLdb": "mysqldb"}
SCHEMES = ("sqlite", *DRIVERS)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SECRET = re.compile(r"passw|pwd|secret|token", re.IGNORECASE)
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "glusterfs", "lustre", "beegfs", "gpfs", "afs")


def checked_url(value: str) -> str:
    """`value` if a sweep file may have it as its `ledger`. Raises ValueError with the rule and the fix."""
    if _VARIABLE.fullmatch(value):
        return value
    scheme = value.partition("://")[0].partition("+")[0]
    if "://" not in value or scheme not in SCHEMES:
        raise ValueError(f"expected a URL that begins with {', '.join(f'{name}://' for name in SCHEMES)}, or ${{NAME}}")
    if scheme == "sqlite" and not has_file(urlsplit(value).path.removeprefix("/")):
        raise ValueError(
            "a ledger in memory is lost with its process; fix: sqlite:///FILE.db, or sqlite:////FOLDER/FILE.db"
        )
    password = urlsplit(_VARIABLE.sub("x", value)).password is not None and not _only_variable_password(value)
    options = parse_qsl(urlsplit(value).query)
    if password or any(is_secret(name) and not _VARIABLE.fullmatch(text) for name, text in options):
        raise ValueError(
            "a file holds no password; fix: leave it out and set PGPASSWORD or ~/.pgpass, "
            "or write ${NAME} in its place and set that variable"
        )
    return value


def has_file(database: str | None) -> bool:
    """Whether the database of an SQLite URL is a file, and not one in memory."""
    return bool(database) and database != ":memory:" and not str(database).startswith("file:")


def is_secret(option: str) -> bool:
    """Whether an option of a URL (`?sslpassword=...`) holds what may not be shown."""
    return bool(_SECRET.search(option))


def _only_variable_password(value: str) -> bool:
    userinfo = value.partition("://")[2].rpartition("@")[0]
    return _VARIABLE.fullmatch(userinfo.partition(":")[2]) is not None


def resolved(written: str) -> str:
    """The URL with the values of its `${NAME}`. Raises `InputError` for a variable that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise InputError(f"ledger: the environment variable {match[1]} is not set")
        return os.environ[match[1]] if match[0] == written else quote(os.environ[match[1]], safe="")

    return _VARIABLE.sub(value, written)


def driver_of(name: str, is_installed: Callable[[str], bool]) -> str:
    """`postgresql` with the package that is installed for it: `postgresql+psycopg`. One that is named is kept."""
    packages = DRIVERS.get(name, ())
    found = next((package for package in packages if is_installed(package)), None)
    return f"{name}+{_SQLALCHEMY_NAME.get(found, found)}" if found else name


def on_network_file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """The kind of network file system that `path` is on, as far as the machine says; None: on none."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return None
    text = os.path.realpath(path)
    found = [(line[1], line[2]) for line in lines if text == line[1] or text.startswith(line[1].rstrip("/") + "/")]
    kind = max(found, key=lambda mount: len(mount[0]), default=("", ""))[1]
    return kind if kind in _NETWORK or kind.startswith("fuse.ssh") else None
