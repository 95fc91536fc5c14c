"""The object store on real server processes, S3's and Google's: conditional writes, and what becomes of faults."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from genrec import gcs_backend, object_backend, s3_backend
from genrec.errors import InputError
from genrec.object_store import ObjectStore, StorageError, cache_of, checked_storage, checked_url, is_url


@pytest.fixture
def objects(place: str, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(object_backend, "FIRST_WAIT", 0.01)
    return ObjectStore(place)


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
    monkeypatch.setattr(s3_backend, "IN_ONE_PIECE", 1_000_000)
    monkeypatch.setattr(gcs_backend, "CHUNK_BYTES", 2**20)
    (tmp_path / "file").write_bytes(bytes(range(250)) * 36_000)  # more than a part
    tag = objects.upload(tmp_path / "file", "c")
    assert objects.download("c", tmp_path / "again")[1] == tag == objects.tags()["c"]
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    objects.delete(["a/x", "b", "c", "never"])
    assert objects.names() == []
    names = [f"many/{number}/a%2Fb c" for number in range(7)]  # more than a page of the stand-in for Google's
    for name in names:
        objects.write(name, b"")
    assert objects.names("many/") == names
    assert ObjectStore(f"{objects.url}/many").folders() == [str(number) for number in range(7)]


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


def test_of_many_that_create_at_once_one_wins(place: str):
    won: list[str] = []

    def create(name: str) -> None:
        if ObjectStore(place).create("x", name.encode()) is not None:
            won.append(name)

    threads = [threading.Thread(target=create, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    found = ObjectStore(place).read("x")
    assert found is not None
    assert found.data.decode() == won[0]


@pytest.mark.parametrize("kind", ["500", "503", "409", "closed", "slow"])
def test_a_store_that_is_away_for_moments_is_asked_again(
    objects: ObjectStore, object_server: Any, kind: str, monkeypatch
):
    monkeypatch.setattr(object_backend, "READ_SECONDS", 1.0)  # less than a slow answer takes
    object_server.fail(*[{"kind": kind, "method": "PUT"}] * 2, {"kind": kind, "method": "GET"})
    objects.write("x", b"1")
    found = objects.read("x")
    assert found is not None
    assert found.data == b"1"
    assert object_server.faults_left() == []


@pytest.mark.parametrize("kind", ["lost", "slow"])
def test_a_conditional_write_whose_answer_was_lost_is_known_as_ones_own(
    objects: ObjectStore, object_server: Any, kind: str, monkeypatch
):
    monkeypatch.setattr(object_backend, "READ_SECONDS", 1.0)
    object_server.fail({"kind": kind, "method": "PUT"})
    tag = objects.create("x", b"mine")
    assert tag is not None
    object_server.fail({"kind": kind, "method": "PUT"})
    assert objects.replace("x", b"mine, newer", tag) is not None
    assert objects.create("x", b"yours") is None


def test_half_an_answer_is_no_answer(objects: ObjectStore, object_server: Any, tmp_path: Path):
    objects.write("x", b"123456")
    object_server.fail({"kind": "torn", "method": "GET"}, {"kind": "torn", "method": "GET", "skip": 1})
    found = objects.read("x")
    assert found is not None
    assert found.data == b"123456"
    objects.download("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"123456"
    assert object_server.faults_left() == []


def test_a_store_that_stays_away_is_named_with_the_reason(objects: ObjectStore, object_server: Any, monkeypatch):
    object_server.fail(*[{"kind": "503"}] * object_backend.ATTEMPTS)
    with pytest.raises(StorageError, match=rf"{objects.url}/x: cannot write, after 7 attempts: .*SlowDown"):
        objects.write("x", b"1")
    object_server.fail({"kind": "403"})
    with pytest.raises(StorageError, match=r"/x: may not read \(AccessDenied\); fix: credentials on this machine"):
        objects.read("x")
    object_server.fail({"kind": "501"})
    with pytest.raises(
        StorageError, match=r"/x: (the store knows no conditional writes|cannot write: HTTP 501 NotImpl)"
    ):
        objects.create("x", b"1")
    elsewhere = ObjectStore(f"{objects.url.partition(':')[0]}://nowhere/x")
    for ask in (lambda: elsewhere.write("x", b"1"), lambda: elsewhere.read("x"), elsewhere.names):
        with pytest.raises(StorageError, match="there is no bucket nowhere; fix: create it"):
            ask()
    monkeypatch.setenv(objects.endpoint_variable, "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot list, after 7 attempts: (EndpointConnection|Connection)Error"):
        ObjectStore(objects.url).names()


def test_a_store_that_ignores_conditions_is_refused_and_its_probe_deleted(
    google_server: Any, monkeypatch: pytest.MonkeyPatch
):
    google_server.make_bucket("careless")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google_server.address.removeprefix("http://"))
    objects = ObjectStore("gs://careless")
    with pytest.raises(StorageError, match=r"does not keep the conditions of writes \(ifGenerationMatch\)"):
        objects.probe()
    assert objects.names() == []


def test_a_store_that_keeps_conditions_passes_and_nothing_stays_in_it(objects: ObjectStore):
    objects.probe()
    assert objects.names() == []


# -- Google's uploads in chunks ---------------------------------------------------------------------------------------


@pytest.fixture
def google(google_server: Any, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    google_server.make_bucket("chunks")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", google_server.address)
    monkeypatch.setattr(object_backend, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(gcs_backend, "CHUNK_BYTES", 2**18)
    return ObjectStore("gs://chunks")


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(251)) * 4000)  # four chunks, the last of them smaller
    return path


@pytest.mark.parametrize("kind", ["503", "closed", "lost"])
def test_an_upload_in_chunks_goes_on_where_a_fault_left_it(
    google: ObjectStore, google_server: Any, large: Path, kind: str
):
    google_server.fail(*[{"kind": kind, "name": "/session/", "skip": skip} for skip in (1, 2, 3)])
    tag = google.upload(large, "x")
    assert google_server.faults_left() == []
    assert google.download("x", large.with_name("again")) == (google.download("x", large.with_name("more"))[0], tag)
    assert large.with_name("again").read_bytes() == large.read_bytes()


def test_an_upload_that_the_store_has_forgotten_begins_again(
    google: ObjectStore, google_server: Any, large: Path, monkeypatch: pytest.MonkeyPatch
):
    send, sent = gcs_backend.GoogleBackend._put_chunk, []

    def forgetful(self: Any, session: str, chunk: bytes, start: int, size: int) -> Any:
        sent.append((session, start))
        if len(sent) == 3:
            google_server.forget_uploads()
        return send(self, session, chunk, start, size)

    monkeypatch.setattr(gcs_backend.GoogleBackend, "_put_chunk", forgetful)
    google.upload(large, "x")
    assert [start for _, start in sent] == [0, 2**18, 2**19, 0, 2**18, 2**19, 3 * 2**18]
    assert google.download("x", large.with_name("again"))
    assert large.with_name("again").read_bytes() == large.read_bytes()


def test_a_store_that_takes_half_of_every_chunk_gets_all(google: ObjectStore, google_server: Any, large: Path):
    google_server.make_bucket("short")
    objects = ObjectStore("gs://short")
    objects.upload(large, "x")
    objects.download("x", large.with_name("again"))
    assert large.with_name("again").read_bytes() == large.read_bytes()


def test_an_upload_that_never_comes_through_is_given_up(
    google: ObjectStore, google_server: Any, large: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(object_backend, "ATTEMPTS", 2)
    google_server.fail(*[{"kind": "503", "name": "/session/", "skip": 1}] * 100)
    with pytest.raises(StorageError, match=r"gs://chunks/x: cannot write, after 2 attempts: HTTP 503"):
        google.upload(large, "x")
    google_server.fail()
    assert google.names() == []


def test_without_googles_credentials_the_machine_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    pytest.importorskip("google.auth")
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(StorageError, match="no credentials .*; fix: run gcloud auth application-default login"):
        ObjectStore("gs://bucket/x").read("x")


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
        ("gs://key:hunter2@bucket/x", r"a URL holds no keys; fix: leave them out and set GOOGLE_APPLICATION_CREDENT"),
        ("gs:///x", r"expected a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("s3:///x", r"expected a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("memory://x", r"expected a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"),
        ("https://key:hunter2@bucket/x", r"a URL holds no keys"),
    ],
)
def test_urls_that_are_refused_say_why_and_show_no_key(url: str, message: str):
    with pytest.raises(InputError, match=message) as caught:
        checked_url(url)
    assert "hunter2" not in str(caught.value)


def test_a_file_url_is_a_folder(tmp_path: Path):
    assert checked_storage(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"
    assert checked_storage("file://localhost/runs") == "/runs"
    assert not is_url(checked_storage("file:///runs"))
    for url in ("file://runs", "file://server/runs"):
        with pytest.raises(InputError, match=re.escape(f"storage {url}: a folder of this machine is file:///FOLDER")):
            checked_storage(url)


def test_the_cache_is_one_folder_for_each_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert checked_url("s3://bucket/x/") == "s3://bucket/x"
    monkeypatch.setenv("GENREC_CACHE", str(tmp_path))
    assert cache_of("s3://bucket/a-b").parent == tmp_path
    assert cache_of("s3://bucket/a-b") != cache_of("s3://bucket/a/b")
    monkeypatch.delenv("GENREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_of("s3://bucket/x").parent == tmp_path / "home" / "genrec"
