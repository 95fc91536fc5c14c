"""Small files are replaced whole."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from genrec.durable import flush, put, write_json, write_text


def test_a_text_is_written_and_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "note"
    for text in ("one", "zwei\n", "", "ünïcödé"):
        write_text(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_sorted_readable_and_exact(tmp_path):
    value = {"b": 0.1 + 0.2, "a": [1, None, "é"]}
    write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == value
    assert text.index('"a"') < text.index('"b"')


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}])
def test_what_json_cannot_hold_replaces_nothing(value, tmp_path):
    write_json(tmp_path / "x.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == 1


def test_a_folder_is_put_in_its_place(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "file").write_text("x")
    flush(tmp_path / "part" / "file")
    put(tmp_path / "part", tmp_path / "whole")
    assert (tmp_path / "whole" / "file").read_text() == "x"
    assert not (tmp_path / "part").exists()


def test_a_reader_finds_the_old_text_or_the_new_whenever_the_writer_is_killed(tmp_path):
    path = tmp_path / "note"
    code = (
        "import sys; from pathlib import Path; from genrec.durable import write_text\n"
        "print('ready', flush=True)\n"
        "for number in range(10**6): write_text(Path(sys.argv[1]), str(number) * 2000)\n"
    )
    for seconds in (0.0, 0.01, 0.02, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.readline()
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        if path.exists():
            text = path.read_text()
            number = text[: len(text) // 2000]
            assert number
            assert text == number * 2000
    assert path.exists()


def test_it_needs_no_torch():
    code = "import sys, genrec.durable; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert ended.stdout.strip() == "False"
