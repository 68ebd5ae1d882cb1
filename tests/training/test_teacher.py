"""Learning from a teacher: what it sees, what is kept of its vectors, and how far a student is from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch.nn import functional

from lookalike.encoder import Encoder
from lookalike.errors import ConfigError, TrainingError
from lookalike.images import Region
from lookalike.training.config import TrainConfig
from lookalike.training.loop import train
from lookalike.training.teacher import Axes, Distillation, Lessons, regions, taught
from lookalike.vectors import unit

Configure = Callable[..., TrainConfig]


def quiet(line: str) -> None:
    del line


def rows(n: int, dim: int, seed: int = 0) -> Any:
    return unit(np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32))


# ── what the teacher sees ────────────────────────────────────────────────────────────────────────────────────────────


def test_regions_lie_within_the_picture_and_have_the_area_asked_for() -> None:
    found = regions(["a", "b"] * 50, 3, (0.4, 0.6), (0.8, 1.25), seed=1)
    assert [region.picture for region in found[:6]] == ["a"] * 3 + ["b"] * 3
    areas = np.array([(r.box[2] - r.box[0]) * (r.box[3] - r.box[1]) for r in found])
    assert len(found) == 300 and 0.39 < areas.min() < 0.45 and 0.55 < areas.max() < 0.61
    assert found == regions(["a", "b"] * 50, 3, (0.4, 0.6), (0.8, 1.25), seed=1)
    assert found != regions(["a", "b"] * 50, 3, (0.4, 0.6), (0.8, 1.25), seed=2)


def test_a_teacher_looks_once(photographs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wholes and regions are encoded as the encoder would encode them by hand; the second time they are read."""
    sources = [str(photographs[0]), Region(str(photographs[0]), (0.2, 0.1, 0.8, 0.7)), str(photographs[1])]
    said: list[str] = []
    vectors = taught(["default"], sources, tmp_path / "cache", said.append)
    with Image.open(photographs[0]) as image:
        part = sources[1].cut(image.convert("RGB"))  # type: ignore[union-attr]
    by_hand = Encoder.default().images([photographs[0], part, photographs[1]])
    assert (vectors * by_hand).sum(axis=1) == pytest.approx(1, abs=2e-3)
    assert len(said) == 1 and "3 views" in said[0]
    monkeypatch.setattr(Encoder, "stream", lambda *_: pytest.fail("asked again"))
    assert np.array_equal(taught(["default"], sources, tmp_path / "cache", quiet), vectors)


def test_two_teachers_are_joined(photographs: list[Path], tmp_path: Path) -> None:
    """Each counts alike: the cosine of joined vectors is the mean of both cosines."""
    sources = [str(path) for path in photographs[:3]]
    one = taught(["default"], sources, tmp_path, quiet)
    both = taught(["default", "default"], sources, tmp_path, quiet)
    assert both.shape == (3, 2 * one.shape[1])
    assert both @ both.T == pytest.approx(one @ one.T, abs=1e-5)


