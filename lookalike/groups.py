"""What hangs together: groups that pairs join (union-find)."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Groups"]


class Groups:
    """Numbers from 0, each alone at first; joining two makes one group of theirs. The smallest number names a group.

    Args:
        count: how many numbers there are.
    """

    def __init__(self, count: int = 0) -> None:
        self._above = list(range(count))

    def __len__(self) -> int:
        """How many numbers there are."""
        return len(self._above)

    def add(self) -> int:
        """One number more, alone."""
        self._above.append(len(self._above))
        return len(self._above) - 1

    def first(self, number: int) -> int:
        """The smallest number of its group."""
        above = self._above
        while above[number] != number:
            above[number] = above[above[number]]  # halves the way for the next one who asks
            number = above[number]
        return number

    def join(self, one: int, other: int) -> None:
        """The groups of the two become one."""
        low, high = sorted((self.first(one), self.first(other)))
        self._above[high] = low

    def firsts(self, pairs: Iterable[tuple[int, int]] = ()) -> list[int]:
        """The smallest number of its group for each, after joining all pairs."""
        for one, other in pairs:
            self.join(one, other)
        return [self.first(number) for number in range(len(self))]
