"""Many strings in one array of bytes, so that a file of them can be mapped into memory and shared by processes.

The array holds, as int64, the number of strings n and the n + 1 bounds of every string in the UTF-8 that follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from genrec.errors import InputError

_WORD = 8
_ERRORS = "surrogatepass"  # half a character, as broken files have it, comes back as it was


class TextColumn(Sequence[str]):
    """Reads like a list of strings; a string is made when it is asked for."""

    def __init__(self, packed: np.ndarray):
        """`packed`: what `pack` made, uint8. Raises `InputError` when it is something else."""
        head = packed[: len(packed) // _WORD * _WORD].view("<i8") if packed.dtype == np.uint8 else packed[:0]
        count = int(head[0]) if len(head) else -1
        if not 0 <= count <= len(head) - 2:
            raise InputError(f"not a column of text: {len(packed)} values of {packed.dtype}")
        self._bounds = head[1 : count + 2]
        self._bytes = packed[_WORD * (count + 2) :]
        if self._bounds[0] != 0 or self._bounds[-1] != len(self._bytes) or (np.diff(self._bounds) < 0).any():
            raise InputError(f"not a column of text: its bounds do not fit its {len(self._bytes)} bytes")

    @staticmethod
    def pack(texts: Iterable[str]) -> np.ndarray:
        """The array, uint8."""
        encoded = [text.encode("utf-8", _ERRORS) for text in texts]
        bounds = np.concatenate([[len(encoded), 0], np.cumsum([len(part) for part in encoded])]).astype("<i8")
        return np.concatenate([bounds.view(np.uint8), np.frombuffer(b"".join(encoded), dtype=np.uint8)])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # negative ones count from the end, others raise
        return self._bytes[self._bounds[place] : self._bounds[place + 1]].tobytes().decode("utf-8", _ERRORS)

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and not isinstance(other, str) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list

    def __repr__(self) -> str:
        return f"TextColumn({len(self)} strings)"
