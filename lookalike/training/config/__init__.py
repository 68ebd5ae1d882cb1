"""A run as a document: TOML in, every problem at once, the resolved TOML out.

::

    document.py    reading and writing; what is wrong is said in words, all of it in one `ConfigError`
    checks.py      what does not exist, what cannot be together, and what this machine lacks
    options.py     the free keys of a table as arguments of a loss, a miner or a network; the nearest name
    tables.py      `TrainConfig`: one table per part of a run

The parts of the program get plain arguments, never these tables.
"""

from __future__ import annotations

from lookalike.training.config.document import read_config, write_config
from lookalike.training.config.tables import TrainConfig, ValidationConfig

__all__ = ["TrainConfig", "ValidationConfig", "read_config", "write_config"]
