"""What made two pictures alike: the cosine, told apart by places of both.

An encoder ends in a map of features, a vector for each place of the picture, that is pooled, mapped to the embedding
and scaled to unit length. All of that is linear once the picture is given, so the embedding is a sum of one vector for
each place, and the cosine of two pictures a sum over pairs of places (Stylianou, Souvenir and Pless 2019, "Visualizing
Deep Similarity Networks"; Zhu, Yang and Chen 2019, "Visual Explanation for Deep Metric Learning"). The sum is exact:
nothing is estimated, and nothing is trained for it. A place is where a feature lies in the map; what a feature has seen
is larger than its place.

The way from the map to the embedding is read from the bundle's graph, so that any bundle can be asked, whoever made it.
Where a graph ends in something that is not linear in the map, grey patches are laid over one picture after the other
and the change of the cosine is told instead (occlusion: Zeiler and Fergus 2014).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from lookalike.encoder import Encoder, compiled
from lookalike.images import Picture, Pixels, read
from lookalike.vectors import Vectors, unit

Side = Literal["left", "right"]
Heat = npt.NDArray[np.float32]
Box = tuple[float, float, float, float]
Stack = npt.NDArray[Any]  # of float32, see `_Trace`
_Key = tuple[str, int]  # of an output of a graph: the name of its node, and which of that node's outputs

# Pixels of the longer side of what is shown.
SHOWN = 448
MATCHES = 5
# A finer map than this is no map of features, and its pairs would not fit into memory.
PLACES = 1024
# Occlusion: so many cells a side, and patches of 2 × 2 cells.
CELLS = 8
# Orange and blue, which the colour-blind tell apart.
_ADDS, _TAKES = np.array([255, 96, 0], dtype=np.float32), np.array([0, 96, 255], dtype=np.float32)
_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

__all__ = ["Explanation", "Match", "explain"]


@dataclass(frozen=True)
class Match:
    """Two places that are alike.

    Attributes:
        left: (x, y), the middle of the place in the left picture, as shares of its width and height.
        right: the same in the right picture.
        share: what the pair adds to the score.
    """

    left: tuple[float, float]
    right: tuple[float, float]
    share: float


@dataclass(frozen=True)
class Explanation:
    """What made two pictures alike.

    Attributes:
        score: their cosine, computed in float32.
        left: (h, w) float32, what each place of the left picture adds to the score; below zero where it speaks against
            it. With "correspondence" the sum is the score. With "occlusion", by how much the score falls, on average,
            where the place is covered.
        right: the same for the right picture.
        method: "correspondence" or "occlusion", see above.
        why: with "occlusion", why the graph could not be read; else "".
        matches: the pairs of places that add most, strongest first, each place in one pair; none with "occlusion".
        pictures: both, upright, reduced to `SHOWN` pixels.
        boxes: for each picture, what the map covers: (left, top, right, bottom) in shares of width and height. An
            encoder may not look at the border (within 0 to 1), or pad the picture (beyond).
    """

    score: float
    left: Heat
    right: Heat
    method: Literal["correspondence", "occlusion"]
    why: str
    matches: tuple[Match, ...]
    pictures: tuple[Image.Image, Image.Image]
    boxes: tuple[Box, Box]

    def overlay(self, side: Side, *, strength: float = 0.75) -> Image.Image:
        """A picture with its heat map over it: orange adds to the score, blue takes from it.

        Both sides have one scale: the strongest place of the two is the brightest. What the encoder did not see is
        dimmed.

        Args:
            side: "left" or "right".
            strength: how much the strongest place is covered, from 0 to 1.
        """
        number = _side(side)
        picture, box, heat = self.pictures[number], self.boxes[number], (self.left, self.right)[number]
        most = max(float(np.abs(self.left).max()), float(np.abs(self.right).max())) or 1.0
        spread, seen = _laid(heat / most, box, picture.size)
        base = np.asarray(picture, dtype=np.float32)
        grey = base @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        # Paler than the picture, so that the heat is the only strong colour.
        ground = 0.4 * base + 0.6 * (0.8 * grey + 0.2 * 255)[..., None]
        ground[~seen] = 0.75 * ground[~seen] + 0.25 * 128
        cover = strength * np.abs(spread)[..., None]
        colour = np.where(spread[..., None] >= 0, _ADDS, _TAKES)
        return Image.fromarray((ground * (1 - cover) + colour * cover).clip(0, 255).round().astype(np.uint8))

    def document(self) -> dict[str, Any]:
        """As JSON, without the pictures."""
        return {
            "score": self.score,
            "method": self.method,
            "why": self.why,
            "left": {"heat": self.left.tolist(), "box": list(self.boxes[0])},
            "right": {"heat": self.right.tolist(), "box": list(self.boxes[1])},
            "matches": [
                {"left": list(match.left), "right": list(match.right), "share": match.share} for match in self.matches
            ],
        }


def explain(encoder: Any, left: Picture, right: Picture) -> Explanation:
    """What made two pictures alike.

    Args:
        encoder: a `lookalike.Encoder`; any other with a method ``images`` is asked by occlusion.
        left: a path, the bytes of a file, an opened `PIL` image, or a `Region`.
        right: the same.

    Raises:
        ImageError: one cannot be read.
        BundleError: the graph cannot be run.
    """
    pictures = _reduced(left), _reduced(right)
    why = "the encoder is no bundle with a graph"
    if isinstance(encoder, Encoder):
        try:
            return _correspondence(encoder, (left, right), pictures)
        except _Unreadable as reason:
            why = str(reason)
    return _occlusion(encoder, pictures, why)


def _reduced(picture: Picture) -> Image.Image:
    image = read(picture, at_least=(SHOWN, SHOWN))
    image.thumbnail((SHOWN, SHOWN))
    return image


def _side(side: Side) -> int:
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', got {side!r}")
    return int(side == "right")


def _laid(heat: Heat, box: Box, size: tuple[int, int]) -> tuple[Heat, npt.NDArray[np.bool_]]:
    """A map brought to its place over a picture of (width, height): (height, width) heat, and what it covers."""
    width, height = size
    edges = [round(share * side) for share, side in zip(box, (width, height, width, height), strict=True)]
    across, down = max(1, edges[2] - edges[0]), max(1, edges[3] - edges[1])
    smooth = Image.fromarray(heat.astype(np.float32)).resize((across, down), Image.Resampling.BICUBIC)
    canvas, seen = Image.new("F", size), Image.new("1", size)
    canvas.paste(smooth, (edges[0], edges[1]))
    ImageDraw.Draw(seen).rectangle((edges[0], edges[1], edges[2] - 1, edges[3] - 1), fill=1)
    return np.asarray(canvas).clip(-1, 1), np.asarray(seen)


# ── correspondence ───────────────────────────────────────────────────────────────────────────────────────────────────


def _correspondence(
    encoder: Encoder, pictures: Sequence[Picture], shown: tuple[Image.Image, Image.Image]
) -> Explanation:
    graph = _GRAPHS.get(encoder)
    if graph is None:
        graph = _GRAPHS[encoder] = _Graph(encoder)
    ours, theirs = (graph.parts(encoder.bundle.preprocessing.load(picture)) for picture in pictures)
    shape = graph.places
    pairs = ours.astype(np.float64) @ theirs.T
    boxes = tuple(encoder.bundle.preprocessing.window(image) for image in shown)
    return Explanation(
        score=float(pairs.sum()),
        left=pairs.sum(1).reshape(shape).astype(np.float32),
        right=pairs.sum(0).reshape(shape).astype(np.float32),
        method="correspondence",
        why="",
        matches=tuple(_matches(pairs, shape, boxes)),
        pictures=shown,
        boxes=(boxes[0], boxes[1]),
    )


def _matches(pairs: npt.NDArray[np.float64], shape: tuple[int, int], boxes: Sequence[Box]) -> Iterator[Match]:
    """The strongest pairs, each place in one of them."""
    rest = pairs.copy()
    for _ in range(min(MATCHES, *pairs.shape)):
        one, two = np.unravel_index(int(rest.argmax()), rest.shape)
        if rest[one, two] <= 0:
            return
        yield Match(_middle(int(one), shape, boxes[0]), _middle(int(two), shape, boxes[1]), float(pairs[one, two]))
        rest[one, :] = rest[:, two] = -np.inf


def _middle(place: int, shape: tuple[int, int], box: Box) -> tuple[float, float]:
    down, across = divmod(place, shape[1])
    x = box[0] + (across + 0.5) / shape[1] * (box[2] - box[0])
    y = box[1] + (down + 0.5) / shape[0] * (box[3] - box[1])
    return round(min(max(x, 0.0), 1.0), 4), round(min(max(y, 0.0), 1.0), 4)


class _Unreadable(Exception):
    """A graph whose end is not linear in a map of features; says why."""


class _Graph:
    """A bundle's graph that gives its last map of features as well, and how the embedding follows from it.

    Attributes:
        places: (h, w) of the map.
    """

    def __init__(self, encoder: Encoder) -> None:
        traces: list[_Trace] = []

        def open_up(model: Any) -> None:
            try:
                traces.append(_Trace(model))
            except RuntimeError as error:  # a shape that is not known before it runs
                raise _Unreadable(f"the graph cannot be followed: {error}") from error
            model.add_outputs(traces[0].observed)

        self._network = compiled(encoder.bundle, 1, "fp32", open_up)
        self._trace = traces[0]
        self._lock = threading.Lock()
        self.places = self._trace.places

    def parts(self, pixels: Pixels) -> Vectors:
        """(height, width, 3) uint8 → (places, dim) float32, whose sum is the unit vector of the picture.

        What does not come from any place, as the head's bias, is dealt to all of them evenly: as if the head were
        applied at each place before the mean, which is the same.
        """
        with self._lock:
            results = self._network([pixels[None]])
            values = [np.array(results[number], dtype=np.float32) for number in range(1, len(results))]
            rows = self._trace.run(values)[:, 0]
        parts: Vectors = (rows[:-1] + rows[-1] / (len(rows) - 1)).astype(np.float32)
        return parts


_GRAPHS: WeakKeyDictionary[Encoder, _Graph] = WeakKeyDictionary()


class _Trace:
    """The end of a graph, from its map of features to the embedding: the embedding as a sum over places.

    Followed from the embedding up to the map are the operations that are linear once the picture is given. What else
    they need (weights, those of attention among them, and the length of a row that divides it) is `observed`, as a
    further output of the graph.

    A *stack* is an activation told apart by where it came from: a row for each place, and a last one for what came
    from none. (places + 1, *shape); the sum over the rows is the activation itself.
    """

    def __init__(self, model: Any) -> None:
        self.observed: list[Any] = []
        self._slots: dict[_Key, int] = {}
        self._from_picture: dict[_Key, bool] = {}
        self._map: Any = None
        self._values: Sequence[Stack] = ()
        self._stacks: dict[_Key, Stack] = {}
        self._end = model.outputs[0].get_node().input(0).get_source_output()
        self._follow(self._end)
        self._slot(self._map)
        views, _, height, width = _shape(self._map)
        self.places = (height, width)
        if height * width > PLACES:
            raise _Unreadable(f"the last map of the graph has {height} × {width} places: it is no map of features")
        self._homes = _homes(model, views, self.places)

    def run(self, values: Sequence[Stack]) -> Stack:
        """The values of what is `observed` → the embedding's stack, (places + 1, 1, dim)."""
        self._values = values
        try:
            return self._stack(self._end)
        finally:
            self._values = ()
            self._stacks.clear()

    # Following, once, when the graph is opened.

    def _follow(self, output: Any) -> None:
        """Go up from an output that comes from the picture. Raises _Unreadable where the way is not linear."""
        if _is_map(output):
            if self._map is not None and _key(output) != _key(self._map):
                raise _Unreadable("the graph joins several maps of features")
            self._map = output
            return
        kind, sources = _kind(output), _sources(output)
        rule = _RULES.get(kind)
        if rule is None:
            raise _Unreadable(f"the graph has a {kind} between its map of features and its vectors")
        if rule == "scale":
            sources = list(self._scaled(kind, sources))
        for number, source in enumerate(sources):
            if number == 0 or (rule == "sum" and self._depends(source)):
                self._follow(source) if self._depends(source) else self._slot(source)
            elif rule == "first" and self._depends(source) and not (kind == "MatMul" and _weighs(source)):
                raise _Unreadable(f"the graph has a {kind} of two things that both come from the picture")
            else:
                self._slot(source)

    def _scaled(self, kind: str, sources: Sequence[Any]) -> tuple[Any, Any]:
        """Which of two factors is a stack, and which is a constant, or one number for the picture."""
        one, two = sources
        for main, other in ((one, two), (two, one)) if kind == "Multiply" else ((one, two),):
            # The length of a row comes from the picture, too, but it is one number, and given.
            if self._depends(main) and (not self._depends(other) or math.prod(_shape(other)[1:]) == 1):
                return main, other
        raise _Unreadable(f"the graph has a {kind} of two things that both come from the picture")

    def _depends(self, output: Any) -> bool:
        """Whether an output comes from the picture."""
        if _key(output) not in self._from_picture:
            self._from_picture[_key(output)] = _reaches_input(output)
        return self._from_picture[_key(output)]

    def _slot(self, output: Any) -> None:
        """Ask for the value of an output."""
        if _key(output) not in self._slots:
            self._slots[_key(output)] = len(self.observed)
            self.observed.append(output)

    # Running, for each picture.

    def _value(self, output: Any) -> Stack:
        return self._values[self._slots[_key(output)]]

    def _stack(self, output: Any) -> Stack:
        if _key(output) not in self._stacks:
            self._stacks[_key(output)] = self._made(output)
        return self._stacks[_key(output)]

    def _made(self, output: Any) -> Stack:
        if _key(output) == _key(self._map):
            return self._unfolded()
        kind, sources, shape = _kind(output), _sources(output), _shape(output)
        if _RULES[kind] == "sum":
            return self._added(kind, sources, len(shape))
        if _RULES[kind] == "scale":
            main, other = self._scaled(kind, sources)
            factor = self._value(other)
            return _aligned(self._stack(main), len(shape)) * (1 / factor if kind == "Divide" else factor)
        if kind in ("ReduceMean", "ReduceSum", "ReduceMax"):
            return self._pooled(kind, sources, shape)
        constants = [self._value(source) for source in sources[1:]]
        return _mapped(kind, output.get_node().get_attributes(), self._stack(sources[0]), constants, shape)

    def _unfolded(self) -> Stack:
        """The map itself as a stack: each place holds nothing but its own features."""
        features = self._value(self._map)
        width = features.shape[3]
        stack = np.zeros((math.prod(self.places) + 1, *features.shape), dtype=np.float32)
        for view, homes in enumerate(self._homes):
            for place, home in enumerate(homes):
                row, column = divmod(place, width)
                stack[home, view, :, row, column] = features[view, :, row, column]
        return stack

    def _pooled(self, kind: str, sources: Sequence[Any], shape: tuple[int, ...]) -> Stack:
        source = sources[0]
        axes = tuple(int(axis) % len(_shape(source)) for axis in np.atleast_1d(self._value(sources[1])))
        of_map = _key(source) == _key(self._map) and sorted(axes) == [2, 3]
        if 0 in axes or (kind == "ReduceMax" and not of_map):
            raise _Unreadable(f"the graph has a {kind} over axes {axes}")
        if not of_map:
            reduce = np.sum if kind == "ReduceSum" else np.mean
            found: Stack = reduce(self._stack(source), axis=tuple(axis + 1 for axis in axes))
            return found.reshape(len(found), *shape)
        # As the unfolded map would give, which is nothing but zeros outside of its diagonal.
        features = self._value(source)
        flat = features.reshape(*features.shape[:2], -1)
        if kind == "ReduceMax":  # the largest of each channel has its place
            flat = np.where(np.arange(flat.shape[2]) == flat.argmax(2)[..., None], flat, 0)
        elif kind == "ReduceMean":
            flat = flat / flat.shape[2]
        stack = np.zeros((flat.shape[2] + 1, *flat.shape[:2]), dtype=np.float32)
        for view, homes in enumerate(self._homes):
            np.add.at(stack[:, view], homes, flat[view].T)
        return stack.reshape(len(stack), *shape)

    def _added(self, kind: str, sources: Sequence[Any], rank: int) -> Stack:
        terms = []
        for source in sources:
            if self._depends(source):
                terms.append(_aligned(self._stack(source), rank))
            else:  # a constant comes from no place
                value = self._value(source)
                term = np.zeros((math.prod(self.places) + 1, *(1,) * (rank - value.ndim), *value.shape), np.float32)
                term[-1] = value
                terms.append(term)
        return terms[0] - terms[1] if kind == "Subtract" else terms[0] + terms[1]