def test_a_picture_that_went_away_is_named(photographs: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff no picture")
    with pytest.raises(TrainingError, match=r"bad\.jpg"):
        taught(["default"], [str(photographs[0]), str(bad)], tmp_path / "cache", quiet)


# ── what is kept of it ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("whiten", [0.0, 1.0])
def test_axes_are_those_of_scikit_learn(whiten: float) -> None:
    """Unevened they are its PCA, wholly evened its whitened one, up to scale and sign."""
    vectors = rows(300, 12) * np.linspace(1, 3, 12, dtype=np.float32)
    ours = Axes.of(vectors, 5, whiten)
    oracle = PCA(5, whiten=bool(whiten)).fit(vectors)
    theirs = unit(oracle.transform(vectors).astype(np.float32))
    assert np.abs(ours(vectors) * theirs).sum(axis=1) == pytest.approx(1, abs=2e-3) or np.allclose(
        ours(vectors) @ ours(vectors).T, theirs @ theirs.T, atol=1e-3
    )
    assert ours(vectors) @ ours(vectors).T == pytest.approx(theirs @ theirs.T, abs=1e-3)
    assert ours.kept == pytest.approx(oracle.explained_variance_ratio_.sum(), abs=1e-4)


def test_more_axes_than_vectors_span_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lower network\.dim"):
        Axes.of(rows(6, 20), 8, 0.0)


def test_axes_without_variance_are_not_counted():
    """Five numbers brought to twenty by a linear map span five axes, rounding or not; and one faint one more."""
    flat = rows(200, 5) @ rows(5, 20)
    assert Axes.spanned(flat.astype(np.float32)) == 5
    first = np.linalg.norm(flat - flat.mean(0), axis=0).max()
    across = np.linalg.svd(flat)[2][-1]
    for share, spanned in ((0.1, 6), (1e-3, 5)):
        noise = np.random.default_rng(3).normal(size=(200, 1)) * first / np.sqrt(200) * share
        assert Axes.spanned(flat + noise * across) == spanned


def test_a_view_follows_from_seed_and_number_and_brings_its_own_target() -> None:
    """Targets are numbered: whole i is i, region r of picture i is n + i · (views - 1) + r."""
    n, views = 7, 4
    lessons = Lessons(torch.arange(n * views, dtype=torch.float32)[:, None], views, seed=3)
    pictures = np.array([5, 0, 5, 6, 2] * 40)
    region, targets = lessons.look(pictures, 11)
    expected = np.where(region < 0, pictures, n + region)
    assert targets[:, 0].tolist() == expected.tolist()
    assert set(region[pictures == 5]) == {-1, 15, 16, 17}
    assert np.array_equal(lessons.look(pictures, 11)[0], region)
    assert not np.array_equal(lessons.look(pictures, 12)[0], region)


# ── how far the student is ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_loss_is_what_loops_say() -> None:
    student, target = torch.from_numpy(rows(6, 5, 1)).double(), torch.from_numpy(rows(6, 5, 2)).double()
    found = float(Distillation(vectors=0.7, similarities=1.3, temperature=0.2)(3 * student, target))
    apart = np.mean([1 - float(s @ t) for s, t in zip(student, target, strict=True)])
    gap = 0.0
    for i in range(6):
        others = [j for j in range(6) if j != i]
        ours = functional.log_softmax(torch.stack([student[i] @ student[j] / 0.2 for j in others]), 0)
        theirs = functional.log_softmax(torch.stack([target[i] @ target[j] / 0.2 for j in others]), 0)
        gap += float(functional.kl_div(ours, theirs, reduction="sum", log_target=True)) / 6
    assert found == pytest.approx(0.7 * apart + 1.3 * gap, rel=1e-5)


def test_the_loss_is_zero_at_the_target_and_its_gradient_finite() -> None:
    target = torch.from_numpy(rows(8, 4))
    student = (2 * target).requires_grad_()
    loss = Distillation()(student, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert student.grad is not None and torch.isfinite(student.grad).all()
    other = torch.from_numpy(rows(8, 4, 5)).requires_grad_()
    Distillation()(other, target).backward()
    assert other.grad is not None and torch.isfinite(other.grad).all() and float(other.grad.abs().sum()) > 0


def test_a_student_comes_to_see_as_its_teacher(configure: Configure, tmp_path: Path, tiny: Encoder) -> None:
    """Without any label, from a teacher alone: loss falls, and the run says how much of the teacher is kept."""
    said: list[str] = []
    config = configure(
        network={"dim": 4},
        loss={"kind": "none"},
        sampler={"kind": "every", "classes": 16, "pictures": 1},
        teacher={"bundles": [str(tiny.bundle.path)], "views": 3, "similarities": 0.5},
        loop={"steps": 60, "validate_every": 60, "report_every": 10},
        optimizer={"rate": 1e-2},
        retrieval={"flip": False, "whiten": False, "expansion": False, "k_reciprocal": False},
    )
    outcome = train(config, tmp_path / "run", say=said.append)
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(__import__("json").loads, lines) if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert any("4 axes of the teacher hold" in line for line in said)


def test_a_teacher_of_as_many_numbers_is_taken_as_it_is(configure: Configure, tmp_path: Path, tiny: Encoder) -> None:
    """Its own directions are kept: an encoder that is its own teacher is at its target before the first step."""
    from lookalike.training.distributed import Group
    from lookalike.training.folder import RunFolder
    from lookalike.training.prepare import prepare

    config = configure(
        network={"dim": tiny.dim},
        loss={"kind": "none"},
        sampler={"kind": "every", "classes": 8, "pictures": 1},
        teacher={"bundles": [str(tiny.bundle.path)]},
    )
    place = RunFolder(tmp_path / "run", quiet)
    place.claim(config)
    material = prepare(config, place, Group())
    batch = material.draw(0)
    assert batch.targets is not None
    theirs = Encoder(tiny.bundle).images([material.paths[row] for row in batch.rows])
    assert (batch.targets.numpy() * theirs).sum(axis=1) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"loss": {"kind": "none"}, "sampler": {"kind": "every", "pictures": 1}}, "teacher.bundles"),
        ({"teacher": {"bundles": ["default"], "vectors": 0, "similarities": 0}}, "teaches nothing"),
        (
            {"teacher": {"bundles": ["default"]}, "sampler": {"kind": "pairs"}, "loss": {"kind": "pair_contrastive"}},
            "cannot be used with sampler.kind",
        ),
        ({"sampler": {"kind": "every", "pictures": 1}}, "needs sampler.pictures of at least 2"),
        ({"sampler": {"kind": "classes", "pictures": 1}}, "nothing to agree on"),
        ({"data": {"labels": "none"}}, 'write sampler.kind = "every"'),
        ({"base": {"recipe": "a.toml"}, "network": {"weights": "default"}}, "leave network.weights out"),
    ],
)
def test_what_cannot_be_together_is_said(configure: Configure, tables: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        configure(**tables)
