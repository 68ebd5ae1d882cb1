"""Run by `make core` with the wheel and its runtime dependencies alone: index and search through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def main(command: str) -> None:
    """Index twelve pictures, find one, and make sure that no optional package was needed or is there."""
    for absent in ("torch", "sklearn", "cv2", "qdrant_client", "matplotlib"):
        try:
            __import__(absent)
        except ImportError:
            continue
        sys.exit(f"{absent} is installed: this environment proves nothing")
    with tempfile.TemporaryDirectory() as scratch:
        top = Path(scratch)
        random = np.random.default_rng(0)
        (top / "pictures").mkdir()
        for number in range(12):
            cells = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
            Image.fromarray(cells).resize((200, 160), Image.Resampling.BICUBIC).save(top / f"pictures/{number}.jpg")
        subprocess.run([command, "index", top / "pictures", "--to", top / "index"], check=True, timeout=120)
        answer = subprocess.run(
            [command, "search", top / "index", top / "pictures/7.jpg", "-k", "1", "--json"],
            check=True,
            timeout=120,
            capture_output=True,
            text=True,
        )
        hit = json.loads(answer.stdout)
        assert hit["path"].endswith("7.jpg"), hit
        assert abs(hit["score"] - 1) < 1e-3, hit
        for arguments in (["train", top / "pictures"], ["export", "timm:resnet18"]):
            refused = subprocess.run(
                [command, *arguments, "--to", top / "bundle"], timeout=120, capture_output=True, text=True
            )
            assert refused.returncode == 1, refused
            assert "pip install 'lookalike[train]'" in refused.stderr, refused.stderr
    print("the core works without extras")


if __name__ == "__main__":
    main(str(Path(sys.argv[1]).resolve()))