# How each operation between map and embedding is followed: a sum of both, one times a factor, or of its first input.
_RULES = {
    "Add": "sum",
    "Subtract": "sum",
    "Multiply": "scale",
    "Divide": "scale",
    "MatMul": "first",
    "ReduceMean": "first",
    "ReduceSum": "first",
    "ReduceMax": "first",
    "BatchNormInference": "first",
    "Relu": "first",
    "NormalizeL2": "first",
    "Convert": "first",
    "Reshape": "first",
    "Squeeze": "first",
    "Unsqueeze": "first",
}


def _key(output: Any) -> _Key:
    return output.get_node().get_friendly_name(), output.get_index()


def _kind(output: Any) -> str:
    return str(output.get_node().get_type_name())


def _sources(output: Any) -> list[Any]:
    return [value.get_source_output() for value in output.get_node().inputs()]


def _shape(output: Any) -> tuple[int, ...]:
    return tuple(output.get_shape())


def _reaches_input(output: Any) -> bool:
    waiting, met = [output], set()
    while waiting:
        one = waiting.pop()
        if _kind(one) == "Parameter":
            return True
        # The shape of a thing is known without the picture.
        if _key(one) not in met and _kind(one) != "ShapeOf":
            met.add(_key(one))
            waiting += _sources(one)
    return False


