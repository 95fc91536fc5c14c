"""What a caller hands over as a history -> codes for the encoder.

A history is item numbers or semantic IDs, one or a batch, as lists, arrays or tensors, ragged or padded with -1. This
is for people who call the model by hand; training and evaluation make batches without padding and need none of it.

Letters: B batch, I items, C codes an item, N items of the catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genrec.errors import InputError

PADDING = -1


class CodedHistories(NamedTuple):
    """Codes of the items, 0 where there is none, and the items' places: 0, 1, ... and -1 for padding."""

    codes_BIC: Tensor
    place_BI: Tensor | None
    "None when there is no padding"


def read_history(
    history: Any, codes_NC: Tensor, level_sizes: Sequence[int], max_items: int, *, items: bool = False
) -> CodedHistories:
    """Codes of a history or a batch; of longer ones the last `max_items` items. On the device of `codes_NC`.

    Two dimensions of which the second is C are one history of semantic IDs, unless `items` says that they are a batch
    of item numbers. Raises `InputError` for what is neither, for unknown items and codes, and for an empty history.
    """
    num_codes = len(level_sizes)
    nested = _plain(history)
    depth = _depth(nested)
    semantic = depth == 3 or (depth == 2 and not items and all(len(row) == num_codes for row in nested))
    if depth == (2 if semantic else 1):
        nested = [nested]
    if depth not in (1, 2, 3) or (items and depth == 3):
        raise InputError("a history must be item numbers (I,) or semantic IDs (I, C), or a batch of either")
    real = [_without_padding(row, number, semantic, num_codes) for number, row in enumerate(nested)]
    if max(len(row) for row in nested) > max_items:
        # Too long to stay as it is: the last items, side by side at the end.
        nested = [row[-max_items:] for row in real]
    filler = [PADDING] * num_codes if semantic else PADDING
    width = max(len(row) for row in nested)
    table = torch.tensor([[filler] * (width - len(row)) + list(row) for row in nested], device=codes_NC.device)
    padding_BI = (table < 0).any(-1) if semantic else table < 0
    if semantic:
        _check_codes(table[~padding_BI], level_sizes)
        codes_BIC = table.clamp(min=0)
    else:
        _check_items(table, len(codes_NC))
        codes_BIC = codes_NC[table.clamp(min=0)].masked_fill(padding_BI.unsqueeze(-1), 0)
    place_BI = ((~padding_BI).cumsum(1) - 1).masked_fill(padding_BI, PADDING)
    return CodedHistories(codes_BIC, place_BI if bool(padding_BI.any()) else None)


def _plain(history: Any) -> list[Any]:
    """Nested lists of whole numbers."""
    if hasattr(history, "tolist"):
        history = history.tolist()
    if not isinstance(history, (list, tuple)):
        raise InputError(f"a history must be a list, array or tensor of whole numbers, got {type(history).__name__}")
    return [_whole(part) if _is_number(part) else _plain(part) for part in history]


def _is_number(part: Any) -> bool:
    return isinstance(part, str) or not hasattr(part, "__len__") or getattr(part, "ndim", None) == 0


def _whole(part: Any) -> int:
    value = part.item() if hasattr(part, "item") else part
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"a history must hold whole numbers, got {value!r}")
    return value


def _depth(nested: Any) -> int:
    depths = {_depth(part) for part in nested} if isinstance(nested, list) else set()
    if len(depths) > 1:
        raise InputError("a history must not mix numbers and lists at one depth")
    return 1 + depths.pop() if depths else int(isinstance(nested, list))


def _without_padding(row: list[Any], number: int, semantic: bool, num_codes: int) -> list[Any]:
    if semantic and any(len(item) != num_codes for item in row):
        wrong = next(item for item in row if len(item) != num_codes)
        raise InputError(f"history {number}: a semantic ID of this model has {num_codes} codes, got {wrong}")
    real = [item for item in row if (min(item) if semantic else item) >= 0]
    if not real:
        raise InputError(f"history {number} is empty; expected at least one item")
    return real


def _check_items(table: Tensor, num_items: int) -> None:
    if not num_items:
        raise InputError("this model has no catalogue: give histories as semantic IDs, not as item numbers")
    if int(table.max()) >= num_items:
        raise InputError(f"item {int(table.max())} is not in the catalogue: items are 0 to {num_items - 1}")


def _check_codes(codes_XC: Tensor, level_sizes: Sequence[int]) -> None:
    for level, size in enumerate(level_sizes):
        highest = int(codes_XC[:, level].max())
        if highest >= size:
            raise InputError(f"code {highest} of level {level + 1} of a semantic ID: codes there are 0 to {size - 1}")
