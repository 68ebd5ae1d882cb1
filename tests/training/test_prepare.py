"""What a run works on: who made the pictures it draws and asks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import ConfigError
from lookalike.training.config import TrainConfig
from lookalike.training.distributed import Group
from lookalike.training.folder import RunFolder
from lookalike.training.prepare import prepare

Configure = Callable[..., TrainConfig]


def quiet(line: str) -> None:
    """Nobody listens."""


def made(paths: list[str], rows: np.ndarray) -> np.ndarray:
    return np.array([os.path.basename(paths[row])[0] for row in rows])  # noqa: PTH119


def test_file_names_tell_who_made_the_pictures_of_a_batch_and_of_an_episode(
    configure: Configure, tmp_path: Path
) -> None:
    """The k-th picture of each class is by one maker; the judge knows makers too."""
    config = configure(
        data={"maker": r"(\d)\.png$"},
        sampler={"kind": "classes", "same_makers": True, "classes": 4, "pictures": 3},
        validation={"episodes": 10, "way": 2, "within_category": False},
    )
    material = prepare(config, RunFolder(tmp_path / "run", quiet), Group())
    for number in range(5):
        makers = made(list(material.paths), material.draw(number).rows).reshape(4, 3)
        assert (makers == makers[0]).all() and len(set(makers[0])) == 3
    judge = material.judge
    assert judge is not None and judge.makers is not None
    names = made(list(material.paths), judge.rows)
    assert [names[judge.makers == maker].tolist() for maker in np.unique(judge.makers)] == [
        [name] * (names == name).sum() for name in "012345"
    ]


@pytest.mark.parametrize(
    ("maker", "problem"), [(r"drawer(\d)", "does not match the file name of"), (r"\d\.png", "needs a group")]
)
def test_a_maker_that_file_names_do_not_tell(configure: Configure, tmp_path: Path, maker: str, problem: str) -> None:
    """Neither a name that does not match nor an expression without a group is taken for one maker of everything."""
    config = configure(data={"maker": maker}, sampler={"same_makers": True})
    with pytest.raises(ConfigError, match=f"data.maker .*{problem}"):
        prepare(config, RunFolder(tmp_path / "run", quiet), Group())
