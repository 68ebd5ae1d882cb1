"""Groups joined by pairs: against paths through the pairs, step by step."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike.groups import Groups


def reachable(count: int, pairs: list[tuple[int, int]], start: int) -> set[int]:
    """All numbers that a walk along pairs comes to."""
    found, border = {start}, [start]
    while border:
        here = border.pop()
        for pair in pairs:
            if here in pair:
                other = pair[0] if pair[1] == here else pair[1]
                if other not in found:
                    found.add(other)
                    border.append(other)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_what_can_be_reached(seed: int) -> None:
    dice = np.random.default_rng(seed)
    count = 30
    pairs = [(int(a), int(b)) for a, b in dice.integers(0, count, (int(dice.integers(0, 40)), 2))]
    firsts = Groups(count).firsts(pairs)

    assert firsts == [min(reachable(count, pairs, number)) for number in range(count)]


def test_numbers_come_one_by_one() -> None:
    groups = Groups()
    assert [groups.add() for _ in range(4)] == [0, 1, 2, 3]
    groups.join(3, 1)
    groups.join(3, 3)
    assert len(groups) == 4
    assert groups.firsts() == [0, 1, 2, 1]
    assert [groups.first(number) for number in (1, 3)] == [1, 1]


def test_a_long_chain_is_one_group() -> None:
    """No recursion, whatever the order."""
    count = 50_000
    assert set(Groups(count).firsts((n + 1, n) for n in reversed(range(count - 1)))) == {0}
