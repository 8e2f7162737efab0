"""Noticing that files have changed, however that was done.

Directories are watched, not files: editors and `mv` replace a file, and Kubernetes swaps the symbolic link `..data`
above it. Content decides whether something has changed, and it is compared every few seconds even when nothing was
noticed, for file systems that tell nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from pathlib import Path

from watchfiles import awatch

from extproc.config.errors import Snapshot
from extproc.config.files import take_snapshot

logger = logging.getLogger(__name__)

Directories = dict[Path, tuple[int, int]]
"""Directories by path, each with its device and inode: a directory made anew is another one."""
Notices = Callable[[Iterable[Path]], AsyncGenerator[object, None]]
"""Given directories, yields whenever something in them may have changed, and now and then anyway."""

_DEBOUNCE = 0.2
_COMPARE_EVERY = 5.0
_RETRY_AFTER = 5.0
_MAX_LINKS = 40


async def directory_notices(
    directories: Iterable[Path], *, debounce: float = _DEBOUNCE, compare_every: float = _COMPARE_EVERY
) -> AsyncGenerator[object, None]:
    """Yields after changes in `directories`, at most `debounce` seconds late, and every `compare_every` seconds."""
    changes = awatch(
        *directories,
        watch_filter=None,
        debounce=round(debounce * 1000),
        rust_timeout=round(compare_every * 1000),
        yield_on_timeout=True,
        recursive=False,
        ignore_permission_denied=True,
    )
    async with aclosing(changes):
        async for change in changes:
            yield change


async def watch(
    files: Callable[[], Snapshot],
    changed: Callable[[], Awaitable[None]],
    *,
    notices: Notices = directory_notices,
    retry_after: float = _RETRY_AFTER,
) -> None:
    """Awaits `changed` whenever files no longer hold what `files()` says was read of them. Runs until cancelled.

    `files` is asked again and again, so that a reload may read other files than before. Content that `changed` was
    told of is not reported again. An exception, also of `changed`, is logged, and watching goes on after
    `retry_after` seconds.
    """
    comparison = _Comparison(files, changed)
    while True:
        try:
            await comparison.run()
            directories = await asyncio.to_thread(_directories, comparison.known)
            async with aclosing(notices(directories)) as stream:
                async for _ in stream:
                    await comparison.run()
                    if await asyncio.to_thread(_directories, comparison.known) != directories:
                        break
        except Exception:
            logger.exception("watching the configuration failed; trying again in %g s", retry_after)
            await asyncio.sleep(retry_after)


class _Comparison:
    """Files as they were read, or last reported, against what they hold now."""

    def __init__(self, files: Callable[[], Snapshot], changed: Callable[[], Awaitable[None]]) -> None:
        self._files = files
        self._changed = changed
        self._read = self.known = dict(files())

    async def run(self) -> None:
        self._catch_up()
        found = await asyncio.to_thread(take_snapshot, self.known)
        if found != self.known:
            self.known = found
            await self._changed()
            self._catch_up()

    def _catch_up(self) -> None:
        """Takes over what has been read since the last time."""
        read = dict(self._files())
        if read != self._read:
            self._read = self.known = read


def _directories(files: Iterable[Path]) -> Directories:
    """The directories in which a change can give one of `files` another content."""
    found: set[Path] = set()
    for file in files:
        found |= _on_the_way(file.absolute())
    return {path: _identity(path) for path in sorted(found)}


def _on_the_way(file: Path) -> set[Path]:
    """The directory of `file` and of every symbolic link that leads to it, else the nearest that exists."""
    found: set[Path] = set()
    for _ in range(_MAX_LINKS):
        link = next((path for path in (*reversed(file.parents), file) if os.path.islink(path)), None)
        if link is None:
            break
        found.add(link.parent)
        file = link.parent / link.readlink() / file.relative_to(link)
    found.add(next(path for path in file.parents if os.path.isdir(path)))
    return found


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
