"""What a store of objects must be able to do, in the words in which `genrec.object_store` asks for it.

One backend for each kind of store: `genrec.s3_backend`, `genrec.gcs_backend`. A backend makes each request once and
says what came of it; whether it is tried again, and what a person is told, is decided in `genrec.object_store`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

ATTEMPTS = 7
FIRST_WAIT, LONGEST_WAIT = 0.25, 8.0
"seconds before the second attempt and, doubled each time, at the most; all attempts together wait about 16 s"
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
TRANSIENT = (408, 409, 429, 500, 502, 503, 504)
"statuses of HTTP after which the same request may succeed"


class Refused(Exception):
    """The condition of a write does not hold, or there is no such object."""


class Fault(Exception):
    """A request that came to nothing."""

    def __init__(self, code: str, text: str, *, transient: bool = False, denied: bool = False, fix: str = ""):
        """`code`: the store's, or the library's, name for it. `transient`: the store only seems to be away. `denied`:
        the credentials may not do this. `fix`: what is wrong and what to do, where that is known."""
        super().__init__(text)
        self.code, self.transient, self.denied, self.fix = code, transient, denied, fix


class Listing(NamedTuple):
    """Objects by their keys, and what their keys have in common up to a delimiter."""

    tags: dict[str, str]
    prefixes: list[str]


class Backend(Protocol):
    """The objects of one bucket by their keys. A tag stands for the content of an object: another content has another
    tag. Every method raises `Fault`, or `Refused` where that is said. Safe for several threads."""

    conditions: str
    "what the store calls the conditions of writes"
    conditional: str
    "stores of this kind that keep them"
    endpoint_variable: str
    "names, in the environment, a server of this kind that is not the usual one"

    def get(self, key: str) -> tuple[bytes, str]:
        """A small object and its tag; `Refused` if there is none."""

    def download(self, key: str, write: Callable[[bytes], object]) -> str:
        """Hand an object to `write` block by block; its tag. `Refused` if there is none."""

    def require(self, key: str) -> None:
        """`Refused` if there is no such object."""

    def put(self, key: str, data: bytes, *, absent: bool = False, tag: str | None = None) -> str:
        """Write a small object; its tag. `Refused` if there is one although it should be `absent`, or if it is not the
        one with `tag`."""

    def put_file(self, key: str, path: Path) -> str:
        """Write a file of any size; the object appears when it is whole. Its tag."""

    def list(self, prefix: str, delimiter: str = "") -> Listing:
        """All objects whose keys begin with `prefix`; with a delimiter those that have none after it, and prefixes."""

    def delete(self, keys: Sequence[str]) -> None:
        """Those that are there."""


def waits() -> Iterator[float | None]:
    """Seconds between attempts, uneven so that many who were refused at once do not come back at once; then None."""
    for attempt in range(ATTEMPTS - 1):
        yield random.uniform(0.5, 1.0) * min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
    yield None
