"""Files and notices of several servers at one PostgreSQL: nobody removes what another needs, and all of it is whole."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentrt.serve.jobs.postgres.notices import Notice, notice_of, progress_texts
from latentrt.serve.jobs.postgres.shared_files import RemoteFiles, SharedFolder
from latentrt.serve.jobs.store import StateError, StorageError
from latentrt.serve.messages import Progress

from .conftest import Joined
from .fakes import names_in
from .runners import checked
from .store_parts import new_job, picture, sha256


@checked
async def test_a_job_is_claimed_only_when_its_inputs_are_written(
    joined: Joined, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = joined(), joined()
    write, data = store._jobs._files.write, b"picture"
    seen: list[Any] = []

    def writing(folder: Any, name: str, content: bytes) -> None:
        seen.append(other._jobs.claim(True, ()))
        other._jobs.sweep()  # does not take it for a file of nobody
        write(folder, name, content)
        other._jobs.sweep()
        seen.append(other._jobs.claim(True, ()))

    monkeypatch.setattr(store._jobs._files, "write", writing)
    await store.add(new_job("job", inputs={sha256(data): data}))
    assert seen == [None, None]
    kept = await other.claim(alone=True)
    assert kept is not None
    assert await other.input(sha256(data)) == data

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store._jobs._files, "write", full)
    with pytest.raises(StorageError, match="No space left") as raised:
        await store.add(new_job("second", inputs={sha256(data): data}))
    assert raised.value.full
    assert await store.get("second") is None


@checked
async def test_an_input_that_is_needed_again_is_not_swept(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job comes with the same picture between the moment when nobody needed it and that of its removal."""
    store, other, data = joined(), joined(), b"picture"
    name = sha256(data)
    await store.add(new_job("first", inputs={name: data}))
    await store.cancel("first")
    remove = other._jobs._remove_input

    def removing(unused: str) -> None:
        store._jobs.add(new_job("second", inputs={name: data}))
        remove(unused)

    monkeypatch.setattr(other._jobs, "_remove_input", removing)
    await other.sweep()
    assert await store.input(name) == data


@checked
async def test_files_that_others_are_writing_are_left_alone(joined: Joined, tmp_path: Path) -> None:
    store = joined()
    young, old = tmp_path / "results" / ".young.partial", tmp_path / "results" / ".old.partial"
    for file in (young, old):
        file.write_bytes(b"half")
    os.utime(old, (1.0, 1.0))
    await store.sweep()
    assert names_in(tmp_path / "results") == [".young.partial"]


def test_other_files_than_those_of_the_database_are_refused(joined: Joined, tmp_path: Path) -> None:
    joined()
    with pytest.raises(StateError, match="does not have the files of these jobs"):
        joined(files=tmp_path / "elsewhere")
    (tmp_path / "marks" / "store").write_text("another")
    with pytest.raises(StateError, match="has files of another database"):
        joined()


@checked
async def test_files_may_be_objects(joined: Joined) -> None:
    address = f"memory://{time.monotonic_ns()}/jobs"
    store, other = joined(files=address), joined(files=address)
    data = b"picture"
    await store.add(new_job("job", inputs={sha256(data): data}))
    kept = await other.claim(alone=True)
    assert kept is not None
    assert await other.input(sha256(data)) == data
    result = await other.keep_picture(kept.claim, picture("job"))
    await other.keep_picture(kept.claim, picture("job", 1))
    assert await other.end(kept.claim, "done", pictures=[result])
    await store.sweep()
    files = RemoteFiles(address)
    assert (files.names("inputs"), files.names("results")) == ([], [result.name])
    assert await store.picture(result) == b"png"
    assert files.read("results", "none") is None
    files.remove("results", "none")


def test_what_an_object_store_raises_is_a_fault_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files = RemoteFiles("memory://faults")

    class CredentialsError(Exception):
        pass

    def failing(*_: Any) -> None:
        raise CredentialsError("no credentials")

    monkeypatch.setattr(files._system, "pipe_file", failing)
    with pytest.raises(OSError, match="memory://faults: CredentialsError: no credentials"):
        files.write("results", "a", b"")
    with pytest.raises(StateError, match="cannot be used"):
        RemoteFiles("nothing-of-the-kind://a/b")


def test_a_shared_folder_is_written_by_several_at_once(tmp_path: Path) -> None:
    folders = [SharedFolder(tmp_path) for _ in range(4)]
    data = b"x" * 100_000
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: folders[n % 4].write("inputs", sha256(data), data), range(40)))
    assert folders[0].read("inputs", sha256(data)) == data
    assert names_in(tmp_path / "inputs") == [sha256(data)]


# --- notices

PROGRESS = st.builds(
    Progress,
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=64),
    *(st.integers(0, 10_000) for _ in range(3)),
)


@given(st.lists(PROGRESS, max_size=400))
def test_steps_are_told_in_payloads_that_postgresql_takes(events: list[Progress]) -> None:
    texts = list(progress_texts("0123456789abcdef", events))
    assert all(len(text.encode()) < 8000 for text in texts)
    notices = [notice_of(text) for text in texts]
    assert [event for notice in notices if notice for event in notice.progress] == events


@pytest.mark.parametrize("text", ["", "a", "a ?", "a ~", "a ~[1]", "a ~[[1]]", "a ~{}x", "a ~null"])
def test_what_is_no_notice_is_ignored(text: str) -> None:
    assert notice_of(text) is None


def test_notices_are_read() -> None:
    assert notice_of("me =job-1") == Notice("me", "=", "job-1", ())
    assert notice_of("me +job") == Notice("me", "+", "job", ())
