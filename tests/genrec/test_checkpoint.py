"""A checkpoint is whole or refused; what is loaded cannot run code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import struct
import time
from pathlib import Path

import pytest
import torch

from genrec.checkpoint import (
    MANIFEST,
    SPARE,
    TENSORS,
    CheckpointError,
    generations,
    latest_generation,
    load_checkpoint,
    save_checkpoint,
    save_generation,
)

TENSOR_SET = {
    "weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "step": torch.tensor(7.0),
    "half": torch.ones(5, dtype=torch.bfloat16),
    "codes": torch.tensor([[1, 2]]),
}
FACTS = {"epoch": 3, "rows": [{"loss": 0.1 + 0.2, "epoch": 3}], "name": "é"}


@pytest.fixture
def saved(tmp_path) -> Path:
    save_checkpoint(tmp_path / "c", TENSOR_SET, FACTS)
    return tmp_path / "c"


def equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
    )


def test_what_is_saved_is_loaded_to_the_bit(saved):
    tensors, facts = load_checkpoint(saved)
    assert equal(tensors, TENSOR_SET)
    assert facts == FACTS


def test_saving_again_replaces_the_whole(saved):
    save_checkpoint(saved, {"other": torch.zeros(1)}, {"epoch": 4})
    tensors, facts = load_checkpoint(saved)
    assert list(tensors) == ["other"]
    assert facts == {"epoch": 4}
    assert sorted(path.name for path in saved.iterdir()) == [MANIFEST, SPARE]
    save_checkpoint(saved, TENSOR_SET, FACTS)
    assert sorted(path.name for path in saved.iterdir()) == [MANIFEST, TENSORS]
    assert [path.name for path in saved.parent.iterdir()] == ["c"]


@pytest.mark.parametrize("replace", [False, True])
def test_a_save_that_is_killed_at_any_moment_leaves_the_old_checkpoint_or_the_new(replace, tmp_path):
    """Each child saves in a loop, into one folder or always another; it is killed a little later than the last."""
    save_checkpoint(tmp_path / "0", {"x": torch.full((5000,), 0)}, {"number": 0})
    newest = 0
    for kills in range(30):
        reader, writer = os.pipe()
        process = os.fork()
        if not process:
            for number in range(1, 1000):
                folder = tmp_path / ("0" if replace else f"{1000 * kills + number}")
                save_checkpoint(folder, {"x": torch.full((5000,), number)}, {"number": number})
                os.write(writer, b"saved")
            os._exit(0)
        os.read(reader, 5)  # a slow machine may take its time to the first
        time.sleep(0.003 * kills)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        for folder in generations(tmp_path):
            tensors, facts = load_checkpoint(folder)
            assert tensors["x"].tolist() == [facts["number"]] * 5000
            newest = max(newest, facts["number"])
        os.close(reader)
        os.close(writer)
    assert newest > 1


def test_a_manifest_without_the_checksum_of_its_facts_is_refused(saved):
    manifest = json.loads((saved / MANIFEST).read_text())
    del manifest["facts_hash"]
    (saved / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="its facts do not fit their checksum"):
        load_checkpoint(saved)


@pytest.mark.parametrize("name", ["../c/tensors.safetensors", "/etc/passwd", "other.safetensors", ""])
def test_a_manifest_cannot_lead_elsewhere(saved, name):
    change_manifest(saved, tensors=name)
    with pytest.raises(CheckpointError, match=MANIFEST):
        load_checkpoint(saved)


def test_tensors_that_are_views_are_saved_as_they_look(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    save_checkpoint(tmp_path / "c", {"turned": whole.T, "part": whole[1:, ::2]}, {})
    tensors, _ = load_checkpoint(tmp_path / "c")
    assert equal(tensors, {"turned": whole.T, "part": whole[1:, ::2]})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, None])
@pytest.mark.parametrize("name", [TENSORS, MANIFEST])
def test_a_truncated_file_is_refused_by_name(saved, name, share):
    content = (saved / name).read_bytes()
    size = len(content) - 2 if share is None else int(len(content) * share)
    (saved / name).write_bytes(content[:size])
    with pytest.raises(CheckpointError, match=str(saved)):
        load_checkpoint(saved)


def test_any_flipped_bit_of_the_tensors_is_found(saved):
    content = bytearray((saved / TENSORS).read_bytes())
    for place in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        (saved / TENSORS).write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(saved)


def test_a_flipped_bit_of_the_manifest_is_found_or_changes_nothing(saved):
    content = (saved / MANIFEST).read_bytes()
    found = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 7)
        (saved / MANIFEST).write_bytes(flipped)
        try:
            tensors, facts = load_checkpoint(saved)
            assert equal(tensors, TENSOR_SET)
            assert facts == FACTS
        except CheckpointError:
            found += 1
    assert found > 0.8 * len(content)


def test_a_folder_without_a_manifest_is_an_incomplete_save(saved):
    (saved / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="an incomplete save"):
        load_checkpoint(saved)
    with pytest.raises(CheckpointError, match="no such folder"):
        load_checkpoint(saved.parent / "missing")
    (saved / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match="format None"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", '{"format": 1}', '{"format": 1, "sha256": 3, "facts": {}}', "\udcff"]
)
def test_a_manifest_that_is_none_is_refused(saved, text):
    (saved / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=str(saved)):
        load_checkpoint(saved)


def test_missing_tensors_are_refused(saved):
    (saved / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=TENSORS):
        load_checkpoint(saved)


def change_manifest(folder: Path, **values) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | values))


def test_a_newer_format_is_refused(saved):
    change_manifest(saved, format=2)
    with pytest.raises(CheckpointError, match="format 2; this version reads format 1"):
        load_checkpoint(saved)


class Payload:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("form", ["pickle", "torch", "header"])
def test_a_pickle_is_never_loaded_even_with_the_right_checksum(saved, form, tmp_path):
    canary = tmp_path / "canary"
    if form == "pickle":
        content = pickle.dumps(Payload(canary))
    elif form == "torch":
        torch.save(Payload(canary), tmp_path / "x.pt")
        content = (tmp_path / "x.pt").read_bytes()
    else:
        content = struct.pack("<Q", 2**40) + b"{}"
    (saved / TENSORS).write_bytes(content)
    change_manifest(saved, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(CheckpointError, match=TENSORS):
        load_checkpoint(saved)
    assert not canary.exists()


# ------------------------------------------------------------- generations


def save_three(folder: Path) -> None:
    for number in (1, 2, 10):
        save_generation(folder, number, {"x": torch.tensor([number])}, {"epoch": number})


def test_only_two_generations_are_kept(tmp_path):
    save_three(tmp_path)
    assert [path.name for path in generations(tmp_path)] == ["00000002", "00000010"]
    tensors, facts = latest_generation(tmp_path, pytest.fail)
    assert int(tensors["x"]) == facts["epoch"] == 10


def test_a_damaged_generation_gives_way_to_the_one_before_with_a_warning(tmp_path):
    save_three(tmp_path)
    (tmp_path / "00000010" / TENSORS).write_bytes(b"")
    warnings: list[str] = []
    _, facts = latest_generation(tmp_path, warnings.append)
    assert facts["epoch"] == 2
    assert len(warnings) == 1
    assert "00000010" in warnings[0]


def test_all_generations_damaged_is_an_error_and_deletes_nothing(tmp_path):
    save_three(tmp_path)
    for path in generations(tmp_path):
        (path / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        latest_generation(tmp_path, lambda text: None)
    assert len(generations(tmp_path)) == 2


def test_no_generation_is_no_fault(tmp_path):
    assert latest_generation(tmp_path, pytest.fail) is None
    assert latest_generation(tmp_path / "missing", pytest.fail) is None


def test_what_a_killed_save_left_is_in_nobodys_way(tmp_path):
    save_three(tmp_path)
    for name in ("00000010.partial", "00000011.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / TENSORS).write_bytes(b"half")
    assert latest_generation(tmp_path, pytest.fail)[1]["epoch"] == 10
    save_generation(tmp_path, 11, {"x": torch.tensor([11])}, {"epoch": 11})
    assert latest_generation(tmp_path, pytest.fail)[1]["epoch"] == 11
    assert not (tmp_path / "00000011.partial").exists()


def test_facts_that_json_cannot_hold_are_refused_before_anything_is_replaced(saved):
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(saved, {}, {"loss": float("nan")})
    assert load_checkpoint(saved)[1] == FACTS