def _is_map(output: Any) -> bool:
    shape = output.get_partial_shape()
    return bool(shape.is_static) and len(shape) == 4 and math.prod(_shape(output)[2:]) > 1


def _weighs(output: Any) -> bool:
    """Whether an output is the weights of a mean over places, which attention draws from the picture."""
    while _kind(output) in ("Convert", "Transpose"):
        output = _sources(output)[0]
    return _kind(output) == "Softmax"


def _mapped(
    kind: str, attributes: dict[str, Any], stack: Stack, constants: Sequence[Stack], shape: tuple[int, ...]
) -> Stack:
    """What an operation of one stack and of constants makes of it."""
    if kind == "MatMul":
        return np.asarray(stack @ (constants[0].swapaxes(-1, -2) if attributes["transpose_b"] else constants[0]))
    if kind == "BatchNormInference":
        scale, shift, mean, variance = constants
        factor = scale / np.sqrt(variance + attributes["epsilon"])
        scaled: Stack = stack * factor
        scaled[-1] += shift - mean * factor
        return scaled
    if kind == "Relu":  # once the picture is given, a switch
        return np.asarray(stack * (stack.sum(0) > 0))
    if kind == "NormalizeL2":
        return np.asarray(stack / np.linalg.norm(stack.sum(0), axis=-1, keepdims=True))
    return stack.reshape(len(stack), *shape)  # Convert, Reshape, Squeeze, Unsqueeze


