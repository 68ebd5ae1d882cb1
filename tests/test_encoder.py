"""The encoder: order kept, unit rows, bad pictures reported, memory bounded, nothing sent anywhere."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.encoder import BATCH, Encoder, SkippedPicture
from lookalike.errors import ImageError
from lookalike.vectors import unit

TINY = Path(__file__).parent / "data" / "tiny"


def colours(count: int) -> list[Image.Image]:
    return [
        Image.fromarray(np.full((40, 40, 3), (i * 7 % 256, i % 256, 255 - i % 256), np.uint8)) for i in range(count)
    ]


def reference(encoder: Encoder, picture: Image.Image | Path) -> np.ndarray:
    """The tiny network written with NumPy."""
    preprocessing = encoder.bundle.preprocessing
    pixels = preprocessing.normalise(preprocessing.load(picture)[None])
    return unit(pixels.reshape(3, 4, 8, 4, 8).mean(axis=(2, 4)).reshape(1, 48) + 1e-3)[0]


def test_vectors_are_those_of_the_network(photographs: list[Path]) -> None:
    """Rows are what the graph computes on the documented preprocessing, of unit length, float32."""
    encoder = Encoder.load(TINY, precision="fp32")

    vectors = encoder.images(photographs)

    assert vectors.shape == (len(photographs), encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [reference(encoder, path) for path in photographs], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, BATCH - 1, BATCH, BATCH + 1, 5 * BATCH + 3])
def test_order_is_kept_for_every_count(tiny: Encoder, count: int) -> None:
    """Row i is picture i, whatever the number of pictures is to the batch."""
    pictures = colours(count)

    vectors = tiny.images(pictures)

    assert vectors.shape == (count, 48)
    for row, picture in zip(vectors, pictures, strict=True):
        np.testing.assert_allclose(row, reference(tiny, picture), atol=2e-2)


def test_paths_bytes_and_opened_pictures_give_the_same_vector(tiny: Encoder, photographs: list[Path]) -> None:
    """A path, its text, its bytes and the opened picture are one picture."""
    path = photographs[1]

    vectors = tiny.images([path, str(path), path.read_bytes(), Image.open(path)])

    np.testing.assert_array_equal(vectors, np.repeat(vectors[:1], 4, axis=0))


def test_a_bad_picture_is_reported_and_skipped(tiny: Encoder, photographs: list[Path], tmp_path: Path) -> None:
    """The good pictures keep their order; the bad one is a warning, or goes to `on_skip`, or raises with `strict`."""
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photographs[-1].read_bytes()[:300])
    mixed = [photographs[0], bad, photographs[1]]
    expected = tiny.images([photographs[0], photographs[1]])

    with pytest.warns(SkippedPicture, match=r"bad\.jpg"):
        np.testing.assert_allclose(tiny.images(mixed), expected, atol=1e-3)
    errors: list[ImageError] = []
    assert len(tiny.images(mixed, on_skip=errors.append)) == 2
    assert [error.path for error in errors] == [str(bad)]
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        tiny.images(mixed, strict=True)


def test_one_lonely_picture_is_refused(tiny: Encoder, photographs: list[Path]) -> None:
    """A single path would be taken for a list of letters: TypeError says to wrap it."""
    for lonely in (str(photographs[0]), photographs[0], b"...", Image.new("RGB", (2, 2))):
        with pytest.raises(TypeError, match="wrap a single one"):
            tiny.images(lonely)


def test_streaming_reads_only_a_bounded_number_ahead(tiny: Encoder) -> None:
    """An endless series can be encoded: only a few batches of sources are taken before the first answer."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield colours(1)[0]

    stream = tiny.stream(endless())
    next(stream)
    stream.close()

    assert taken <= 8 * BATCH


def test_a_source_may_have_nothing_to_encode(tiny: Encoder) -> None:
    """`load` may give None: the source passes through in order, with neither vector nor error."""
    load = tiny.bundle.preprocessing.load

    outcomes = list(tiny.stream(range(300), lambda i: load(colours(1)[0]) if i % 3 == 0 else None))

    assert [outcome.source for outcome in outcomes] == list(range(300))
    assert all((outcome.vector is None) == (outcome.source % 3 != 0) for outcome in outcomes)


def test_a_defect_in_load_is_not_swallowed(tiny: Encoder) -> None:
    """Anything but ImageError from `load` is a defect and surfaces."""
    with pytest.raises(ZeroDivisionError):
        list(tiny.stream([1], lambda i: 1 // 0))


def test_closing_a_stream_ends_its_threads(tiny: Encoder) -> None:
    """A consumer that stops early leaves no decoding thread behind."""
    stream = tiny.stream(colours(200))
    next(stream)
    stream.close()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lookalike-decode")]


def test_several_threads_may_encode_at_once(tiny: Encoder, photographs: list[Path]) -> None:
    """One encoder serves many threads."""
    expected = tiny.images(photographs)
    answers: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: answers.append(tiny.images(photographs))) for _ in range(6)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(answers) == 6
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)


def test_a_vector_does_not_depend_on_its_company(default_encoder: Encoder, photographs: list[Path]) -> None:
    """Encoded alone (a query) or in a batch (an index), a picture gets the same vector to within rounding."""
    together = default_encoder.images(photographs * 2)
    alone = np.concatenate([default_encoder.images([path]) for path in photographs])

    assert np.einsum("ij,ij->i", together[: len(photographs)], alone).min() > 0.999
    np.testing.assert_array_equal(together[: len(photographs)], together[len(photographs) :])


def test_precisions_agree(photographs: list[Path], default_encoder: Encoder) -> None:
    """bfloat16 and float32 give vectors of cosine above 0.995."""
    exact = Encoder.default(precision="fp32").images(photographs)

    assert np.einsum("ij,ij->i", exact, default_encoder.images(photographs)).min() > 0.995


def test_different_photographs_are_told_apart(default_encoder: Encoder, photographs: list[Path]) -> None:
    """The shipped encoder is closer to a shrunken, re-encoded crop of a photograph than to any other photograph."""
    crops = []
    for path in photographs:
        image = Image.open(path).convert("RGB")
        wide, tall = image.size
        crops.append(image.crop((wide // 12, tall // 12, wide * 11 // 12, tall * 11 // 12)).resize((200, 150)))

    scores = default_encoder.images(crops) @ default_encoder.images(photographs).T

    assert scores.argmax(axis=1).tolist() == list(range(len(photographs)))


def test_encoding_sends_and_leaves_nothing(tmp_path: Path, photographs: list[Path]) -> None:
    """Importing OpenVINO through us starts no telemetry: no module, no identity file in the home folder."""
    code = (
        "import sys; from lookalike import Encoder\n"
        f"Encoder.load({str(TINY)!r}).images([{str(photographs[0])!r}])\n"
        "assert not any(name.startswith('openvino_telemetry') for name in sys.modules), 'telemetry'\n"
    )
    subprocess.run([sys.executable, "-c", code], env={"HOME": str(tmp_path)}, check=True, timeout=60)

    assert list(tmp_path.iterdir()) == []
