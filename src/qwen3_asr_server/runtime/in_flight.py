"""What is under way now, and the wait until nothing is.

Knows nothing of what it counts; the services keep live sessions in one, `recordings` keeps recordings.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from qwen3_asr_server.runtime.changes import Changes

T = TypeVar("T")


class InFlight(Generic[T]):
    """Those that are under way; iterating them allows for their coming and going meanwhile."""

    def __init__(self) -> None:
        self._items: set[T] = set()
        self._changes = Changes()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(tuple(self._items))

    @contextmanager
    def hold(self, item: T) -> Iterator[T]:
        """Count something for the length of the `with` block."""
        self._items.add(item)
        try:
            yield item
        finally:
            self._items.discard(item)
            self._changes.tell()

    async def all_over(self) -> None:
        """Wait until none is left."""
        await self._changes.until(lambda: not self._items)
