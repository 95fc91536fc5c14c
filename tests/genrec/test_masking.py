"""Secrets are masked, and all else is as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from genrec.masking import masked, masked_command


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"api_key": "x", "epochs": 3, "lr": 0.1, "on": True, "none": None}, {"api_key": "***", "epochs": 3}),
        ({"wandb": {"Token": "x"}}, {"wandb": {"Token": "***"}}),
        ({"urls": ["https://me:pw@host/a", "https://host/b"]}, {"urls": ["https://***@host/a", "https://host/b"]}),
        (
            {"ledger": "mysql://me@host/db?passwd=a&charset=utf8"},
            {"ledger": "mysql://***@host/db?passwd=***&charset=utf8"},
        ),
        ({"note": "the key is KEYKEYKEY"}, {"note": "the key is ***"}),
        ({"num_item_embeddings": 256, "sem_id_dim": 3}, {"num_item_embeddings": 256, "sem_id_dim": 3}),
    ],
)
def test_secrets_are_masked_and_all_else_is_as_it_was(monkeypatch, value: dict[str, Any], expected: dict[str, Any]):
    monkeypatch.setenv("WANDB_API_KEY", "KEYKEYKEY")
    before = json.dumps(value)
    found = masked(value)
    assert json.dumps(value) == before
    assert found == value | expected


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["/bin/sweeps", "run", "x.yaml", "--name", "k"], "sweeps run x.yaml --name k"),
        (
            ["sweeps", "--set", "tracking.api_key=abc", "--token", "t 0"],
            "sweeps --set tracking.api_key=*** --token ***",
        ),
        (["sweeps", "--token=t0", "--debug", "key"], "sweeps --token=*** --debug key"),
        (["sweeps", "--ledger", "postgresql://me:pw@host/db"], "sweeps --ledger 'postgresql://***@host/db'"),
        (["sweeps", "postgresql://me:pw@host/db?sslmode=require"], "sweeps 'postgresql://***@host/db?sslmode='require"),
        (["sweeps", "--set", "note=two words; KEYKEYKEY"], "sweeps --set note='two words; ***'"),
        ([], ""),
    ],
)
def test_a_command_line_has_no_secrets_and_can_still_be_pasted(monkeypatch, words: list[str], line: str):
    monkeypatch.setenv("WANDB_API_KEY", "KEYKEYKEY")
    assert masked_command(words) == line
