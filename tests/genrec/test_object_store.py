"""The object store on a real server process: conditional writes, and what becomes of faults."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from genrec import object_store
from genrec.errors import InputError
from genrec.object_store import ObjectStore, StorageError, cache_of, checked_url


@pytest.fixture
def objects(s3: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(object_store, "FIRST_WAIT", 0.01)
    return ObjectStore(s3)


def test_what_is_written_is_read_listed_and_deleted(objects: ObjectStore, tmp_path: Path, monkeypatch):
    assert objects.read("a/x") is None
    objects.write("a/x", b"1")
    objects.write("b", b"2")
    found = objects.read("a/x")
    assert found is not None
    assert found.data == b"1"
    assert sorted(objects.names()) == ["a/x", "b"]
    assert objects.names("a/") == ["a/x"]
    assert objects.folders() == ["a"]
    monkeypatch.setattr(object_store, "IN_ONE_PIECE", 1_000_000)
    (tmp_path / "file").write_bytes(b"3" * 9_000_000)  # more than a part
    tag = objects.upload(tmp_path / "file", "c")
    assert objects.download("c", tmp_path / "again")[1] == tag == objects.tags()["c"]
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    objects.delete(["a/x", "b", "c", "never"])
    assert objects.names() == []


def test_an_object_is_created_once_and_replaced_only_while_it_is_unchanged(objects: ObjectStore):
    tag = objects.create("x", b"mine")
    assert tag is not None
    assert objects.create("x", b"yours") is None
    newer = objects.replace("x", b"mine, newer", tag)
    assert newer is not None
    assert objects.replace("x", b"yours", tag) is None
    assert objects.replace("never", b"yours", tag) is None
    found = objects.read("x")
    assert found == (b"mine, newer", newer)


def test_of_many_that_create_at_once_one_wins(s3: str):
    won: list[str] = []

    def create(name: str) -> None:
        if ObjectStore(s3).create("x", name.encode()) is not None:
            won.append(name)

    threads = [threading.Thread(target=create, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    found = ObjectStore(s3).read("x")
    assert found is not None
    assert found.data.decode() == won[0]


@pytest.mark.parametrize("kind", ["500", "503", "409", "closed", "slow"])
def test_a_store_that_is_away_for_moments_is_asked_again(objects: ObjectStore, s3_server: Any, kind: str, monkeypatch):
    monkeypatch.setattr(object_store, "READ_SECONDS", 1.0)  # less than a slow answer takes
    s3_server.fail(*[{"kind": kind, "method": "PUT"}] * 2, {"kind": kind, "method": "GET"})
    objects.write("x", b"1")
    found = objects.read("x")
    assert found is not None
    assert found.data == b"1"
    assert s3_server.faults_left() == []


@pytest.mark.parametrize("kind", ["lost", "slow"])
def test_a_conditional_write_whose_answer_was_lost_is_known_as_ones_own(
    objects: ObjectStore, s3_server: Any, kind: str, monkeypatch
):
    monkeypatch.setattr(object_store, "READ_SECONDS", 1.0)
    s3_server.fail({"kind": kind, "method": "PUT"})
    tag = objects.create("x", b"mine")
    assert tag is not None
    s3_server.fail({"kind": kind, "method": "PUT"})
    assert objects.replace("x", b"mine, newer", tag) is not None
    assert objects.create("x", b"yours") is None


def test_half_an_answer_is_no_answer(objects: ObjectStore, s3_server: Any, tmp_path: Path):
    objects.write("x", b"123456")
    s3_server.fail({"kind": "torn", "method": "GET"}, {"kind": "torn", "method": "GET", "skip": 1})
    found = objects.read("x")
    assert found is not None
    assert found.data == b"123456"
    objects.download("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"123456"
    assert s3_server.faults_left() == []


def test_a_store_that_stays_away_is_named_with_the_reason(objects: ObjectStore, s3_server: Any, monkeypatch):
    s3_server.fail(*[{"kind": "503"}] * object_store.ATTEMPTS)
    with pytest.raises(StorageError, match=rf"{objects.url}/x: cannot write, after 7 attempts: .*SlowDown"):
        objects.write("x", b"1")
    s3_server.fail({"kind": "403"})
    with pytest.raises(StorageError, match=r"/x: may not read \(AccessDenied\); fix: credentials on this machine"):
        objects.read("x")
    s3_server.fail({"kind": "501"})
    with pytest.raises(StorageError, match=r"/x: the store knows no conditional writes"):
        objects.create("x", b"1")
    with pytest.raises(StorageError, match="there is no bucket nowhere; fix: create it"):
        ObjectStore("s3://nowhere/x").write("x", b"1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot list, after 7 attempts: EndpointConnectionError"):
        ObjectStore(objects.url).names()


def test_without_credentials_the_machine_is_told_what_to_set(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="this machine has no credentials; fix: set AWS_ACCESS_KEY_ID"):
        ObjectStore(s3).read("x")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:hunter2@bucket/x", r"a URL holds no keys; fix: leave them out"),
        ("s3://key@bucket/x", r"a URL holds no keys"),
        ("s3://key:hunter2/with+slash@bucket/x", r"a URL holds no keys"),
        ("s3://bucket/x?secret=hunter2", r"a URL holds no keys"),
        ("gs://bucket/x", r"Google's store is not supported yet"),
        ("s3:///x", r"expected a folder or s3://BUCKET/PREFIX"),
        ("memory://x", r"expected a folder or s3://BUCKET/PREFIX"),
        ("https://key:hunter2@bucket/x", r"a URL holds no keys"),
    ],
)
def test_urls_that_are_refused_say_why_and_show_no_key(url: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        checked_url(url)
    assert "hunter2" not in str(caught.value)


def test_the_cache_is_one_folder_for_each_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert checked_url("s3://bucket/x/") == "s3://bucket/x"
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    assert cache_of("s3://bucket/a-b").parent == tmp_path
    assert cache_of("s3://bucket/a-b") != cache_of("s3://bucket/a/b")
    monkeypatch.delenv("GENREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_of("s3://bucket/x").parent == tmp_path / "home" / "genrec"
