"""What several test files share: real pictures from the wheels, the tiny bundle, and throw-away folders of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.encoder import Encoder

TINY = Path(__file__).parent / "data" / "tiny"


@pytest.fixture(scope="session")
def tiny() -> Encoder:
    """A real encoder of a kilobyte: average colours of 4 × 4 cells, 48 numbers."""
    return Encoder.load(TINY)


@pytest.fixture(scope="session")
def default_encoder() -> Encoder:
    """The encoder that ships."""
    return Encoder.default()


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Photographs that scikit-image and scikit-learn carry in their wheels."""
    import skimage
    import sklearn

    folder = Path(skimage.__file__).parent / "data"
    names = [
        "astronaut.png",
        "chelsea.png",
        "coffee.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "camera.png",
        "coins.png",
    ]
    found = [folder / name for name in names]
    return found + sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., Path]:
    """make_pictures("shoes/red.png", "hats/blue.png", …) draws a different picture into each file."""

    def make(*names: str, folder: str = "pictures") -> Path:
        top = tmp_path / folder
        for name in names:
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            random = np.random.default_rng(abs(hash_name(name)))
            cells = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(cells).resize((64, 64), Image.Resampling.NEAREST).save(path)
        return top

    return make


@pytest.fixture(scope="session")
def draw_classes() -> Callable[..., Path]:
    """draw_classes(folder) makes a folder per class: a coarse pattern of it under noise, 24 × 24 pixels, in colour."""

    def draw(top: Path, classes: int = 12, pictures: int = 6) -> Path:
        dice = np.random.default_rng(0)
        for number in range(classes):
            pattern = dice.integers(40, 216, (4, 4, 3))
            folder = top / f"class{number:02}"
            folder.mkdir(parents=True)
            for picture in range(pictures):
                noisy = np.kron(pattern, np.ones((6, 6, 1))) + dice.normal(0, 25, (24, 24, 3))
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{picture}.png")
        return top

    return draw


def hash_name(name: str) -> int:
    """A hash of a name that is the same in every run."""
    return int.from_bytes(name.encode()[-8:], "big")
