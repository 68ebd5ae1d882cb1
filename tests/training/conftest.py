"""Small pictures that can be learned in a few steps, and a configuration that takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lookalike.training.config import TrainConfig, read_config


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small tensors are faster in one thread, and do not stand still where the cores have other work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory, draw_classes: Callable[..., Path]) -> Path:
    """Twelve classes of six pictures."""
    return draw_classes(tmp_path_factory.mktemp("classes") / "pictures")


@pytest.fixture(scope="session")
def configure(classes: Path) -> Callable[..., TrainConfig]:
    """configure(loss={"kind": "triplet"}, …): a run of seconds; the tables given go over the defaults."""

    def make(**tables: Any) -> TrainConfig:
        document: dict[str, Any] = {
            "name": "test",
            "data": {"root": str(classes), "size": [24, 24], "validation": 0.25, "test": 0.25, "check_leaks": False},
            "network": {"name": "small", "dim": 16, "options": {"widths": [8, 12, 16]}},
            "sampler": {"classes": 4, "pictures": 4},
            "optimizer": {"rate": 3e-3},
            "loop": {
                "steps": 8,
                "report_every": 2,
                "validate_every": 4,
                "checkpoint_seconds": 0.0,
                "precision": "fp32",
                "threads": 1,
                "tensorboard": False,
            },
        }
        for name, table in tables.items():
            document[name] = {**document.get(name, {}), **table} if isinstance(table, dict) else table
        return read_config(document)

    return make
