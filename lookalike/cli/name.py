"""Name: label."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from lookalike.cli._common import json_option, open_encoder, write_text
from lookalike.errors import CatalogueError, ImageError, QueryError

if TYPE_CHECKING:
    from lookalike.encoder import Encoder
    from lookalike.fewshot import Candidate, Decision, FewShotClassifier, Support
    from lookalike.sorting import Copied

__all__ = ["label"]

# `lookalike.fewshot.METHODS`, which would bring NumPy into the help.
METHODS = ("ridge", "centroid", "nearest", "logistic", "svm")


@click.command()
@click.argument("places", nargs=-1, required=True, metavar="SUPPORT QUERY...", type=click.Path())
@click.option("--model", metavar="BUNDLE", help="Encoder bundle: a folder or .zip. Default: the one that ships.")
@click.option("--labels", default="label", show_default=True, metavar="COLUMN", help="Of a CSV file: the classes.")
@click.option("--shots", type=click.IntRange(1), metavar="N", help="Only the first N pictures of each class.")
@click.option(
    "--method",
    default="ridge",
    show_default=True,
    type=click.Choice(METHODS),
    help="How classes are told apart; logistic and svm need lookalike[baselines].",
)
@click.option("--transductive", is_flag=True, help="Let many queries teach each other (ridge and centroid).")
@click.option(
    "--unknown",
    default="auto",
    show_default=True,
    metavar="auto|off|X",
    help="Below which similarity a picture is of no class: found on the support, never, or a cosine.",
)
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="How many classes to list.")
@click.option("--html", "sheet", metavar="FILE", help="Write a contact sheet: queries left, what decided right.")
@click.option("--sort-into", "folder", metavar="DIR", help="Copy each picture into a folder of its class.")
@json_option
def label(
    places: tuple[str, ...],
    model: str | None,
    labels: str,
    shots: int | None,
    method: str,
    transductive: bool,
    unknown: str,
    top: int,
    sheet: str | None,
    folder: str | None,
    as_json: bool,
) -> None:
    """Name pictures, a few of each class being known.

    SUPPORT is a folder with a folder per class, a CSV file with a column of labels, or several label=picture (or
    label=folder). QUERY are pictures, folders or catalogues. Of each class listed: its probability, and similarity
    (cosine, higher is nearer) and distance (lower is nearer) to the picture of it that is nearest.

    \b
    Examples:
      lookalike label kinds new.jpg --top 5
      lookalike label cat=tom.jpg cat=tim.jpg dog=rex.jpg photos --html named.html
      lookalike label kinds photos --sort-into sorted
    """
    from lookalike.fewshot import FewShotClassifier, encode_support, read_support
    from lookalike.images import shown
    from lookalike.sorting import check_apart

    source, queries = _split(places)
    wanted = _threshold_option(unknown)
    paths = _pictures(queries)
    if folder is not None:
        check_apart(folder, [place for place in [*_support_places(source), *queries] if os.path.isdir(place)])  # noqa: PTH112
    encoder = open_encoder(model)
    support = encode_support(encoder, read_support(source, labels), shots)
    threshold, whence = _threshold(wanted, support, encoder.bundle.manifest)
    classifier = FewShotClassifier(method, transductive=transductive, unknown=threshold)
    classifier.fit(support.vectors, support.labels)
    for note in [*support.notes, *classifier.notes_, _told(classifier, whence)]:
        click.echo(note, err=True)
    decisions, unread = _decide(encoder, classifier, paths, top)
    copies = {} if folder is None else _sort(folder, decisions)
    if sheet:  # before anything is printed: the reader of a pipe may have seen enough early
        write_text(sheet, _contact_sheet(decisions, support, classifier.threshold_))
    for path, decision in decisions.items():
        if as_json:
            click.echo(_json(path, decision, support, classifier.threshold_, copies.get(path)))
        else:
            click.echo(_text(path, decision, support))
    if folder is not None:
        fresh = sum(copy.fresh for copy in copies.values())
        click.echo(f"copied {_pictures_of(fresh)} to {shown(folder)}, {len(copies) - fresh:,} there already", err=True)
    _complain(unread, queries, len(decisions))


# ── what is given ────────────────────────────────────────────────────────────────────────────────────────────────────


def _split(places: Sequence[str]) -> tuple[str | list[tuple[str, str]], list[str]]:
    """The support, and the queries: leading label=picture make the support together; else it is the first."""
    pairs: list[tuple[str, str]] = []
    for place in places:
        name, sign, picture = place.partition("=")
        if not sign or os.path.lexists(place):
            break
        if not name.strip() or not picture:
            raise click.UsageError(f"{place}: write label=picture, with both")
        pairs.append((name.strip(), picture))
    rest = list(places[len(pairs) :] if pairs else places[1:])
    if not rest:
        raise click.UsageError("nothing to name: give QUERY pictures or folders after SUPPORT")
    return pairs or places[0], rest


def _support_places(source: str | list[tuple[str, str]]) -> list[str]:
    return [source] if isinstance(source, str) else [place for _, place in source]


def _threshold_option(unknown: str) -> float | str | None:
    if unknown in ("auto", "off"):
        return None if unknown == "off" else unknown
    try:
        cosine = float(unknown)
    except ValueError:
        cosine = float("nan")
    if not -1 <= cosine <= 1:
        raise click.UsageError(f"--unknown is auto, off or a cosine from -1 to 1, got {unknown}")
    return cosine


def _threshold(
    wanted: float | str | None, support: Support, manifest: Mapping[str, Any]
) -> tuple[float | str | None, str]:
    """What to give the classifier, and where it comes from.

    The support comes first, since cosines of strangers differ by kind of picture more than a threshold for all can
    bear; where it has no class of two pictures, or only one class, the bundle may know.
    """
    if wanted != "auto":
        return wanted, "as given"
    sizes = Counter(support.labels)
    calibrated = (manifest.get("thresholds") or {}).get("unknown")
    if (len(sizes) > 1 and max(sizes.values()) > 1) or calibrated is None:
        return wanted, "found on the support"
    return float(calibrated), "the bundle's"


def _pictures(queries: Sequence[str]) -> list[str]:
    from lookalike.catalogue import rows
    from lookalike.images import shown

    paths = [row.path for row in rows(queries)]
    if not paths:
        raise CatalogueError(f"no pictures in {', '.join(map(shown, queries))}")
    return paths


def _decide(
    encoder: Encoder, classifier: FewShotClassifier, paths: Sequence[str], top: int
) -> tuple[dict[str, Decision], list[ImageError]]:
    """What each readable picture is, and the errors of the others."""
    import numpy as np

    outcomes = list(encoder.stream(paths))
    vectors = {outcome.source: outcome.vector for outcome in outcomes if outcome.vector is not None}
    unread = [outcome.error for outcome in outcomes if outcome.error is not None]
    decisions = classifier.decide(np.stack(list(vectors.values())), top) if vectors else []
    return dict(zip(vectors, decisions, strict=True)), unread


# ── what is told ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _told(classifier: FewShotClassifier, whence: str) -> str:
    classes, pictures = len(classifier.classes_), len(classifier.labels_)
    many = "1 class" if classes == 1 else f"{classes:,} classes"
    known = f"{many}, {_pictures_of(pictures)}, {classifier.method}"
    if classifier.threshold_ is None:
        alone = ": the only class, so every picture gets it" if classes == 1 else ""
        return f"{known}; nothing is unknown{alone}"
    return f"{known}; unknown below similarity {classifier.threshold_:.3f}, {whence}"


def _pictures_of(count: int) -> str:
    return f"{count:,} picture{'' if count == 1 else 's'}"


def _text(path: str, decision: Decision, support: Support) -> str:
    from lookalike.images import shown

    width = max(len(str(one.label)) for one in decision.candidates)
    lines = [
        f"  {one.label:<{width}}  {one.probability:6.1%}  similarity {one.similarity:.3f}  "
        f"distance {one.distance:.3f}  {shown(support.paths[one.support])}"
        for one in decision.candidates
    ]
    return "\n".join([f"{shown(path)}: {_name(decision)}", *lines])


def _name(decision: Decision) -> str:
    from lookalike.fewshot import UNKNOWN

    return UNKNOWN if decision.label is None else str(decision.label)


def _json(path: str, decision: Decision, support: Support, threshold: float | None, copy: Copied | None) -> str:
    from lookalike.images import shown

    def candidate(one: Candidate) -> dict[str, Any]:
        numbers = {name: round(getattr(one, name), 6) for name in ("probability", "similarity", "distance")}
        return {"label": str(one.label), **numbers, "support": shown(support.paths[one.support])}

    document: dict[str, Any] = {
        "query": shown(path),
        "label": None if decision.label is None else str(decision.label),
        "ranking": [candidate(one) for one in decision.candidates],
        "threshold": threshold,
    }
    return json.dumps(document | ({"copy": shown(copy.copy)} if copy else {}), ensure_ascii=False)


def _contact_sheet(decisions: Mapping[str, Decision], support: Support, threshold: float | None) -> str:
    from lookalike.catalogue import key_of
    from lookalike.images import shown
    from lookalike.index.base import Hit
    from lookalike.sheet import Strip, contact_sheet

    strips = []
    for path, decision in decisions.items():
        hits = [Hit(key_of(support.paths[one.support]), one.similarity) for one in decision.candidates]
        captions = [f"{one.probability:.0%} {one.label}" for one in decision.candidates]
        strips.append(Strip(shown(path), path, hits, verdict=_name(decision), captions=captions))
    classes = len(set(support.labels))
    limit = "" if threshold is None else f"; unknown below {threshold:.3f}"
    what = f"{classes} classes, {len(support.labels)} known pictures; similarity of the nearest of each class{limit}"
    return contact_sheet(strips, f"{len(strips)} pictures, named", what)


def _sort(folder: str, decisions: Mapping[str, Decision]) -> dict[str, Copied]:
    from lookalike.sorting import sort_into

    copies = sort_into(folder, [(path, _name(decision)) for path, decision in decisions.items()])
    return {copy.path: copy for copy in copies}


def _complain(unread: Sequence[ImageError], queries: Sequence[str], named: int) -> None:
    """Pictures that a folder holds may be broken; one that was asked for by name, or all of them, may not."""
    asked = {os.path.abspath(place) for place in queries}  # noqa: PTH100
    for error in unread:
        click.echo(f"skipped: {error}", err=True)
    if unread and (not named or any(os.path.abspath(error.path) in asked for error in unread)):  # noqa: PTH100
        raise QueryError(f"{len(unread):,} of {len(unread) + named:,} pictures could not be read and have no name")
