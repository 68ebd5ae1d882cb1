"""Results and runs → sections: what each kind of document is worth saying, in which order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from lookalike.bundle import MANIFEST
from lookalike.errors import ReportError
from lookalike.evaluate import LOWER_IS_BETTER, title
from lookalike.images import shown
from lookalike.metrics import Interval
from lookalike.report.blocks import (
    Bar,
    Block,
    Cell,
    Facts,
    Fold,
    Lines,
    Map,
    Matrix,
    Measured,
    Number,
    Place,
    Section,
    Series,
    Shown,
    Strips,
    Table,
    Text,
)
from lookalike.report.read import KINDS, Node, lines_of, one_line, read_json

# Tables of more rows than this are shown when wanted.
LONG = 25
# Names of measures of a training run that `lookalike.evaluate.title` does not know.
_VALIDATION = {"one_shot": "one-shot accuracy"}

Finder = Callable[[str], str]

__all__ = ["sections"]


def sections(place: str | os.PathLike[str], pictures: str | os.PathLike[str] | None = None) -> list[Section]:
    """What is to be said of a results file or a run folder.

    Args:
        place: a results file, the folder of a training run or of results, or a bundle.
        pictures: where the pictures of a result lie; by default where its own ``source`` says.

    Raises:
        ReportError: it is neither, or malformed; the message names file and place.
    """
    path = Path(place)
    if path.is_dir():
        if (path / "config.toml").is_file():
            return [_run(path)]
        if (path / MANIFEST).is_file():
            return [_bundle(path)]
        inside = [path / name for name in ("classifiers.json", "ladder.json", "results.json")]
        found = [file for file in inside if file.is_file()]
        if not found:
            raise ReportError(
                f"{shown(place)} is no run folder and no bundle: it has no config.toml, no {MANIFEST}, and no results"
            )
        return [section for file in found for section in sections(file, pictures)]
    document = read_json(path)
    kind = document.get("kind") if isinstance(document.value, dict) else None
    if kind is None or kind.value not in KINDS:
        raise ReportError(
            f"{shown(place)} is no results file: its key `kind` should be one of {', '.join(KINDS)}; make one with "
            "`lookalike evaluate PICTURES --to results.json`"
        )
    if kind.value == "evaluation":
        return [_evaluation(document, _finder(document, path, pictures))]
    return [{"ladder": _ladder, "classifiers": _classifiers, "recommendation": _recommendation}[kind.value](document)]


def _finder(document: Node, file: Path, pictures: str | os.PathLike[str] | None) -> Finder:
    """Names in a document → paths: below `pictures`, or below its source, from here or from beside the file."""
    if pictures is not None:
        homes = [Path(pictures)]
    else:
        settings = document.get("settings")
        source = settings.get("source") if settings is not None else None
        given = Path(source.raw() if source is not None else ".")
        homes = [home if home.is_dir() else home.parent for home in (given, file.parent / given)]

    def find(name: str) -> str:
        paths = [home / name for home in homes]
        return os.fspath(next((path for path in paths if os.path.exists(path)), paths[0]))  # noqa: PTH110

    return find


# ── what all have ────────────────────────────────────────────────────────────────────────────────────────────────────


def _made(document: Node, *more: tuple[str, str]) -> Facts:
    """What was run, with which data, when, where, and how long it took."""
    pairs: list[tuple[str, str]] = list(more)
    fingerprint = document.get("fingerprint")
    if fingerprint is not None:
        pairs.append(("data fingerprint", fingerprint.text()[:16]))
    made = document.get("made")
    for name in ("command", "date", "machine", "versions"):
        value = made.get(name) if made is not None else None
        if value is not None:
            pairs.append((name, value.plain()))
    minutes = document.get("minutes")
    if minutes is not None:
        pairs.append(("took", _minutes(minutes.number())))
    return Facts(pairs)


def _minutes(minutes: float) -> str:
    if minutes >= 90:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes:.1f} minutes" if minutes >= 1 else f"{minutes * 60:.0f} seconds"


def _notes(document: Node) -> list[Block]:
    notes = document.get("notes")
    return [Text(note.text(), "note") for note in notes.list()] if notes is not None else []


def _scale(found: Sequence[Interval]) -> tuple[float, float]:
    """One scale for some intervals: from 0 to 1 where they are shares, else what they need."""
    low, high = min(each.low for each in found), max(each.high for each in found)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _around_zero(found: Sequence[Interval]) -> tuple[float, float]:
    most = max([1e-9, *(max(abs(each.low), abs(each.high)) for each in found)])
    return -most, most


def _long(table: Table, name: str) -> Block:
    return table if len(table.rows) <= LONG else Fold(f"{name}: all {len(table.rows):,}", [table])


def _counts(rows: Sequence[Node]) -> list[list[int]]:
    return [[cell.whole() for cell in row.list()] for row in rows]


def _matrix(name: str, classes: Sequence[str], counts: Node) -> Matrix:
    rows = _counts(counts.list())
    if len(rows) != len(classes) or any(len(row) != len(classes) for row in rows):
        raise counts.wrong(f"{len(classes)} rows of {len(classes)} counts")
    return Matrix(name, classes, rows)


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _evaluation(document: Node, find: Finder) -> Section:
    encoder, protocol = document["encoder"]["name"].text(), document["protocol"].text()
    unreadable = document["unreadable"].whole()
    pictures = f"{document['pictures'].whole():,}" + (f", {unreadable:,} of them unreadable" if unreadable else "")
    settings = ", ".join(f"{one_line(name)} {node.plain()}" for name, node in document["settings"].items())
    print_ = document["encoder"].get("fingerprint")
    who = encoder if print_ is None else f"{encoder} ({print_.text()})"
    facts = _made(document, ("encoder", who), ("protocol", protocol), ("pictures", pictures), ("settings", settings))
    found = {name: node.interval() for name, node in document["measures"].items()}
    if not found:
        raise document["measures"].wrong("at least one measure")
    scale = _scale(list(found.values()))
    rows: list[list[Cell]] = [
        [title(name), Measured(each, scale), Number(each.count, 0)] for name, each in found.items()
    ]
    blocks: list[Block] = []
    blocks += [
        Table(["measure", "mean, 95 % interval", "questions"], rows),
        *_compared(document),
        *_curve(document),
        *_examples(document, find),
        *_classes(document),
        *_map(document, find),
        *_notes(document),
        Fold("How this was made", [facts]),
    ]
    return Section(f"{encoder}: {protocol}", blocks)


def _recommendation(document: Node) -> Section:
    """What is recommended beside products, each measure on a scale of its own kind: shares, or what it needs."""
    encoder = document["encoder"]["name"].text()
    settings = ", ".join(f"{one_line(name)} {node.plain()}" for name, node in document["settings"].items())
    items = f"{document['items'].whole():,}, of which {document['questions'].whole():,} asked"
    rows: list[list[Cell]] = []
    for name, node in document["measures"].items():
        each = node.interval()
        rows.append([one_line(name), Measured(each, _scale([each])), Number(each.count, 0)])
    if not rows:
        raise document["measures"].wrong("at least one measure")
    facts = _made(document, ("encoder", encoder), ("products", items), ("settings", settings))
    blocks: list[Block] = [
        Table(["measure", "mean, 95 % interval", "questions"], rows),
        *_notes(document),
        Fold("How this was made", [facts]),
    ]
    return Section(f"{encoder}: {document['title'].text()}", blocks)


def _compared(document: Node) -> list[Block]:
    compared = document.get("compared")
    if compared is None:
        return []
    theirs = compared["theirs"]
    other, gaps = theirs["encoder"]["name"].text(), compared["differences"]
    found = {name: node.interval() for name, node in gaps.items()}
    measures = {name: node.interval() for name, node in theirs["measures"].items()}
    scale, around = _scale(list(measures.values())), _around_zero(list(found.values()))
    rows: list[list[Cell]] = [
        [
            title(name),
            Measured(measures[name], scale) if name in measures else None,
            Measured(gap, around, "less is better" if name in LOWER_IS_BETTER else "more is better"),
        ]
        for name, gap in found.items()
    ]
    ours = document["encoder"]["name"].text()
    caption = f"Against {other}, the same questions: {ours} minus {other}, paired"
    return [Table(["measure", other, "difference, 95 % interval"], rows, caption)]


def _curve(document: Node) -> list[Block]:
    curve = document.get("curve")
    blocks: list[Block] = []
    if curve is not None:
        far = [node.number() for node in curve["far"].list()]
        tar = [node.number() for node in curve["tar"].list()]
        if len(far) != len(tar):
            raise curve["tar"].wrong(f"a list of {len(far)} numbers")
        points = list(zip(far, tar, strict=True))
        series = [Series(document["encoder"]["name"].text(), points)]
        x, y = "false accepts, share of different pairs", "true accepts, share of same pairs"
        blocks.append(Lines("ROC", x, y, series, (0, 1, 0, 1), diagonal=True))
        least = min((value for value in far if value > 0), default=1.0)
        if least < 0.1:
            name = "ROC, few false accepts"
            blocks.append(Lines(name, f"{x}, logarithmic", y, series, (least, 1, 0, 1), diagonal=True, log=True))
    folds = document["details"].get("folds") if document.get("details") is not None else None
    if folds is not None:
        rows: list[list[Cell]] = [
            [f"fold {number}", Bar(node.number(), 1, 4)] for number, node in enumerate(folds.list(), 1)
        ]
        blocks.append(Table(["fold", "accuracy"], rows, "Accuracy with the threshold of the other folds"))
    return blocks


def _examples(document: Node, find: Finder) -> list[Block]:
    queries = document.get("queries")
    if queries is None:
        return []
    measure = title(queries["measure"].text())
    blocks: list[Block] = []
    # Of pairs the extremes are shown: of the worst, each is decided wrongly, whether the same or different.
    pairs = document["protocol"].text() == "pairs"
    for name, heading in (("best", "What went best"), ("worst", "What went worst")):
        rows = []
        for query in queries[name].list():
            label = query["label"].text()
            left = Shown(find(query["path"].raw()), label, f"{measure} {query['value'].number():.3f}")
            right = [
                Shown(
                    find(node["path"].raw()),
                    node["label"].text(),
                    f"{node['score'].number():.3f}",
                    name == "best" if pairs else node["relevant"].flag(),
                )
                for node in query["neighbours"].list()
            ]
            rows.append((left, right))
        blocks.append(Strips(heading, rows))
    return blocks


def _classes(document: Node) -> list[Block]:
    blocks: list[Block] = []
    confusion = document.get("confusion")
    if confusion is not None:
        names = [node.text() for node in confusion["classes"].list()]
        asked = f"{confusion['queries'].whole():,} queries"
        blocks.append(_matrix(f"The class of the nearest picture, {asked}", names, confusion["counts"]))
        pairs = confusion["pairs"].list()
        most = max((node["count"].whole() for node in pairs), default=1)
        rows: list[list[Cell]] = [
            [node["true"].text(), node["taken_for"].text(), Bar(node["count"].whole(), most)] for node in pairs
        ]
        if rows:
            blocks.append(_long(Table(["class", "taken for", "queries"], rows, "Most often confused"), "Confused"))
    told = document.get("classes")
    if told is not None and told.list():
        measures = [name for name, _ in told.list()[0].items() if name not in ("class", "queries")]
        chosen = ([name for name in ("map_at_r", "r_at_1", "p_at_1") if name in measures] or measures)[:2]
        rows = []
        for node in told.list():
            bars = [Bar(node[name].number(), 1, 3) for name in chosen]
            rows.append([node["class"].text(), Number(node["queries"].whole(), 0), *bars])
        head = ["class", "queries", *map(title, chosen)]
        blocks.append(_long(Table(head, rows, "Every class, the hardest first"), "Every class"))
    details = document.get("details")
    nearest = details.get("nearest_neighbour_classification") if details is not None else None
    if nearest is not None:
        caption = f"Each query given the class of its nearest picture: accuracy {nearest['accuracy'].number():.4f}"
        lines: list[list[Cell]] = []
        for node in nearest["classes"].list():
            lines.append([node["class"].text(), *_shares(node), Number(node["support"].whole(), 0)])
        for name in ("macro", "weighted"):
            lines.append([f"{name} mean", *_shares(nearest[name]), None])
        head = ["class", "precision", "recall", "F1", "support"]
        blocks.append(_long(Table(head, lines, caption), "Precision and recall"))
    return blocks


def _shares(node: Node) -> list[Cell]:
    return [Number(node[name].number(), 3) for name in ("precision", "recall", "f1")]


def _map(document: Node, find: Finder) -> list[Block]:
    drawn = document.get("map")
    if drawn is None:
        return []
    places = [
        Place(find(node["path"].raw()), node["label"].text(), *(min(max(node[axis].number(), 0), 1) for axis in "xy"))
        for node in drawn["pictures"].list()
    ]
    of = drawn.get("of")
    drawn_from = f" of {of.whole():,}" if of is not None and of.whole() > len(places) else ""
    return [Map(f"Where the pictures lie: {len(places):,}{drawn_from} pictures, {drawn['method'].text()}", places)]


# ── ladder ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ladder(document: Node) -> Section:
    blocks: list[Block] = []
    rows = document["rows"].list()
    ran = [row for row in rows if row.get("failed") is None]
    measures = list(dict.fromkeys(name for row in ran for name, _ in row["measures"].items()))
    for measure in measures:
        found = {row["name"].text(): _of(row, "measures", measure) for row in ran}
        gaps = {row["name"].text(): _of(row, "over_default", measure) for row in ran}
        scale = _scale([each for each in found.values() if each is not None])
        around = _around_zero([each for each in gaps.values() if each is not None])
        told: list[list[Cell]] = []
        for row in ran:
            name, steps = row["name"].text(), row.get("steps")
            one, gap = found[name], gaps[name]
            told.append(
                [
                    name,
                    None if one is None else Measured(one, scale),
                    None if gap is None else Measured(gap, around, "more is better"),
                    Number(row["minutes"].number(), 1),
                    None if steps is None else Number(steps.whole(), 0),
                ]
            )
        head = ["rung", f"{title(measure)}, 95 % interval", "over the default encoder", "minutes", "steps"]
        table = Table(head, told, title(measure))
        blocks.append(table if measure == measures[0] else Fold(title(measure), [table]))
    what: list[list[Cell]] = [[row["name"].text(), row["what"].text()] for row in rows]
    blocks.append(Fold("What each rung is", [Table(["rung", "what it is"], what)]))
    for row in rows:
        failed = row.get("failed")
        if failed is not None:
            blocks.append(Text(f"{row['name'].text()} has no numbers: {failed.text()}", "note"))
    counts = [(name, node.plain()) for name in ("pictures", "classes") if (node := document.get(name)) is not None]
    settings = [(one_line(name), node.plain()) for name, node in document["settings"].items()]
    blocks += [*_notes(document), Fold("How this was made", [_made(document, *counts, *settings)])]
    return Section(document["title"].text(), blocks)


def _of(row: Node, table: str, measure: str) -> Interval | None:
    values = row.get(table)
    found = values.get(measure) if values is not None else None
    return None if found is None else found.interval()


# ── classifiers ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _classifiers(document: Node) -> Section:
    blocks: list[Block] = []
    rows = document["rows"].list()
    table: list[list[Cell]] = []
    for row in rows:
        parameters = row.get("parameters")
        table.append(
            [
                row["name"].text() + (" ⚠ over-fits" if row["overfitting"].flag() else ""),
                row["start"].text(),
                Number(row["training"].number(), 3),
                Number(row["validation"].number(), 3),
                Measured(row["test"].interval()),
                Number(row["macro_f1"].number(), 3),
                Number(row["minutes"].number(), 1),
                None if parameters is None else Number(parameters.whole(), 0),
            ]
        )
    head = ["model", "start", "training", "validation", "test accuracy, 95 % interval", "macro F1", "minutes"]
    blocks.append(Table([*head, "parameters"], table))
    curves = [(row["name"].text(), row.get("curve")) for row in rows]
    series = [Series(name, _points(curve.list(), "validation_accuracy")) for name, curve in curves if curve is not None]
    series = [each for each in series if len(each.points) > 1]
    if series:
        blocks.append(Lines("While they learned", "step", "validation accuracy", series))
    categories = [node.text() for node in document["categories"].list()]
    blocks.append(_distribution(document["distribution"], categories))
    for row in rows:
        blocks.append(Fold(f"{row['name'].text()}, {row['start'].text()}", _classifier(row, categories)))
    settings = [(one_line(name), node.plain()) for name, node in document["settings"].items()]
    blocks += [*_notes(document), Fold("How this was made", [_made(document, *settings)])]
    return Section(document["title"].text(), blocks)


def _distribution(distribution: Node, categories: Sequence[str]) -> Block:
    parts = [name for name in ("train", "validation", "test") if distribution.get(name) is not None]
    counts = {part: {name: node.whole() for name, node in distribution[part].items()} for part in parts}
    most = [max(counts[part].values(), default=1) for part in parts]
    rows: list[list[Cell]] = [
        [name, *(Bar(counts[part].get(name, 0), top) for part, top in zip(parts, most, strict=True))]
        for name in categories
    ]
    return Fold("How many pictures of each category", [Table(["category", *parts], rows)])


def _classifier(row: Node, categories: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    curve = row.get("curve")
    points = curve.list() if curve is not None else []
    if points:
        losses = [("loss", "training"), ("validation_loss", "validation")]
        series = [Series(name, _points(points, key)) for key, name in losses]
        blocks.append(Lines("Loss", "step", "loss", [each for each in series if each.points]))
        accuracy = Series("validation", _points(points, "validation_accuracy"))
        if accuracy.points:
            blocks.append(Lines("Accuracy", "step", "validation accuracy", [accuracy]))
    report = row.get("report")
    if report is not None:
        lines: list[list[Cell]] = []
        for name, node in report.items():
            if isinstance(node.value, dict):
                shares = [Number(node[each].number(), 3) for each in ("precision", "recall", "f1-score")]
                lines.append([one_line(name), *shares, Number(node["support"].number(), 0)])
        blocks.append(Table(["category", "precision", "recall", "F1", "support"], lines, "Test pictures"))
    confusion = row.get("confusion")
    if confusion is not None:
        blocks.append(_matrix("Confusion, test pictures", categories, confusion))
    return blocks


def _points(nodes: Sequence[Node], name: str) -> list[tuple[float, float]]:
    """Step and value wherever there is one."""
    return [(node["step"].number(), found.number()) for node in nodes if (found := node.get(name)) is not None]


# ── training runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def _run(place: Path) -> Section:
    blocks: list[Block] = []
    report = read_json(place / "report.json") if (place / "report.json").is_file() else None
    if report is None:
        blocks.append(Text("This run has not ended: there is no verdict yet.", "verdict"))
    else:
        blocks += _verdict(report.get("verdict"))
    blocks += _progress(place)
    if report is not None:
        blocks += _retrieval(report)
    if (place / "thresholds.json").is_file():
        blocks += _thresholds(read_json(place / "thresholds.json"))
    if report is not None:
        blocks += [Text(node.text(), "note") for node in report["warnings"].list()]
    facts: list[tuple[str, str]] = []
    if (place / "data.json").is_file():
        data = read_json(place / "data.json")
        blocks += _notes(data)
        facts += [("data fingerprint", data["fingerprint"].text()[:16]), ("pictures", data["pictures"].plain())]
        facts += [("classes", data["classes"].plain())]
    for name in ("steps", "minutes", "kept_step", "device", "precision", "processes"):
        node = report.get(name) if report is not None else None
        if node is not None:
            facts.append((name.replace("_", " "), node.plain()))
    try:
        config = (place / "config.toml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"cannot read {shown(place / 'config.toml')}: {error}") from error
    settings: list[list[Cell]] = [[line.partition(" = ")[0], line.partition(" = ")[2]] for line in config.splitlines()]
    settings = [line for line in settings if line[0]]
    blocks += [
        Fold("How this was made", [Facts(facts)]),
        Fold("Every setting", [Table(["setting", "value"], settings)]),
    ]
    return Section(f"Run {shown(place.name)}", blocks)


def _bundle(place: Path) -> Section:
    """What a bundle says of itself: how good it is, its thresholds and how reliable they are, and its recipe."""
    document = read_json(place / MANIFEST)
    metrics, thresholds, data = (document.get(name) for name in ("metrics", "thresholds", "data"))
    blocks: list[Block] = []
    if metrics is not None and metrics.get("ours") is not None:  # of a training; other bundles tell it their own way
        blocks += _verdict(metrics)
    if thresholds is not None:
        blocks += _thresholds(thresholds)
    facts = [(name, document[name].plain()) for name in ("dim", "version", "licence") if document.get(name) is not None]
    if data is not None:
        facts += [("data fingerprint", data["fingerprint"].text()[:16]), ("pictures", data["pictures"].plain())]
    recipe = document.get("recipe")
    for name in ("date", "machine", "versions", "minutes"):
        node = recipe.get(name) if recipe is not None else None
        if node is not None:
            facts.append((name, node.plain()))
    return Section(f"Bundle {document['name'].text()}", [*blocks, Fold("How this was made", [Facts(facts)])])


def _verdict(verdict: Node | None) -> list[Block]:
    if verdict is None:
        return [Text("Nothing was held out: there is no verdict.", "verdict")]
    text = verdict["text"].text()
    names = [name for name, _ in verdict["differences"].items()]
    columns = {name: [verdict[part][name].interval() for part in ("ours", "theirs", "differences")] for name in names}
    scale = _scale([each for found in columns.values() for each in found[:2]])
    around = _around_zero([found[2] for found in columns.values()])
    rows: list[list[Cell]] = [
        [_title(name), Measured(ours, scale), Measured(theirs, scale), Measured(gap, around, "more is better")]
        for name, (ours, theirs, gap) in columns.items()
    ]
    head = ["measure", "trained", "base", "difference, paired"]
    return [Text(f"{text[:1].upper()}{text[1:]}.", "verdict"), Table(head, rows)]


def _title(measure: str) -> str:
    return _VALIDATION.get(measure, title(measure))


def _progress(place: Path) -> list[Block]:
    """The curves of training and validation."""
    if not (place / "metrics.jsonl").is_file():
        return []
    lines = lines_of(place / "metrics.jsonl")
    blocks: list[Block] = []
    loss = _points(lines, "loss")
    if loss:
        blocks.append(Lines("Training", "step", "loss", [Series("loss", loss)]))
    names = sorted({name for line in lines for name in line.value if name.startswith("validation/")})
    if names:
        series = [Series(_title(name.removeprefix("validation/")), _points(lines, name)) for name in names]
        if any(len(each.points) > 1 for each in series):
            blocks.append(Lines("Validation", "step", "held-out classes", series))
    health = [("active_triplets", "active triplets"), ("mean_similarity", "mean similarity")]
    shares = [Series(name, points) for key, name in health if (points := _points(lines, key))]
    ranks, speed = _points(lines, "effective_rank"), _points(lines, "pictures_per_second")
    more: list[Block] = [Lines("Health", "step", "share, or cosine", shares)] if shares else []
    if ranks:
        more.append(Lines("Directions in use", "step", "effective rank", [Series("effective rank", ranks)]))
    if speed:
        more.append(Lines("Speed", "step", "pictures per second", [Series("pictures per second", speed)]))
    return [*blocks, Fold("Health and speed of the training", more)] if more else blocks


def _retrieval(report: Node) -> list[Block]:
    tried = report.get("retrieval")
    if tried is None or not tried.list():
        return []
    gaps = [node["difference"].interval() for node in tried.list()]
    around = _around_zero(gaps)
    rows: list[list[Cell]] = []
    for node, gap in zip(tried.list(), gaps, strict=True):
        kept = "kept" if node["kept"].flag() else "left"
        rows.append(
            [node["name"].text(), Number(node["value"].number()), Measured(gap, around, "more is better"), kept]
        )
    head = ["step", "value", "what it adds, 95 % interval", ""]
    return [Table(head, rows, "What was tried with the vectors, on validation")]


def _thresholds(document: Node) -> list[Block]:
    calibration = document.get("calibration")
    if calibration is None:
        return []
    rows: list[list[Cell]] = []
    for purpose in ("same", "unknown", "duplicate"):
        node = calibration.get(purpose)
        if node is not None:
            rates = ", ".join(
                f"{one_line(name).replace('_', ' ')} {rate.number():.4f}" for name, rate in node["rates"].items()
            )
            rows.append([purpose, Number(node["value"].number(), 5), rates, Number(node["count"].number(), 0)])
    blocks: list[Block] = []
    if rows:
        blocks.append(
            Table(
                ["purpose", "cosine", "measured", "of"],
                rows,
                "Thresholds, and what was measured where they were chosen",
            )
        )
    curve = calibration.get("curve")
    bins = curve["bins"].list() if curve is not None else []
    if curve is not None and bins:
        points = [(node["predicted"].number(), node["observed"].number()) for node in bins]
        error = curve.get("expected_calibration_error")
        name = "Reliability" + ("" if error is None else f", expected calibration error {error.number():.3f}")
        x, y = "probability told", "share that was the same"
        blocks.append(Lines(name, x, y, [Series("classes not fitted on", sorted(points))], (0, 1, 0, 1), diagonal=True))
    return blocks
