"""Uploads on disk: whole or not at all, found by their names only, removed in time, bounded together."""

import asyncio
import fcntl
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen3_asr_server.errors import AsrServerError, IdleTimeout, InvalidValue, Overloaded, SourceUnreachable, TooLarge
from qwen3_asr_server.runtime.sources import SourceLimits, StoredUpload, fetched
from qwen3_asr_server.runtime.uploads import UploadFolder, Uploads

FOLDER = "0123456789abcdef" * 2
KEY = f"{FOLDER}/talk.wav"
CONTENT = bytes(range(256)) * 10
KEEP_S = 3600.0


class Disk:
    """A folder with uploads, and its clock."""

    def __init__(self, path: Path, max_total_bytes: int = 10_000) -> None:
        self.now = 1_000_000.0
        self.path = path / "data" / "uploads"
        self.folder = UploadFolder(self.path, KEEP_S, clock=lambda: self.now)
        self.uploads = Uploads(self.folder, max_total_bytes)

    async def store(self, key: str = KEY, *parts: bytes, max_bytes: int = 5_000) -> None:
        await self.uploads.store(key, chunks(*(parts or (CONTENT,))), max_bytes, stall_s=5)
        os.utime(self.folder.place_of(key), (self.now, self.now))

    async def read(self, key: str = KEY) -> bytes:
        async with fetched(StoredUpload(key), SourceLimits(uploads=self.folder)) as path:
            return path.read_bytes()

    @property
    def files(self) -> list[Path]:
        return [path for path in self.path.rglob("*") if path.is_file()]


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


@pytest.mark.parametrize("parts", [(b"",), (CONTENT,), (CONTENT[:1], b"", CONTENT[1:])])
async def test_what_was_stored_is_read(disk: Disk, parts: tuple[bytes, ...]) -> None:
    await disk.store(KEY, *parts)
    assert await disk.read() == b"".join(parts)


@pytest.mark.parametrize("name", ["a", "über 声.wav", "..wav", ".part-x", "x" * 255, "%2e%2e", "a\\b", "-rf"])
async def test_names_never_become_paths(disk: Disk, name: str) -> None:
    await disk.store(f"{FOLDER}/{name}")
    assert await disk.read(f"{FOLDER}/{name}") == CONTENT
    assert [file.parent.name for file in disk.files] == [FOLDER]
    assert set(disk.files[0].name) <= set("0123456789abcdef")


async def test_only_the_owner_may_read(disk: Disk) -> None:
    await disk.store()
    assert disk.files[0].stat().st_mode & 0o777 == 0o600
    for folder in (disk.path / FOLDER, disk.path, disk.path.parent):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        FOLDER,
        f"{FOLDER}/",
        f"{FOLDER}/..",
        f"{FOLDER}/.",
        f"{FOLDER}/../{FOLDER}/talk.wav",
        f"{FOLDER}/talk.wav/",
        f"{FOLDER}/other.wav",
        f"../{KEY}",
        f"/{KEY}",
        f"{FOLDER[:-1]}/talk.wav",
        f"{FOLDER.upper()}/talk.wav",
        f"{'f' * 32}/talk.wav",
        f"{FOLDER}/a\0b",
        f"{FOLDER}/\ud800",
        f"{FOLDER}/{'x' * 256}",
        "../uploads",
        "etc/passwd",
    ],
)
async def test_other_names_lead_nowhere(disk: Disk, key: str) -> None:
    await disk.store()
    with pytest.raises(SourceUnreachable) as error:
        await disk.read(key)
    assert error.value.status == 404
    assert str(disk.path) not in error.value.message


async def test_nothing_is_found_where_nothing_is_kept(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreachable):
        await Disk(tmp_path).read()
    with pytest.raises(SourceUnreachable):
        async with fetched(StoredUpload(KEY), SourceLimits()):
            pass


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_links_are_not_followed(disk: Disk, tmp_path: Path, what: str) -> None:
    await disk.store()
    place = disk.folder.place_of(KEY)
    elsewhere = tmp_path / "elsewhere"
    (place if what == "file" else place.parent).rename(elsewhere)
    (place if what == "file" else place.parent).symlink_to(elsewhere)
    with pytest.raises(AsrServerError):
        await disk.read()


async def test_a_name_is_given_once(disk: Disk) -> None:
    await disk.store()
    with pytest.raises(InvalidValue):
        await disk.store(KEY, b"other")
    assert await disk.read() == CONTENT
    assert len(disk.files) == 1


async def test_a_stored_file_is_bounded_by_the_door_that_reads_it(disk: Disk) -> None:
    await disk.store()
    with pytest.raises(TooLarge):
        async with fetched(StoredUpload(KEY), replace(SourceLimits(uploads=disk.folder), max_bytes=100)):
            pass


