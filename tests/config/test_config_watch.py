"""S0.D19, S1.17, S1.24: a change of a file is noticed, whoever makes it and however."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from extproc.config.errors import Snapshot
from extproc.config.files import take_snapshot
from extproc.config.watch import directory_notices, watch

WAIT = 10.0


class Reader:
    """Stands for whoever loads the configuration: reads its files and signals every reload."""

    def __init__(self, *paths: Path, fail: bool = False, keep: bool = False) -> None:
        self.paths = paths
        self.read: Snapshot = take_snapshot(paths)
        self.fail = fail
        self.keep = keep
        self.reloads: asyncio.Queue[Snapshot] = asyncio.Queue()

    async def reload(self) -> None:
        found = take_snapshot(self.paths)
        if not self.keep:
            self.read = found
        self.reloads.put_nowait(found)
        if self.fail:
            raise RuntimeError("no reload today")

    async def reloaded(self) -> Snapshot:
        return await asyncio.wait_for(self.reloads.get(), WAIT)


class Notices:
    """Notices that a test gives out; `look` returns when the watch has dealt with one."""

    def __init__(self) -> None:
        self.directories: list[Path] = []
        self.started = 0
        self._wake: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self._idle = asyncio.Event()

    async def __call__(self, directories: Iterable[Path]) -> AsyncGenerator[object, None]:
        self.directories = list(directories)
        self.started += 1
        while True:
            self._idle.set()
            if (error := await self._wake.get()) is not None:
                raise error
            yield None

    async def ready(self) -> None:
        await asyncio.wait_for(self._idle.wait(), WAIT)

    async def look(self, error: BaseException | None = None) -> None:
        await self.ready()
        self._idle.clear()
        self._wake.put_nowait(error)
        await self.ready()


@asynccontextmanager
async def watching(
    reader: Reader, notices: Callable[[Iterable[Path]], AsyncGenerator[object, None]]
) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(watch(lambda: reader.read, reader.reload, notices=notices, retry_after=0))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, WAIT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("one")
    return path


def edit(path: Path, text: str = "two") -> None:
    path.write_text(text)


def replace(path: Path, text: str = "two") -> None:
    other = path.with_suffix(".tmp")
    other.write_text(text)
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("change", [edit, replace, remove])
async def test_a_change_is_noticed_once(path: Path, change: Callable[[Path], None]) -> None:
    reader, notices = Reader(path), Notices()
    async with watching(reader, notices):
        await notices.ready()
        change(path)
        await notices.look()
        assert await reader.reloaded() == take_snapshot([path])
        await notices.look()
        assert reader.reloads.empty()


async def test_a_touch_or_the_same_content_is_no_change(path: Path, tmp_path: Path) -> None:
    reader, notices = Reader(path), Notices()
    async with watching(reader, notices):
        await notices.ready()
        os.utime(path, (1, 1))
        edit(tmp_path / "neighbour")
        remove(path)
        edit(path, "one")
        await notices.look()
        assert reader.reloads.empty()


async def test_a_change_before_the_watch_began_is_noticed(path: Path) -> None:
    reader, notices = Reader(path), Notices()
    edit(path)
    async with watching(reader, notices):
        assert await reader.reloaded() == take_snapshot([path])


async def test_a_change_that_could_not_be_used_is_not_reported_again(path: Path) -> None:
    """The caller keeps what it has read before; the same content is not tried twice."""
    reader, notices = Reader(path, keep=True), Notices()
    async with watching(reader, notices):
        await notices.ready()
        edit(path)
        await notices.look()
        await reader.reloaded()
        await notices.look()
        assert reader.reloads.empty()


async def test_files_that_a_reload_reads_for_the_first_time_are_watched(path: Path, tmp_path: Path) -> None:
    reader, notices = Reader(path), Notices()
    limits = tmp_path / "elsewhere" / "limits.yaml"
    limits.parent.mkdir()
    limits.write_text("one")
    async with watching(reader, notices):
        await notices.ready()
        reader.paths = (path, limits)
        edit(path)
        await notices.look()
        await reader.reloaded()
        assert set(notices.directories) == {tmp_path, limits.parent}
        edit(limits)
        await notices.look()
        assert (await reader.reloaded())[limits] == take_snapshot([limits])[limits]


async def test_an_error_is_logged_and_watching_goes_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader, notices = Reader(path, fail=True), Notices()
    async with watching(reader, notices):
        await notices.ready()
        edit(path)
        await notices.look()
        await reader.reloaded()
        await notices.look(OSError(28, "no space left for watches"))
        edit(path, "three")
        await notices.look()
        await reader.reloaded()
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
    assert "no space left for watches" in caplog.text
    assert "no reload today" in caplog.text


async def test_cancelling_stops_it(path: Path) -> None:
    reader, notices = Reader(path), Notices()
    async with watching(reader, notices) as task:
        await notices.ready()
    assert task.cancelled()


class TestDirectories:
    """Where a change may be made."""

    async def directories(self, path: Path) -> set[Path]:
        reader, notices = Reader(path), Notices()
        async with watching(reader, notices):
            await notices.ready()
        return set(notices.directories)

    async def test_of_a_file(self, path: Path) -> None:
        assert await self.directories(path) == {path.parent}

    async def test_of_a_file_that_does_not_exist(self, tmp_path: Path) -> None:
        assert await self.directories(tmp_path / "a" / "b" / "config.yaml") == {tmp_path}

    async def test_of_a_chain_of_links(self, tmp_path: Path) -> None:
        for name in ("one", "two", "three"):
            (tmp_path / name).mkdir()
        (tmp_path / "three" / "file").write_text("x")
        (tmp_path / "two" / "link").symlink_to("../three/file")
        (tmp_path / "one" / "config.yaml").symlink_to(tmp_path / "two" / "link")
        found = {directory.resolve() for directory in await self.directories(tmp_path / "one" / "config.yaml")}
        assert found == {tmp_path / "one", tmp_path / "two", tmp_path / "three"}

    async def test_of_a_linked_directory(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "outer").mkdir()
        (tmp_path / "outer" / "link").symlink_to(tmp_path)
        assert await self.directories(tmp_path / "outer" / "link" / "config.yaml") == {tmp_path / "outer", tmp_path}

    async def test_of_a_link_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "loop").symlink_to("loop")
        assert await self.directories(tmp_path / "loop") == {tmp_path}

    async def test_that_is_made_anew_is_watched_again(self, tmp_path: Path) -> None:
        path = tmp_path / "made" / "config.yaml"
        path.parent.mkdir()
        path.write_text("one")
        reader, notices = Reader(path), Notices()
        async with watching(reader, notices):
            await notices.ready()
            path.unlink()
            path.parent.rename(tmp_path / "gone")
            path.parent.mkdir()
            path.write_text("two")
            await notices.look()
            await reader.reloaded()
            assert notices.started == 2


class TestOnThisFileSystem:
    """With the notices of the operating system; what is compared regularly is out of the way."""

    NOTICES = staticmethod(partial(directory_notices, debounce=0.05, compare_every=60.0))

    @pytest.fixture
    def config_map(self, tmp_path: Path) -> Path:
        """A mounted Kubernetes ConfigMap: config.yaml -> ..data/config.yaml, ..data -> ..first."""
        (tmp_path / "..first").mkdir()
        (tmp_path / "..first" / "config.yaml").write_text("one")
        (tmp_path / "..data").symlink_to("..first")
        (tmp_path / "config.yaml").symlink_to("..data/config.yaml")
        return tmp_path / "config.yaml"

    async def notice(self, reader: Reader, change: Callable[[int], None]) -> None:
        """Makes changes until one is noticed: nothing tells when the operating system has begun to watch."""
        async with watching(reader, self.NOTICES):
            for attempt in range(50):
                change(attempt)
                with suppress(TimeoutError):
                    await asyncio.wait_for(reader.reloads.get(), 0.3)
                    return
        pytest.fail("no change was noticed")

    async def test_an_edit(self, path: Path) -> None:
        await self.notice(Reader(path), lambda attempt: edit(path, f"version {attempt}"))

    async def test_an_atomic_replacement(self, path: Path) -> None:
        await self.notice(Reader(path), lambda attempt: replace(path, f"version {attempt}"))

    async def test_a_file_that_comes_back(self, path: Path) -> None:
        reader = Reader(path)
        remove(path)
        reader.read = take_snapshot([path])
        await self.notice(reader, lambda attempt: edit(path, f"version {attempt}"))

    async def test_a_config_map_that_is_updated(self, config_map: Path) -> None:
        def change(attempt: int) -> None:
            version = config_map.parent / f"..version{attempt}"
            version.mkdir()
            edit(version / "config.yaml", f"version {attempt}")
            link = config_map.parent / "..data_tmp"
            link.symlink_to(version.name)
            link.replace(config_map.parent / "..data")

        await self.notice(Reader(config_map), change)

    async def test_what_is_not_noticed_is_found_by_comparing(self, path: Path, tmp_path: Path) -> None:
        async def elsewhere(_: Iterable[Path]) -> AsyncGenerator[object, None]:
            other = tmp_path / "other"
            other.mkdir(exist_ok=True)
            async for notice in directory_notices([other], compare_every=0.05):
                yield notice

        reader = Reader(path)
        async with watching(reader, elsewhere):
            edit(path)
            assert await reader.reloaded() == take_snapshot([path])
