"""Encoders without a network: what any trained one has to beat. They answer the calls of `lookalike.encoder.Encoder`.

`Pixels` compares small pictures point by point; `ColourHistogram` counts colours wherever they are;
`BagOfVisualWords` counts small patterns wherever they are, and is what visual search was before networks.
`LinearSVM` is no encoder: it tells classes apart by the vectors of one, or by pixels.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
from PIL import Image

from lookalike.encoder import cores
from lookalike.errors import BundleError, MissingExtra, QueryError, ShapeError, TrainingError
from lookalike.images import Picture, read, shown
from lookalike.vectors import Vectors, unit

T = TypeVar("T")

# A vocabulary is learned from at most this many descriptors (as float32, 100 MB of SIFT's or 200 MB of ORB's) of at
# most this many pictures: at least 20 of each, and more would move its words no further.
SAMPLE = 200_000
SAMPLE_PICTURES = 10_000
# A match counts if the second nearest descriptor is this much further away (Lowe 2004, figure 11).
RATIO = 0.8
# Matches may lie this share of the long side away from where the transformation puts them.
REACH = 1 / 40
# Of 700 pairs of unrelated photographs none had more than 5 inliers (with a homography: 8), of 175 pairs of one and its
# distorted copy none fewer than 19: so few are chance, and must not overrule the cosine.
LEAST_INLIERS = 6
# Over the training rows, of a support vector machine: with averaged weights, more change little.
PASSES = 20

__all__ = ["BagOfVisualWords", "ColourHistogram", "LinearSVM", "Pixels"]


class Pixels:
    """The picture, squashed to a small square, as one long row of colour values around mid-grey.

    The simplest thing that could be called visual search. It finds near-copies and equal layouts (products
    photographed alike before one background do well), and fails as soon as anything moves.

    Args:
        size: side of the square in pixels.
    """

    name = "pixels"

    def __init__(self, size: int = 16) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        self.size = size
        self.dim = 3 * size * size + 1

    def images(self, pictures: Iterable[Picture]) -> Vectors:
        """Encode pictures: (n, dim) float32, rows of unit length. Raises ImageError at one that cannot be read."""
        rows = [self._row(read(picture, at_least=(self.size, self.size))) for picture in pictures]
        return unit(np.stack(rows)) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _row(self, image: Image.Image) -> npt.NDArray[np.float32]:
        small = image.resize((self.size, self.size), Image.Resampling.BOX)
        values = np.asarray(small, dtype=np.float32).ravel() / 127.5 - 1
        # The constant gives an evenly grey picture, whose values are all zero, a direction too.
        return np.append(values, np.float32(1))


class ColourHistogram:
    """How much of the picture has which colour: a histogram over hue, saturation and brightness.

    Square roots of the shares are taken, so that the cosine of two rows is the Bhattacharyya coefficient of the two
    histograms: 1 for the same colours in the same amounts, 0 for no colour in common. Where things are is ignored.

    Args:
        bins: how many steps of (hue, saturation, brightness).
        size: the picture is first squashed to a square of this side.
    """

    name = "colour histogram"

    def __init__(self, bins: tuple[int, int, int] = (12, 4, 4), size: int = 64) -> None:
        if min(bins) < 1 or size < 1:
            raise ValueError(f"bins and size must be at least 1, got {bins} and {size}")
        self.bins = bins
        self.size = size
        self.dim = bins[0] * bins[1] * bins[2]

    def images(self, pictures: Iterable[Picture]) -> Vectors:
        """Encode pictures: (n, dim) float32, rows of unit length. Raises ImageError at one that cannot be read."""
        rows = [self._row(read(picture, at_least=(self.size, self.size))) for picture in pictures]
        return unit(np.stack(rows)) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _row(self, image: Image.Image) -> npt.NDArray[np.float32]:
        small = image.resize((self.size, self.size), Image.Resampling.BOX).convert("HSV")
        steps = np.asarray(small, dtype=np.int64).reshape(-1, 3) * self.bins // 256
        cells = (steps[:, 0] * self.bins[1] + steps[:, 1]) * self.bins[2] + steps[:, 2]
        counts = np.bincount(cells, minlength=self.dim).astype(np.float32)
        shares: npt.NDArray[np.float32] = np.sqrt(counts / counts.sum())
        return shares


class _Features(NamedTuple):
    """What a detector found: (n, 2) float32 places in pixels of the reduced picture, (n, width) descriptors."""

    places: npt.NDArray[np.float32]
    descriptors: npt.NDArray[Any]


class BagOfVisualWords:
    """How often the picture shows which small pattern, as a text is told by its words, wherever they are.

    Local features are described by SIFT, as square roots of their shares (RootSIFT), or by ORB, whose 256 bits become
    numbers, so that the squared distance is Hamming's and a mean exists. Each counts for the nearest of the words that
    k-means found. A row holds, for each word, the square root of its count (one wall of bricks must not outvote all
    else) times its inverse document frequency log(1 + N / n), for n of the N pictures learned from having the word;
    that is log(N / n) for rare words, but never 0. It is then scaled to length 1. One more cell is 1 for a picture
    without features and 0 for others: such pictures are like one another and like nothing else.

    It finds the same thing again, turned, cropped or partly hidden. It knows no colours and no kinds of things.

    Among 1,500 photographs of Flickr8k, parts of 12 to 30 % turned by up to 30° find their whole first in 87, 95 and
    98 % with 1,000, 2,000 and 4,000 words; learning takes 5, 8 and 25 s beside the reading, a row 4, 8 and 16 kB. Hence
    the default. Of distorted copies, 99 % find theirs first at 240 pixels, 94 % at 320, which takes twice as long.

    Sources: Sivic and Zisserman, "Video Google" (ICCV 2003); Lowe, "Distinctive Image Features from Scale-Invariant
    Keypoints" (IJCV 2004); Rublee et al., "ORB: an efficient alternative to SIFT or SURF" (ICCV 2011); Arandjelović and
    Zisserman, "Three things everyone should know to improve object retrieval" (CVPR 2012); square roots against bursts:
    Jégou, Douze and Schmid, "On the burstiness of visual elements" (CVPR 2009).

    Args:
        words: of the vocabulary, at most; what is learned from fewer different descriptors has fewer.
        detector: "sift" or "orb", whose features take a tenth of the time.
        size: what the long side is brought to, in pixels. Smaller pictures are enlarged: neither detector finds much in
            a thumbnail as it is.
        features: the strongest of a picture that count. With 500, something noisy in front of it took too many.
        seed: of the sample and of k-means; equal seeds and pictures give equal vocabularies.

    Attributes:
        dim: length of a row, words + 1.
        centres_: (k, 128 or 256) float32, the words in the space of descriptors, k ≤ words; None before `fit`.
        idf_: (k,) float32, the weight of each; None before `fit`.

    Raises:
        ValueError: an impossible setting.
    """

    def __init__(
        self,
        words: int = 2000,
        detector: Literal["sift", "orb"] = "sift",
        size: int = 240,
        features: int = 1000,
        seed: int = 0,
    ) -> None:
        if detector not in ("sift", "orb"):
            raise ValueError(f"detector must be sift or orb, got {detector!r}")
        if words < 1 or features < 1 or size < 16 or not 0 <= seed < 1 << 32:
            raise ValueError(
                "words and features must be at least 1, size at least 16 and seed from 0 to 2³² - 1, "
                f"got {words}, {features}, {size} and {seed}"
            )
        self.words, self.detector, self.size, self.features, self.seed = words, detector, size, features, seed
        self.name = f"visual words ({detector.upper()})"
        self.dim = words + 1
        self.centres_: Vectors | None = None
        self.idf_: Vectors | None = None

    def fit(self, pictures: Iterable[Picture]) -> BagOfVisualWords:
        """Learn the words and how rare they are, from at most 10,000 of the pictures, each of which is read twice.

        Args:
            pictures: what will be searched, or alike; a list is made of them, their pixels are not kept.

        Returns:
            Itself.

        Raises:
            ImageError: at one that cannot be read. Nothing is learned then.
            MissingExtra: OpenCV or scikit-learn is not installed.
            TrainingError: no pictures.
        """
        _need_cv2()
        try:
            from sklearn.cluster import MiniBatchKMeans
        except ImportError as error:
            raise MissingExtra("learning visual words", "scikit-learn", "baselines") from error
        chosen, dice = list(pictures), np.random.default_rng(self.seed)
        if not chosen:
            raise TrainingError("visual words cannot be learned from no pictures: give at least one")
        if len(chosen) > SAMPLE_PICTURES:
            chosen = [chosen[i] for i in np.sort(dice.choice(len(chosen), SAMPLE_PICTURES, replace=False))]
        quota = SAMPLE // len(chosen)
        parts = [np.empty((0, self._width), np.float32)]
        for numbers in _streamed(self._numbers, chosen):
            parts.append(numbers[np.sort(dice.permutation(len(numbers))[:quota])])
        sample = np.concatenate(parts)
        parts.clear()
        centres = sample[:0]
        # k-means wants a point for each centre, and a set of drawings may hold the same few descriptors over and over.
        if count := min(self.words, len({numbers.tobytes() for numbers in sample})):
            means = MiniBatchKMeans(count, random_state=self.seed, n_init=1, compute_labels=False).fit(sample)
            centres = np.ascontiguousarray(means.cluster_centers_, dtype=np.float32)
        having = np.zeros(len(centres))
        for counts in _streamed(lambda picture: self._counts(picture, centres), chosen):
            having += counts > 0
        # A word that k-means moved away from every descriptor counts as one picture's.
        self.idf_ = np.log1p(len(chosen) / np.maximum(having, 1)).astype(np.float32)
        self.centres_ = centres
        return self

    def images(self, pictures: Iterable[Picture]) -> Vectors:
        """Encode pictures: (n, words + 1) float32, rows of unit length.

        Raises:
            ImageError: at one that cannot be read.
            MissingExtra: OpenCV is not installed.
            QueryError: no words yet.
        """
        centres, idf = self._learned()

        def row(picture: Picture) -> Vectors:
            values = np.zeros(self.dim, dtype=np.float32)
            values[: len(idf)] = np.sqrt(self._counts(picture, centres)) * idf
            values[-1] = not values.any()
            return values

        rows = list(_streamed(row, pictures))
        return unit(np.stack(rows)) if rows else np.empty((0, self.dim), dtype=np.float32)

    def verify(self, query: Picture, candidates: Iterable[Picture]) -> npt.NDArray[np.int64]:
        """How many features of the query lie in each candidate as they do in the query; needs no words.

        Descriptors are matched by Lowe's ratio test, each of the candidate's to one of the query's at most. RANSAC then
        seeks the shift, turn and scaling that the most matches agree with.

        Returns:
            (m,) int64, inliers for each of the m candidates; up to 5 are chance. The same in every call, because
            OpenCV's RANSAC has a seed of its own.

        Raises:
            ImageError: at one that cannot be read.
            MissingExtra: OpenCV is not installed.
        """
        ours = self._features(query)
        found = _streamed(lambda candidate: self._inliers(ours, self._features(candidate)), candidates)
        return np.fromiter(found, dtype=np.int64)

    def reranked(
        self, query_picture: Picture, candidate_pictures: Sequence[Picture], scores: Any, top: int = 50
    ) -> npt.NDArray[np.intp]:
        """The order of candidates once the best have been verified: most inliers first, then highest score, then place.

        Fewer than 6 inliers count as none. Candidates after the first `top` keep the order of their scores.

        Args:
            query_picture: what was asked for.
            candidate_pictures: what was found, m of them, in any order.
            scores: (m,) how alike each is.
            top: how many are verified, at 10 to 20 ms each per core.

        Returns:
            (m,) positions of candidates, best first.

        Raises:
            ImageError: at one of the verified that cannot be read.
            MissingExtra: OpenCV is not installed.
            ShapeError: not one finite score per candidate.
            ValueError: `top` is negative.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.shape != (len(candidate_pictures),) or not np.isfinite(values).all():
            raise ShapeError(f"scores must be {len(candidate_pictures)} finite numbers, got shape {values.shape}")
        if top < 0:
            raise ValueError(f"top must be at least 0, got {top}")
        order = np.argsort(-values, kind="stable")
        inliers = self.verify(query_picture, [candidate_pictures[i] for i in order[:top]])
        inliers[inliers < LEAST_INLIERS] = 0
        order[:top] = order[:top][np.argsort(-inliers, kind="stable")]
        return order

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings and words as one .npz file, whole or not at all. Raises QueryError without words, OSError."""
        centres, idf = self._learned()
        settings = {name: getattr(self, name) for name in _SETTINGS}
        scratch = Path(f"{os.fspath(path)}.part")
        try:
            with scratch.open("wb") as file:
                np.savez(file, format=1, centres=centres, idf=idf, **settings)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BagOfVisualWords:
        """Read what `save` wrote; nothing is unpickled. Raises BundleError: missing, damaged, or not such a file."""
        try:
            # Opened here, because NumPy forgets to close what turns out not to be an archive.
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as held:
                if held["format"].item() != 1:
                    raise ValueError("written by another version")
                settings = {name: held[name].item() for name in _SETTINGS}
                centres, idf = held["centres"], held["idf"]
            if not all(type(value) is (str if name == "detector" else int) for name, value in settings.items()):
                raise ValueError(f"impossible settings {settings}")
            bag = cls(**settings)
            fits = centres.ndim == 2 and centres.shape[1] == bag._width and len(centres) <= bag.words
            if not fits or idf.shape != centres.shape[:1] or {centres.dtype, idf.dtype} != {np.dtype(np.float32)}:
                raise ValueError(f"words of {centres.dtype} {centres.shape}, weights of {idf.dtype} {idf.shape}")
            if not (np.isfinite(centres).all() and np.isfinite(idf).all() and (idf > 0).all()):
                raise ValueError("words or weights out of range")
        except _UNREADABLE as error:
            raise BundleError(
                f"no visual words in {shown(path)} ({type(error).__name__}: {error}): fit and save them again"
            ) from error
        bag.centres_, bag.idf_ = centres, idf
        return bag

    @property
    def _width(self) -> int:
        return 128 if self.detector == "sift" else 256

    def _learned(self) -> tuple[Vectors, Vectors]:
        if self.centres_ is None or self.idf_ is None:
            raise QueryError(f"{self.name} have not been learned: call fit(pictures) first, or load them")
        return self.centres_, self.idf_

    def _features(self, picture: Picture) -> _Features:
        """The strongest features; descriptors as they are compared, which for ORB are 32 bytes."""
        cv2 = _need_cv2()
        image = read(picture, at_least=(self.size, self.size)).convert("L")
        scale = self.size / max(image.size)
        # ORB stumbles over lines; where there is no room for a feature, none is found.
        wide, high = (max(8, round(side * scale)) for side in image.size)
        grey = np.asarray(image.resize((wide, high), Image.Resampling.BICUBIC))
        # One detector per picture: they keep state, and pictures are read in threads.
        make = cv2.SIFT_create if self.detector == "sift" else cv2.ORB_create
        points, descriptors = make(nfeatures=self.features).detectAndCompute(grey, None)
        if not points:
            empty = np.empty((0, 128), np.float32) if self.detector == "sift" else np.empty((0, 32), np.uint8)
            return _Features(np.empty((0, 2), np.float32), empty)
        # OpenCV keeps more than it was asked for where the last are equally strong.
        places = np.array([point.pt for point in points[: self.features]], dtype=np.float32)
        descriptors = descriptors[: self.features]
        if self.detector == "sift":
            descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-9))
        return _Features(places, descriptors)

    def _numbers(self, picture: Picture) -> Vectors:
        """(n, width) float32 descriptors, as k-means takes them."""
        descriptors = self._features(picture).descriptors
        numbers = descriptors if self.detector == "sift" else np.unpackbits(descriptors, axis=1)
        return numbers.astype(np.float32, copy=False)

    def _counts(self, picture: Picture, centres: Vectors) -> npt.NDArray[np.int64]:
        """(k,) how many features of a picture are nearest to each word."""
        numbers = self._numbers(picture)
        if not len(numbers) or not len(centres):
            return np.zeros(len(centres), dtype=np.int64)
        # |x - c|² without |x|², which is the same for all words.
        nearest = (np.einsum("ij,ij->i", centres, centres) - 2 * numbers @ centres.T).argmin(axis=1)
        return np.bincount(nearest, minlength=len(centres))

    def _inliers(self, ours: _Features, theirs: _Features) -> int:
        cv2 = _need_cv2()
        matcher = cv2.BFMatcher(cv2.NORM_L2 if self.detector == "sift" else cv2.NORM_HAMMING)
        pairs = matcher.knnMatch(ours.descriptors, theirs.descriptors, k=2) if len(theirs.places) > 1 else ()
        good = [first for first, second in pairs if first.distance < RATIO * second.distance]
        # Many features that all match one would agree with a picture shrunk to that point: the nearest keeps it.
        by_theirs = {match.trainIdx: match for match in sorted(good, key=lambda match: -match.distance)}
        if len(by_theirs) < 2:
            return 0
        _, inside = cv2.estimateAffinePartial2D(
            ours.places[[match.queryIdx for match in by_theirs.values()]],
            theirs.places[list(by_theirs)],
            method=cv2.RANSAC,
            ransacReprojThreshold=self.size * REACH,
        )
        return 0 if inside is None else int(inside.sum())


_SETTINGS = ("words", "detector", "size", "features", "seed")
# What NumPy raises about a file that is missing, damaged, or another kind of file.
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, MemoryError, RuntimeError, BadZipFile, zlib.error)


def _need_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra("a bag of visual words", "opencv-python-headless", "baselines") from error
    return cv2


def _streamed(work: Callable[[Picture], T], pictures: Iterable[Picture]) -> Iterator[T]:
    """`map` in threads (OpenCV and decoders let go of the interpreter), in order, only a few results ahead."""
    threads = cores()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="lookalike-words")
    waiting: deque[Future[T]] = deque()
    try:
        for picture in pictures:
            waiting.append(pool.submit(work, picture))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class LinearSVM:
    """A linear support vector machine over any number of classes, with scikit-learn's contract.

    One machine per class against all others, hinge loss, and the highest score wins (Rifkin and Klautau, "In Defense of
    One-Vs-All Classification", JMLR 2004). Columns are first brought to mean 0 and deviation 1 over the training rows,
    and rows divided by √dim, so that one `cost` means the same on pixels and on embeddings. Fitted by averaged
    stochastic gradient descent, in 20 passes over the rows (scikit-learn's ``SGDClassifier``). Of 4,500 product
    photographs as 3,072 colour values each, the exact solver of the multiclass hinge of Crammer and Singer (liblinear)
    took longer, and after 1,000 passes had neither converged nor named as many new ones rightly (75 against 80 %).

    Args:
        cost: C, the weight of errors against the width of the margin; larger fits the training rows more closely.
        seed: of the order in which rows are looked at.

    Attributes:
        classes_: (c,) the labels there are, in order; after `fit`, as the others.
        coef_: (c, dim) float64, a row for each class, for rows as they come; there are two of them for two classes.
        intercept_: (c,) float64.

    Raises:
        ValueError: `cost` is not above 0.
    """

    def __init__(self, cost: float = 10.0, seed: int = 0) -> None:
        if not cost > 0:
            raise ValueError(f"cost must be above 0, got {cost}")
        self.cost, self.seed = cost, seed
        self.classes_: npt.NDArray[Any] | None = None
        self.coef_: npt.NDArray[np.float64] = np.empty((0, 0))
        self.intercept_: npt.NDArray[np.float64] = np.empty(0)

    def fit(self, vectors: Any, labels: Any) -> LinearSVM:
        """Learn to tell the labels apart.

        Args:
            vectors: (n, dim) finite numbers.
            labels: (n,) of any one type that can be compared, at least two different ones.

        Returns:
            Itself.

        Raises:
            MissingExtra: scikit-learn is not installed.
            ShapeError: the shapes do not fit, or a number is not finite.
            TrainingError: fewer than two classes.
        """
        try:
            from sklearn.linear_model import SGDClassifier
        except ImportError as error:
            raise MissingExtra("a support vector machine", "scikit-learn", "baselines") from error
        rows, label = _rows(vectors), np.asarray(labels)
        if label.shape != (len(rows),):
            raise ShapeError(f"labels must be one for each of {len(rows)} rows, got shape {label.shape}")
        classes, numbers = np.unique(label, return_inverse=True)
        if len(classes) < 2:
            raise TrainingError(f"a classifier needs at least two classes, got {len(classes)}")
        mean, spread = rows.mean(0), rows.std(0)
        # A column that is the same everywhere tells nothing; what it will be elsewhere must not matter either.
        scale = np.divide(1, spread * np.sqrt(rows.shape[1]), out=np.zeros_like(spread), where=spread > 1e-12)
        machine = SGDClassifier(
            alpha=1 / (self.cost * len(rows)), average=True, max_iter=PASSES, tol=None, n_jobs=cores(),
            random_state=self.seed,
        )  # fmt: skip
        machine.fit((rows - mean) * scale, numbers)
        weights, offsets = machine.coef_, machine.intercept_
        if len(classes) == 2:  # scikit-learn gives the second class alone
            weights, offsets = np.concatenate([-weights, weights]), np.concatenate([-offsets, offsets])
        self.classes_, self.coef_ = classes, weights * scale
        self.intercept_ = offsets - self.coef_ @ mean
        return self

    def decision_function(self, vectors: Any) -> npt.NDArray[np.float64]:
        """Scores of each class: (n, c) float64, also for two classes; above 0 is its side of the margin.

        Raises:
            QueryError: nothing learned yet.
            ShapeError: rows of another length, or a number that is not finite.
        """
        if self.classes_ is None:
            raise QueryError("this support vector machine has learned nothing: call fit(vectors, labels) first")
        rows = _rows(vectors)
        if rows.shape[1] != self.coef_.shape[1]:
            raise ShapeError(f"rows must have {self.coef_.shape[1]} numbers, as in fit, got {rows.shape[1]}")
        scores: npt.NDArray[np.float64] = rows @ self.coef_.T + self.intercept_
        return scores

    def predict(self, vectors: Any) -> npt.NDArray[Any]:
        """The label of the highest score of each row: (n,). Errors as for `decision_function`."""
        best = self.decision_function(vectors).argmax(1)
        assert self.classes_ is not None
        labels: npt.NDArray[Any] = self.classes_[best]
        return labels

    def score(self, vectors: Any, labels: Any) -> float:
        """The share of rows whose label is predicted. Errors as for `decision_function`."""
        return float((self.predict(vectors) == np.asarray(labels)).mean())


def _rows(vectors: Any) -> npt.NDArray[np.float64]:
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ShapeError(f"vectors must have shape (n, dim), n and dim above 0, got {rows.shape}")
    if not np.isfinite(rows).all():
        raise ShapeError(f"vectors must be finite: row {int(np.argmin(np.isfinite(rows).all(1)))} is not")
    return rows
