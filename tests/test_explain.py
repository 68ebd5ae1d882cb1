"""What made two pictures alike: sums that are the cosine, heat that lies where it should, and what is said of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.bundle import write_bundle
from lookalike.cli import main
from lookalike.encoder import Encoder
from lookalike.errors import ImageError
from lookalike.explain import Explanation, explain

SIZE = 32
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
TINY = str(Path(__file__).parent / "data" / "tiny")


def noise(seed: int, side: int = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


class Graph:
    """A small ONNX graph, node by node: a convolution, then whatever the test is about."""

    def __init__(self, seed: int = 1) -> None:
        self.dice = np.random.default_rng(seed)
        self.nodes, self.constants, self.count = [], [], 0

    def constant(self, values) -> str:
        from onnx import numpy_helper

        values = np.asarray(values)
        kept = values.astype(np.int64) if values.dtype.kind == "i" else values.astype(np.float32)
        self.constants.append(numpy_helper.from_array(kept, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def random(self, *shape: int) -> str:
        return self.constant(self.dice.normal(size=shape))

    def node(self, kind: str, *inputs: str, **attributes) -> str:
        from onnx import helper

        self.count += 1
        self.nodes.append(helper.make_node(kind, list(inputs), [f"v{self.count}"], **attributes))
        return f"v{self.count}"

    def unit(self, rows: str) -> str:
        squares = self.node("Mul", rows, rows)
        length = self.node("Sqrt", self.node("ReduceSum", squares, self.constant([1]), keepdims=1))
        return self.node("Div", rows, length)

    def mean(self, maps: str) -> str:
        return self.node("ReduceMean", maps, axes=[2, 3], keepdims=0)

    def features(self, pixels: str = "pixels") -> str:
        """(n, 8, 4, 4), none of them below zero."""
        found = self.node("Conv", pixels, self.random(8, 3, 8, 8), kernel_shape=[8, 8], strides=[8, 8])
        return self.node("Relu", found)

    def encoder(self, last: str, dim: int, where: Path, **image) -> Encoder:
        from onnx import TensorProto, helper

        self.nodes[-1].output[0] = last if last == "vectors" else "vectors"
        shapes = [("pixels", ["n", 3, SIZE, SIZE]), ("vectors", ["n", dim])]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes]
        graph = helper.make_graph(self.nodes, "test", ends[:1], ends[1:], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        manifest = {
            "name": "test",
            "dim": dim,
            "image": {"graph": "image.onnx", "size": [SIZE, SIZE], "mean": MEAN, "std": STD} | image,
        }
        return Encoder(
            write_bundle(where / "bundle", manifest, {"image.onnx": model.SerializeToString(), "README.md": b""}),
            precision="fp32",
        )


def linear(graph: Graph) -> tuple[str, int]:
    rows = graph.node("MatMul", graph.mean(graph.features()), graph.random(8, 5))
    return graph.unit(graph.node("Add", rows, graph.random(5))), 5


def gemm(graph: Graph) -> tuple[str, int]:
    pooled = graph.mean(graph.features())
    return graph.unit(graph.node("Gemm", pooled, graph.random(5, 8), graph.random(5), transB=1)), 5


def whitened(graph: Graph) -> tuple[str, int]:
    rows = graph.unit(graph.node("MatMul", graph.mean(graph.features()), graph.random(8, 6)))
    rows = graph.node("Sub", rows, graph.random(6))
    return graph.unit(graph.node("MatMul", rows, graph.random(6, 4))), 4


def perceptron(graph: Graph) -> tuple[str, int]:
    rows = graph.node("MatMul", graph.mean(graph.features()), graph.random(8, 12))
    scale, shift, mean = (graph.random(12) for _ in range(3))
    variance = graph.constant(graph.dice.uniform(0.5, 2, 12))
    rows = graph.node("Relu", graph.node("BatchNormalization", rows, scale, shift, mean, variance))
    return graph.unit(graph.node("Add", graph.node("MatMul", rows, graph.random(12, 5)), graph.random(5))), 5


def gated(graph: Graph) -> tuple[str, int]:
    pooled = graph.mean(graph.features())
    fixed = graph.node("MatMul", graph.node("Sub", pooled, graph.random(8)), graph.random(8, 5))
    branch = graph.node("Mul", graph.random(5), graph.node("MatMul", pooled, graph.random(8, 5)))
    return graph.unit(graph.node("Add", fixed, branch)), 5


def largest(graph: Graph) -> tuple[str, int]:
    maps = graph.features()
    both = graph.node("Add", graph.mean(maps), graph.node("ReduceMax", maps, axes=[2, 3], keepdims=0))
    return graph.node("LpNormalization", graph.node("MatMul", both, graph.random(8, 5)), axis=1, p=2), 5


def flattened(graph: Graph) -> tuple[str, int]:
    maps = graph.node("AveragePool", graph.features(), kernel_shape=[2, 2], strides=[2, 2])
    rows = graph.node("MatMul", graph.node("Flatten", maps, axis=1), graph.random(32, 6))
    return graph.unit(graph.node("Add", rows, graph.random(6))), 6


def attending(graph: Graph) -> tuple[str, int]:
    """Two means with weights drawn from the picture, as `lookalike.training.networks.pooling.Attention` makes them."""
    maps = graph.features()
    places = graph.node("Reshape", maps, graph.constant([-1, 8, 16]))
    drawn = graph.node("Reshape", graph.node("Conv", maps, graph.random(2, 8, 1, 1)), graph.constant([-1, 2, 16]))
    weights = graph.node("Transpose", graph.node("Softmax", drawn, axis=2), perm=[0, 2, 1])
    rows = graph.node("Reshape", graph.node("MatMul", places, weights), graph.constant([-1, 16]))
    return graph.unit(graph.node("Add", graph.node("MatMul", rows, graph.random(16, 5)), graph.random(5))), 5


def kept_axes(graph: Graph) -> tuple[str, int]:
    pooled = graph.node("GlobalAveragePool", graph.features())
    rows = graph.node("MatMul", graph.node("Flatten", pooled, axis=1), graph.random(8, 5))
    return graph.unit(graph.node("Add", rows, graph.random(5))), 5


def mirrored(graph: Graph) -> tuple[str, int]:
    """The mean of the picture and its mirror image, as `lookalike.training.networks.views` writes it."""
    steps = (np.arange(SIZE) + 0.5) / SIZE * 2 - 1
    still = np.stack(np.meshgrid(steps, steps), axis=-1)
    grid = np.concatenate([still, still * [-1, 1]])[None]
    sheet = graph.node("Reshape", "pixels", graph.constant([1, -1, SIZE, SIZE]))
    moved = graph.node("GridSample", sheet, graph.constant(grid), padding_mode="border", align_corners=0)
    moved = graph.node("Reshape", moved, graph.constant([-1, 3, 2, SIZE, SIZE]))
    moved = graph.node(
        "Reshape", graph.node("Transpose", moved, perm=[0, 2, 1, 3, 4]), graph.constant([-1, 3, SIZE, SIZE])
    )
    rows = graph.unit(graph.node("MatMul", graph.mean(graph.features(moved)), graph.random(8, 5)))
    rows = graph.node("Reshape", rows, graph.constant([-1, 2, 5]))
    return graph.unit(graph.node("ReduceMean", rows, axes=[1], keepdims=0)), 5


ENDS = (linear, gemm, whitened, perceptron, gated, largest, flattened, attending, kept_axes, mirrored)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
def test_what_the_places_add_is_the_cosine(end, tmp_path):
    pytest.importorskip("onnx")
    graph = Graph()
    encoder = graph.encoder(*end(graph), tmp_path)
    ours, theirs = encoder.images([noise(1), noise(2)])
    found = explain(encoder, noise(1), noise(2))
    assert (found.method, found.why) == ("correspondence", "")
    assert found.score == pytest.approx(float(ours @ theirs), abs=2e-5)
    assert found.left.sum() == pytest.approx(found.score, abs=1e-5)
    assert found.right.sum() == pytest.approx(found.score, abs=1e-5)
    assert found.left.dtype == np.float32 and found.left.shape == ((2, 2) if end is flattened else (4, 4))
    assert np.ptp(found.left) > 1e-4


def test_each_place_adds_what_its_definition_says(tmp_path):
    pytest.importorskip("onnx")
    graph = Graph()
    weights, shift = graph.dice.normal(size=(3, 5)), graph.dice.normal(size=5)
    cells = graph.node("AveragePool", "pixels", kernel_shape=[8, 8], strides=[8, 8])
    rows = graph.node("MatMul", graph.mean(cells), graph.constant(weights))
    encoder = graph.encoder(graph.unit(graph.node("Add", rows, graph.constant(shift))), 5, tmp_path)
    vectors = []
    for picture in (noise(1), noise(2)):
        pixels = (np.asarray(picture) / 255 - MEAN) / STD
        parts = [
            [(pixels[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean((0, 1)) @ weights + shift) / 16 for x in range(4)]
            for y in range(4)
        ]
        vectors.append(np.array(parts) / np.linalg.norm(np.sum(parts, axis=(0, 1))))
    wanted = np.zeros((2, 4, 4))
    for y in range(4):
        for x in range(4):
            for other in vectors[1].reshape(16, 5):
                wanted[0, y, x] += vectors[0][y, x] @ other
            for other in vectors[0].reshape(16, 5):
                wanted[1, y, x] += vectors[1][y, x] @ other
    found = explain(encoder, noise(1), noise(2))
    assert np.allclose(found.left, wanted[0], atol=1e-5)
    assert np.allclose(found.right, wanted[1], atol=1e-5)
    best = max(float(a @ b) for a in vectors[0].reshape(16, 5) for b in vectors[1].reshape(16, 5))
    assert found.matches[0].share == pytest.approx(best, abs=1e-5)


def test_a_mirror_image_among_the_views_is_turned_back(tmp_path):
    pytest.importorskip("onnx")
    graph = Graph()
    encoder = graph.encoder(*mirrored(graph), tmp_path)
    one = Image.new("RGB", (SIZE, SIZE), "white")
    one.paste(noise(3, 16), (0, 0))
    mirror = one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found, other = explain(encoder, one, noise(4)), explain(encoder, mirror, noise(4))
    assert other.score == pytest.approx(found.score, abs=1e-5)
    assert np.allclose(other.left, found.left[:, ::-1], atol=1e-5)
    assert not np.allclose(found.left, found.left[:, ::-1], atol=1e-3)


@pytest.mark.parametrize("nonlinear", ["Sigmoid", "Exp"])
def test_another_graph_is_explained_by_occlusion_and_it_is_said(nonlinear, tmp_path):
    pytest.importorskip("onnx")
    graph = Graph()
    rows = graph.node(nonlinear, graph.node("MatMul", graph.mean(graph.features()), graph.constant(np.eye(8) / 50)))
    encoder = graph.encoder(graph.unit(rows), 8, tmp_path)
    found = explain(encoder, noise(1), noise(2))
    assert found.method == "occlusion" and nonlinear in found.why
    assert found.matches == ()
    ours, theirs = encoder.images([noise(1), noise(2)])
    assert found.score == pytest.approx(float(ours @ theirs), abs=1e-5)


def test_the_encoder_that_ships_adds_up_too(default_encoder, photographs):
    encoder = Encoder.default(precision="fp32")
    ours, theirs = encoder.images(photographs[1:3])
    found = explain(encoder, photographs[1], photographs[2])
    assert found.method == "correspondence"
    assert found.score == pytest.approx(float(ours @ theirs), abs=1e-4)
    assert found.left.sum() == pytest.approx(found.score, abs=1e-4)


def test_the_heat_lies_where_a_picture_was_pasted(default_encoder, photographs):
    cat = Image.open(photographs[1]).convert("RGB").resize((160, 160))
    canvas = Image.new("RGB", (320, 320), (128, 128, 128))
    canvas.paste(cat, (160, 160))
    found = explain(default_encoder, canvas, cat)
    h, w = found.left.shape
    corner = found.left[(h - 1) // 2 :, (w - 1) // 2 :]
    assert corner.sum() > 0.75 * found.left.sum() > 0
    best = found.matches[0].left
    assert min(best) >= 0.45


def test_turning_the_question_round_turns_the_answer_round(default_encoder, photographs):
    one, other = explain(default_encoder, *photographs[:2]), explain(default_encoder, *photographs[1::-1])
    assert other.score == pytest.approx(one.score, abs=1e-6)
    assert np.allclose(one.left, other.right, atol=1e-6) and np.allclose(one.right, other.left, atol=1e-6)
    assert [match.left for match in one.matches] == [match.right for match in other.matches]


def test_of_a_picture_of_one_colour_no_place_says_more_than_another(tiny):
    found = explain(tiny, Image.new("RGB", (40, 40), "orange"), Image.new("RGB", (50, 50), "orange"))
    assert found.score == pytest.approx(1, abs=1e-5)
    assert np.allclose(found.left, 1 / 16, atol=1e-5)


def test_no_place_is_in_two_pairs_and_the_strongest_comes_first(default_encoder, photographs):
    matches = explain(default_encoder, *photographs[:2]).matches
    assert len(matches) == 5
    assert len({match.left for match in matches}) == len({match.right for match in matches}) == 5
    shares = [match.share for match in matches]
    assert shares == sorted(shares, reverse=True) and shares[-1] > 0


def test_any_encoder_is_asked_by_occlusion():
    class Corner:
        """Sees the upper left quarter alone."""

        def images(self, pictures):
            cells = [np.asarray(picture.resize((8, 8), Image.Resampling.BOX)) for picture in pictures]
            return np.stack([cell[:4, :4].astype(np.float32).ravel() + 1 for cell in cells])

    found = explain(Corner(), noise(1, 64), noise(1, 64))
    assert found.method == "occlusion" and "no bundle" in found.why
    assert found.score == pytest.approx(1)
    assert found.left[:3, :3].min() > 0
    assert np.abs(found.left[5:]).max() < 1e-6 and np.abs(found.left[:, 5:]).max() < 1e-6


@pytest.mark.parametrize(
    ("image", "box"),
    [
        ({"fit": "squash"}, (0, 0, 1, 1)),
        # 64 × 32 pixels: the middle square, and 80 % of it.
        ({"fit": "crop", "crop_ratio": 0.8}, (0.3, 0.1, 0.7, 0.9)),
        ({"fit": "pad"}, (0, -0.5, 1, 1.5)),
        # Nothing of it is white: the whole width, and a tenth of it as a margin.
        ({"fit": "trim"}, (-0.1, -0.7, 1.1, 1.7)),
    ],
)
def test_the_map_lies_over_what_the_network_saw(image, box, tmp_path):
    pytest.importorskip("onnx")
    graph = Graph()
    encoder = graph.encoder(*linear(graph), tmp_path, **image)
    wide = noise(1, 64).crop((0, 0, 64, 32))
    found = explain(encoder, wide, wide)
    assert found.boxes[0] == pytest.approx(box)
    assert found.overlay("left").size == (64, 32)
    assert all(0 <= share <= 1 for match in found.matches for share in (*match.left, *match.right))


def test_the_overlay_shows_what_adds_and_what_takes_and_dims_what_was_not_seen():
    picture = Image.new("RGB", (100, 100), "white")
    heat = np.array([[1, 0], [0, -1]], dtype=np.float32)
    boxes = ((0.2, 0.2, 0.8, 0.8), (0.0, 0.0, 1.0, 1.0))
    found = Explanation(0.0, heat, heat / 2, "correspondence", "", (), (picture, picture), boxes)
    left, right = (np.asarray(found.overlay(side)).astype(int) for side in ("left", "right"))
    assert left[25, 25, 0] > left[25, 25, 2] + 50  # orange
    assert left[75, 75, 2] > left[75, 75, 0] + 50  # blue
    assert left[5, 5].max() < left[25, 75].min()
    # One scale for both: half the heat, less colour.
    assert np.ptp(right[10, 10]) < np.ptp(left[25, 25])
    with pytest.raises(ValueError, match="left"):
        found.overlay("middle")


def test_several_threads_get_their_own_answers(tiny):
    def ask(number: int) -> float:
        return explain(tiny, noise(number), noise(number + 1)).score

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == [ask(number) for number in range(24)]


def test_a_picture_that_cannot_be_read_is_named(tiny, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        explain(tiny, noise(1), tmp_path / "gone.jpg")


def test_the_document_is_json_and_complete(tiny):
    document = json.loads(json.dumps(explain(tiny, noise(1), noise(2)).document()))
    assert set(document) == {"score", "method", "why", "left", "right", "matches"}
    assert np.sum(document["left"]["heat"]) == pytest.approx(document["score"], abs=1e-5)


def test_the_command_says_it_and_writes_a_page(tmp_path, capsys):
    hostile = tmp_path / "<img src=x onerror=alert(1)>.png"
    noise(1).save(hostile)
    noise(2).save(tmp_path / "b.png")
    page = tmp_path / "why.html"
    main(["explain", str(hostile), str(tmp_path / "b.png"), "--model", TINY, "--html", str(page)])
    told = capsys.readouterr()
    assert "cosine, by correspondence" in told.out and "wrote" in told.err
    text = page.read_text()
    assert "<img src=x" not in text and "&lt;img src=x" in text
    assert text.count("data:image/jpeg") == 4 and "http://" not in text and "https://" not in text
    main(["explain", str(hostile), str(tmp_path / "b.png"), "--model", TINY, "--json"])
    assert json.loads(capsys.readouterr().out)["method"] == "correspondence"
    with pytest.raises(SystemExit) as stop:
        main(["explain", str(tmp_path / "gone.png"), str(hostile), "--model", TINY])
    assert stop.value.code == 1
