"""Secrets left out of what is recorded, logged or uploaded: by the names of values, in URLs, on command lines."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MASK = "***"
_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
_URL_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_URL_OPTION = re.compile(rf"([?&][^=&\s]*(?:{_SECRET_NAME.pattern}|pwd)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE)


def masked(value: Any, name: str = "") -> Any:
    """A copy without secrets: values and options of URLs whose name says so, logins, the key of Weights & Biases."""
    if isinstance(value, dict):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, name) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if _SECRET_NAME.search(name):
        return MASK
    key = os.environ.get("WANDB_API_KEY")
    return _URL_OPTION.sub(rf"\1{MASK}", _URL_LOGIN.sub(MASK, value.replace(key, MASK) if key else value))


def masked_command(words: Sequence[str]) -> str:
    """A command line without secrets: values of options and settings whose name says so, and as in `masked`."""
    shown = list(_masked_words(words[1:]))
    return " ".join([shlex.quote(Path(word).name) for word in words[:1]] + shown)


def _masked_words(words: Sequence[str]) -> Iterator[str]:
    option = ""
    for word in words:
        name, equals, value = word.partition("=")
        if equals:
            yield shlex.quote(masked(name) + equals) + _quoted(masked(value, name))
        else:
            yield _quoted(masked(word, option))
        option = word if word.startswith("-") and not equals else ""


def _quoted(word: str) -> str:
    return word if word == MASK else shlex.quote(word)


def without_login(text: str) -> str:
    """`text` with the logins of URLs in it masked, also those with a slash, as keys of Amazon's have it, and options of
    theirs whose name says so (`?password=...`)."""
    return _URL_OPTION.sub(rf"\1{MASK}", re.sub(r"(?<=://)\S*(?=@)", MASK, text))