def _aligned(stack: Stack, rank: int) -> Stack:
    """A stack of activations of that many axes: new ones go between the places and the rest."""
    return stack.reshape(len(stack), *(1,) * (rank + 1 - stack.ndim), *stack.shape[1:])


def _homes(model: Any, views: int, places: tuple[int, int]) -> npt.NDArray[np.int64]:
    """(views, places): for each place of each view, which place of the picture it shows.

    A network may look at moved or mirrored views of the picture; where each of their pixels comes from is a constant
    of its graph.
    """
    height, width = places
    still = np.arange(height * width)
    if views == 1:
        return still[None]
    grids = [node for node in model.get_ordered_ops() if node.get_type_name() == "GridSample"]
    grid = grids[0].input(1).get_source_output().get_node() if len(grids) == 1 else None
    if grid is None or grid.get_type_name() != "Constant" or grid.shape[1] % views:
        raise _Unreadable(f"the graph makes {views} views of a picture in a way that is not known")
    points = np.asarray(grid.data, dtype=np.float64).reshape(views, -1, grid.shape[2], 2)
    down = ((np.arange(height) + 0.5) / height * points.shape[1]).astype(int)
    across = ((np.arange(width) + 0.5) / width * points.shape[2]).astype(int)
    # From -1 to 1 over the picture.
    shares = (points[:, down][:, :, across] + 1) / 2
    columns = (shares[..., 0] * width).astype(int).clip(0, width - 1)
    rows = (shares[..., 1] * height).astype(int).clip(0, height - 1)
    homes: npt.NDArray[np.int64] = (rows * width + columns).reshape(views, -1)
    return homes