async def test_nothing_half_written_stays(disk: Disk) -> None:
    async def stopping() -> AsyncIterator[bytes]:
        yield CONTENT
        await asyncio.Event().wait()

    async def breaking() -> AsyncIterator[bytes]:
        yield CONTENT
        raise InvalidValue("The form breaks off.")

    with pytest.raises(IdleTimeout):
        await disk.uploads.store(KEY, stopping(), 5_000, stall_s=0.01)
    with pytest.raises(InvalidValue):
        await disk.uploads.store(KEY, breaking(), 5_000, stall_s=5)
    with pytest.raises(TooLarge):
        await disk.store(max_bytes=100)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await disk.uploads.store(KEY, stopping(), 5_000, stall_s=5)
    assert not disk.files
    await disk.store(KEY, bytes(5_000))  # and nothing counts as stored
    await disk.store(f"{FOLDER}/second", bytes(4_999))


async def test_who_leaves_while_a_file_is_made_leaves_none(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    made, go_on = threading.Event(), threading.Event()
    make = tempfile.mkstemp

    def slowly(**where: Any) -> tuple[int, str]:
        found = make(**where)
        made.set()
        go_on.wait(10)
        return found

    monkeypatch.setattr(tempfile, "mkstemp", slowly)
    leaving = asyncio.create_task(disk.store())
    await asyncio.to_thread(made.wait)
    leaving.cancel()
    await asyncio.wait({leaving})
    assert leaving.cancelled()
    assert len(disk.files) == 1
    go_on.set()
    async with asyncio.timeout(10):
        while disk.files:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)


async def test_all_files_together_are_bounded(disk: Disk) -> None:
    await disk.store(f"{FOLDER}/a", bytes(5_000))
    await disk.store(f"{FOLDER}/b", bytes(4_000))
    with pytest.raises(Overloaded) as error:
        await disk.store(f"{FOLDER}/c", bytes(1_000))
    assert error.value.retry_after_s > 0
    assert len(disk.files) == 2
    disk.now += KEEP_S
    await disk.uploads.sweep()
    await disk.store(f"{FOLDER}/c", bytes(1_000))


async def test_empty_files_are_bounded_too(disk: Disk) -> None:
    await disk.store(f"{FOLDER}/a", b"")
    await disk.store(f"{FOLDER}/b", b"")
    await disk.store(f"{FOLDER}/c", b"")
    for _ in range(2):
        with pytest.raises(Overloaded):
            await disk.store(f"{FOLDER}/d", b"")
        await disk.uploads.sweep()
    assert len(disk.files) == 3


async def test_what_a_server_before_has_stored_counts(disk: Disk, tmp_path: Path) -> None:
    await disk.store(f"{FOLDER}/a", bytes(5_000))
    again = Disk(tmp_path, max_total_bytes=5_001)
    await again.uploads.sweep()
    with pytest.raises(Overloaded):
        await again.store(f"{FOLDER}/b", b"12")
    assert await again.read(f"{FOLDER}/a") == bytes(5_000)


async def test_old_files_are_removed(disk: Disk) -> None:
    await disk.store()
    disk.now += KEEP_S - 1
    await disk.store(f"{'f' * 32}/later.wav")
    await disk.uploads.sweep()
    assert await disk.read() == CONTENT
    disk.now += 1
    with pytest.raises(SourceUnreachable):  # also before it is removed
        await disk.read()
    await disk.uploads.sweep()
    assert [entry.name for entry in disk.path.iterdir()] == ["f" * 32]
    disk.now += KEEP_S
    await disk.uploads.sweep()
    assert not list(disk.path.iterdir())


async def test_what_was_left_half_written_is_removed_and_what_is_being_written_is_not(disk: Disk) -> None:
    disk.path.mkdir(parents=True)
    left, held = disk.path / ".part-left", disk.path / ".part-held"
    with held.open("wb") as holding:
        fcntl.flock(holding, fcntl.LOCK_EX)
        left.write_bytes(CONTENT)
        for part in (left, held):
            os.utime(part, (disk.now - 60, disk.now - 60))
        await disk.uploads.sweep()
        assert disk.files == [held]


async def test_only_uploads_are_swept(disk: Disk) -> None:
    await disk.store()
    foreign = [disk.path / "notes", disk.path.parent / "jobs.db"]
    for file in foreign:
        file.write_text("mine")
    disk.now += 10 * KEEP_S
    await disk.uploads.sweep()
    assert all(file.exists() for file in foreign)


async def test_the_sweeper_begins_at_once_and_makes_no_folder(disk: Disk) -> None:
    await disk.store()
    disk.now += KEEP_S
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        sweeping = group.create_task(disk.uploads.run())
        while (disk.path / FOLDER).exists():  # noqa: ASYNC110 - a folder tells nobody
            await asyncio.sleep(0)
        sweeping.cancel()
    fresh = Disk(disk.path / "fresh")
    await fresh.uploads.sweep()
    assert not fresh.path.exists()


async def test_a_disk_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(Overloaded):
        await Disk(tmp_path).store()


@pytest.mark.parametrize("size", [1, 5_000])
async def test_a_disk_that_becomes_full(disk: Disk, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(disk.path / "part")))
    with pytest.raises(Overloaded, match="no room"):
        await disk.store(KEY, bytes(size))
    assert not disk.files
