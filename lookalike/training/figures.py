"""The classifier table for people: its page in Markdown, and its plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Document = Mapping[str, Any]

__all__ = ["best_row", "in_words", "plots"]

_PLOTS = {
    "distribution.png": "Pictures of each category",
    "curves.png": "Loss and accuracy while they were taught",
    "confusion.png": "What each category was taken for, on the test part; rows are the truth",
}


def best_row(document: Document) -> Mapping[str, Any]:
    """The row with the highest accuracy on validation: the test part chooses nothing."""
    row: Mapping[str, Any] = max(document["rows"], key=lambda row: row["validation"])
    return row


def in_words(document: Document, drawn: Sequence[str] = ()) -> str:
    """The table as Markdown.

    Args:
        document: of `lookalike.training.classifiers.classifiers`.
        drawn: names of the plots that lie beside it, from `plots`.
    """
    made, rows = document["made"], document["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    counts = {side: sum(sizes.values()) for side, sizes in document["distribution"].items()}
    parts = ", ".join(f"{side} {count:,}" for side, count in counts.items())
    lines = [
        f"# {document['title']}",
        "",
        f"`{made['command']}`, {made['date']}, {made['machine']}. Versions: {versions}.",
        f"Pictures: {parts}; {document['settings']['split']}; fingerprint `{document['fingerprint'][:16]}`. Per cent; "
        "of the test accuracy the 95 % bootstrap interval over pictures. The best step, and the cost of a support "
        "vector machine, are chosen on validation; the test part was asked once. One seed each.",
        "",
        "| model | start | training | validation | test | macro F1 | minutes | parameters | over-fitting |",
        "|---|---|---|---|---|---|---|---|---|",
        *map(_line, rows),
        "",
        f"Over-fitting: {document['settings']['overfitting']}. Minutes are those of the training alone.",
    ]
    lines += ["", *(f"- {note}" for note in document["notes"])] if document["notes"] else []
    lines += ["", f"## {best_row(document)['name']}, the best on validation", ""]
    lines += ["| category | precision | recall | F1 | pictures |", "|---|---|---|---|---|"]
    figures = best_row(document)["report"]
    lines += [_category(name, figures[name]) for name in (*document["categories"], "macro avg", "weighted avg")]
    lines += ["", "## What it takes for what", "", *_mistaken(document), "", "## Pictures of each category", ""]
    lines += ["| category | training | validation | test |", "|---|---|---|---|"]
    for name in document["categories"]:
        cells = [str(document["distribution"][side][name]) for side in ("train", "validation", "test")]
        lines.append(f"| {_cell(name)} | {' | '.join(cells)} |")
    for name in drawn:
        lines += ["", f"![{_PLOTS[name]}]({name})"]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    test = row["test"]
    cells = [
        row["name"],
        row["start"],
        _per_cent(row["training"]),
        _per_cent(row["validation"]),
        f"{_per_cent(test['mean'])} [{_per_cent(test['low'])}, {_per_cent(test['high'])}]",
        _per_cent(row["macro_f1"]),
        f"{row['minutes']:.1f}",
        _count(row["parameters"]),
        "yes" if row["overfitting"] else "no",
    ]
    return f"| {' | '.join(cells)} |"


def _category(name: str, figures: Mapping[str, float]) -> str:
    shares = [_per_cent(figures[key]) for key in ("precision", "recall", "f1-score")]
    return f"| {_cell(name)} | {' | '.join(shares)} | {figures['support']:.0f} |"


def _mistaken(document: Document, most: int = 8) -> list[str]:
    """The commonest mistakes of the best row, as a list."""
    names, confusion = document["categories"], np.array(best_row(document)["confusion"])
    sizes = confusion.sum(1)
    np.fill_diagonal(confusion, 0)
    found = [divmod(int(cell), len(names)) for cell in np.argsort(-confusion, axis=None, kind="stable")[:most]]
    return [
        f"- {names[true]} for {names[said]}: {confusion[true, said]} of {sizes[true]}"
        for true, said in found
        if confusion[true, said]
    ] or ["Nothing."]


def _cell(name: str) -> str:
    return name.replace("|", "\\|")


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def plots(document: Document, folder: Path, say: Callable[[str], None] = print) -> list[str]:
    """Draw the distribution of categories, the curves and the confusion matrices as PNG files into `folder`.

    Returns:
        Their names; none where matplotlib is not installed, which `say` is told.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("note: no plots without matplotlib: pip install 'lookalike[baselines]'")
        return []
    drawn = {"distribution.png": _distribution, "curves.png": _curves, "confusion.png": _confusion}
    made = []
    for name, draw in drawn.items():
        figure = Figure(layout="constrained", dpi=100)  # not pyplot: no window, nothing global
        if draw(figure, document):
            figure.savefig(folder / name, metadata={"Software": None})
            made.append(name)
    return made


def _distribution(figure: Any, document: Document) -> bool:
    names = document["categories"]
    figure.set_size_inches(8, 1.5 + 0.26 * len(names))
    axes, start = figure.add_subplot(), np.zeros(len(names))
    for side, colour in (("train", "#4c72b0"), ("validation", "#dd8452"), ("test", "#55a868")):
        sizes = np.array([document["distribution"][side][name] for name in names])
        axes.barh(names, sizes, left=start, label=side, color=colour)
        start += sizes
    axes.invert_yaxis()
    axes.set_xlabel("pictures")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return True


def _curves(figure: Any, document: Document) -> bool:
    """Of each network, loss above and accuracy below; the step that was kept is marked."""
    rows = [row for row in document["rows"] if row["curve"]]
    if not rows:
        return False
    across = min(4, len(rows))
    down = math.ceil(len(rows) / across)
    figure.set_size_inches(3 * across, 4 * down)
    grid = figure.subplots(2 * down, across, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for number, row in enumerate(rows):
        line, column = divmod(number, across)
        steps = [point["step"] for point in row["curve"]]
        for place, keys in ((0, ("loss", "validation_loss")), (1, ("accuracy", "validation_accuracy"))):
            axes = grid[2 * line + place, column]
            axes.set_visible(True)
            for key, colour, label in zip(keys, ("#4c72b0", "#dd8452"), ("training", "validation"), strict=True):
                axes.plot(steps, [point[key] for point in row["curve"]], color=colour, label=label)
            axes.axvline(row["kept_step"], color="0.7", linewidth=0.8, linestyle=":")
            axes.set_ylabel(keys[0])
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=7)
        grid[2 * line, column].set_title(row["name"], fontsize=10)
        grid[2 * line + 1, column].set_ylim(0, 1)
        grid[2 * line + 1, column].set_xlabel("step", fontsize=8)
    grid[0, 0].legend(frameon=False, fontsize=7)
    return True


def _confusion(figure: Any, document: Document) -> bool:
    """Of each row, the share of each category's test pictures that was taken for each category."""
    rows, names = document["rows"], document["categories"]
    across = min(4, len(rows))
    down = math.ceil(len(rows) / across)
    side = max(2.6, 0.15 * len(names))
    figure.set_size_inches(side * across + 1.5, side * down + 1.5)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        counts = np.array(row["confusion"], dtype=float)
        image = axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), vmin=0, vmax=1, cmap="Blues")
        axes.set_title(f"{row['name']}, {_per_cent(row['test']['mean'])} %", fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(image, ax=grid, shrink=0.5, label="share of the category")
    return True