# ── occlusion ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _occlusion(encoder: Any, pictures: tuple[Image.Image, Image.Image], why: str) -> Explanation:
    vectors = [unit(encoder.images([picture, *_covered(picture)])) for picture in pictures]
    maps = []
    for ours, theirs in (vectors, vectors[::-1]):
        cosines = ours.astype(np.float64) @ theirs[0]
        fall = (cosines[0] - cosines[1:]).reshape(CELLS - 1, CELLS - 1)
        total, count = np.zeros((CELLS, CELLS)), np.zeros((CELLS, CELLS))
        for down in (0, 1):
            for across in (0, 1):
                part = slice(down, down + CELLS - 1), slice(across, across + CELLS - 1)
                total[part] += fall
                count[part] += 1
        maps.append((total / count).astype(np.float32))
    score = float(vectors[0][0].astype(np.float64) @ vectors[1][0])
    return Explanation(score, maps[0], maps[1], "occlusion", why, (), pictures, (_WHOLE, _WHOLE))


def _covered(picture: Image.Image) -> Iterator[Image.Image]:
    """The picture with a patch over each 2 × 2 of its cells, in the mean colour of the picture."""
    colour = tuple(int(channel) for channel in np.asarray(picture).reshape(-1, 3).mean(0).round())
    for down in range(CELLS - 1):
        for across in range(CELLS - 1):
            copy = picture.copy()
            edges = [round(cell * side / CELLS) for cell, side in (
                (across, picture.width), (down, picture.height), (across + 2, picture.width), (down + 2, picture.height)
            )]  # fmt: skip
            copy.paste(colour, (edges[0], edges[1], edges[2], edges[3]))
            yield copy
