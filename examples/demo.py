"""The demonstration: index real pictures, search them, say what was found, write a contact sheet.

    make demo                            photographs and handwritten digits that come with two Python packages
    make demo PICTURES=~/Pictures        your own

Nothing is downloaded. The queries are crops and re-encodings of the pictures, and digits that were not indexed.
Everything is written below demo/.
"""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from PIL import Image

from lookalike import Encoder, LookalikeError, Searcher, open_index
from lookalike.catalogue import rows
from lookalike.images import read

OUT = Path("demo")
LOOKALIKE = str(Path(sys.executable).parent / "lookalike")


def main() -> None:
    """Index, search, judge."""
    OUT.mkdir(exist_ok=True)
    if len(sys.argv) > 1:
        pictures = Path(sys.argv[1]).expanduser()
        held_out: list[tuple[Path, str]] = []
    else:
        pictures = OUT / "pictures"
        held_out = write_real_pictures(pictures)
    index = OUT / "pictures.index"
    run("index", pictures, "--to", index, "--prune")
    queries = write_queries([Path(row.path) for row in rows([pictures]) if "digits" not in row.path])
    shown = [query for query, _ in queries[:8]] + [path for path, _ in held_out[::37]][:6]
    print(f"\nSearching with {len(queries)} crops, re-encoded; two of the answers:")
    for query in shown[:2]:
        run("search", index, query, "-k", "3")
    run("search", index, *shown, "-k", "7", "--html", OUT / "found.html", quiet=True)
    judge(index, queries, held_out)
    print(f"\nThe contact sheet: {OUT / 'found.html'}")


def run(*arguments: object, quiet: bool = False) -> None:
    """Print a command as one would type it, and run it."""
    words = [str(argument) for argument in arguments]
    print("$ lookalike " + " ".join(words if len(words) < 9 else [*words[:4], "…", *words[-4:]]), flush=True)
    subprocess.run([LOOKALIKE, *words], check=True, stdout=subprocess.DEVNULL if quiet else None)


def write_real_pictures(folder: Path) -> list[tuple[Path, str]]:
    """The photographs of scikit-image and scikit-learn, and 1,797 digits; 297 of them are kept back as queries.

    Returns the digits kept back, as (path, digit).
    """
    import skimage
    import sklearn
    from sklearn.datasets import load_digits

    photographs = folder / "photographs"
    photographs.mkdir(parents=True, exist_ok=True)
    for source in (Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"):
        for path in sorted(source.iterdir()):
            if path.suffix in (".png", ".jpg"):
                (photographs / path.name).write_bytes(path.read_bytes())
    digits = load_digits()
    held_out = []
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        kept_back = number >= 1500
        path = (OUT / "held-out" if kept_back else folder / "digits") / str(digit) / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 - pixels * 15.9375).astype("uint8")).resize((64, 64), Image.Resampling.BICUBIC).save(path)
        if kept_back:
            held_out.append((path, str(digit)))
    return held_out


def write_queries(paths: list[Path]) -> list[tuple[Path, Path]]:
    """Off-centre crops of 80 % of some pictures, shrunk and saved as coarse JPEG: (query, original)."""
    folder = OUT / "queries"
    folder.mkdir(exist_ok=True)
    chosen = random.Random(0).sample(sorted(paths), min(len(paths), 40))
    queries = []
    for original in chosen:
        try:
            image = read(original)
        except LookalikeError:
            continue  # `lookalike index` has reported it
        wide, tall = image.size
        crop = image.crop((wide // 20, tall // 8, wide * 17 // 20, tall * 37 // 40))
        crop.thumbnail((320, 320))
        query = folder / f"{original.stem}-crop.jpg"
        crop.save(query, quality=50)
        queries.append((query, original))
    return queries


def judge(index: Path, queries: list[tuple[Path, Path]], held_out: list[tuple[Path, str]]) -> None:
    """Count how often the first answer is right."""
    opened = open_index(index, read_only=True)
    searcher = Searcher(Encoder.default(), opened)
    if queries:
        first = [searcher.by_picture(query, 1)[0] for query, _ in queries]
        right = sum(
            hit.key == str(original.absolute()) or str(original.absolute()) in hit.copies
            for hit, (_, original) in zip(first, queries, strict=True)
        )
        print(f"\nThe original comes first for {right} of {len(queries)} crops.")
    if held_out:
        nearest = [searcher.by_picture(path, 1)[0].payload["category"] for path, _ in held_out]
        same = sum(found == digit for found, (_, digit) in zip(nearest, held_out, strict=True))
        print(
            f"The nearest picture of a digit that was not indexed shows the same digit for {same} of {len(held_out)} "
            f"({same / len(held_out):.0%}; guessing: 10 %). The encoder has never seen a digit: teach it, and it rises."
        )
    opened.close()


if __name__ == "__main__":
    main()
