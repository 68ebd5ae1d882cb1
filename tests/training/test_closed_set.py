"""A network as a classifier: it learns, is judged as it says, keeps its best, and refuses what is not for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lookalike.errors import ConfigError, TrainingError
from lookalike.training.closed_set import Pictures, teach, unfit
from lookalike.training.config import TrainConfig
from lookalike.training.datasets import PixelCache

Make = Callable[..., TrainConfig]


@pytest.fixture
def classifier(configure: Make) -> Make:
    """A small network with cross-entropy; the tables given go over it."""

    def make(**tables: Any) -> TrainConfig:
        usual: dict[str, Any] = {
            "network": {"head": "none", "normalise": False},
            "sampler": {"kind": "every", "classes": 24, "pictures": 1},
            "loss": {"kind": "cross_entropy"},
            "loop": {"steps": 45, "validate_every": 15},
        }
        for name, table in tables.items():
            usual[name] = {**usual.get(name, {}), **table}
        return configure(**usual)

    return make


@pytest.fixture(scope="module")
def pictures(classes: Path, configure: Make) -> Pictures:
    """Of each of twelve classes four pictures to learn from, one to validate, one to test."""
    paths = sorted(map(str, classes.rglob("*.png")))
    cache = PixelCache.build(paths, configure().preprocessing())
    number = np.arange(len(paths))
    parts = {side: number[np.isin(number % 6, which)] for side, which in
             (("train", [0, 1, 2, 3]), ("validation", [4]), ("test", [5]))}  # fmt: skip
    return Pictures(cache, number // 6, parts, 12)


@pytest.mark.parametrize("loss", ["cross_entropy", "multi_hinge"])
def test_it_learns_and_names_what_it_has_not_seen(classifier: Make, pictures: Pictures, loss: str) -> None:
    """Twelve patterns under noise are told apart, and the curve says how it came to that."""
    config = classifier(loss={"kind": loss})
    taught = teach(config, pictures, say=lambda line: None)

    test = pictures.parts["test"]
    assert (taught.predict(config, pictures.cache, test) == pictures.labels[test]).mean() > 0.9
    assert [point.step for point in taught.curve] == [15, 30, 45]
    assert taught.curve[-1].loss < taught.curve[0].loss / 2
    assert taught.curve[-1].accuracy > taught.curve[0].accuracy


def test_the_kept_weights_are_those_of_the_best_validation(classifier: Make, pictures: Pictures) -> None:
    """What is kept answers as the best point of the curve says, also where an average is validated."""
    config = classifier(optimizer={"rate": 3e-2, "ema": 0.5}, loop={"steps": 24, "validate_every": 2})
    taught = teach(config, pictures, say=lambda line: None)

    best = max(taught.curve, key=lambda point: point.validation_accuracy)
    held_out = pictures.parts["validation"]
    right = taught.predict(config, pictures.cache, held_out) == pictures.labels[held_out]
    assert taught.kept_step == best.step
    assert right.mean() == pytest.approx(best.validation_accuracy)
    assert any(point.validation_accuracy < best.validation_accuracy for point in taught.curve[1:])


def test_equal_seeds_teach_equally(classifier: Make, pictures: Pictures) -> None:
    """Nothing but the configuration decides; another seed is another training."""
    config = classifier(loop={"steps": 4, "validate_every": 2}, augment={"flip": 0.5})
    losses = [
        [point.loss for point in teach(one, pictures, say=lambda line: None).curve]
        for one in (config, config, config.model_copy(update={"seed": 1}))
    ]

    assert losses[0] == losses[1] != losses[2]


def test_it_ends_by_minutes_and_by_patience(classifier: Make, pictures: Pictures) -> None:
    """Whichever comes first; at least one step is made, and what was made is validated."""
    short = teach(classifier(loop={"minutes": 1e-9}), pictures, say=lambda line: None)
    patient = classifier(optimizer={"rate": 1e-9}, loop={"steps": 50, "validate_every": 1, "patience": 2})
    stopped = teach(patient, pictures, say=lambda line: None)

    assert [point.step for point in short.curve] == [1]
    assert stopped.curve[-1].step < 50
    assert stopped.curve[-1].step - stopped.kept_step == 2


def test_validation_loss_is_that_of_the_validated_weights(classifier: Make, pictures: Pictures) -> None:
    """The loss of the last point is what the last weights have on the held-out pictures, computed at once."""
    config = classifier(loop={"steps": 6, "validate_every": 3, "keep": "last"}, optimizer={"ema": 0.9})
    taught = teach(config, pictures, say=lambda line: None)

    rows = pictures.parts["validation"]
    processing = config.preprocessing()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processing.mean, processing.std))
    with torch.inference_mode():
        scores = taught.classifier((pictures.cache.batch(rows).float() / 255 - mean) / std)
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(pictures.labels[rows]), label_smoothing=0.1)
    assert taught.kept_step == 6
    assert float(loss) == pytest.approx(taught.curve[-1].validation_loss, abs=1e-5)


def test_what_is_not_for_a_classifier_is_refused(classifier: Make, pictures: Pictures) -> None:
    """All problems at once, each with the key; a classifier's own configuration has none."""
    assert unfit(classifier()) == []
    wrong = classifier(
        loss={"kind": "supervised_contrastive"},
        sampler={"kind": "classes", "classes": 4, "pictures": 4},
        memory={"size": 64},
        optimizer={"accumulate": 2},
    )
    with pytest.raises(ConfigError, match="cross_entropy") as caught:
        teach(wrong, pictures)
    assert len(caught.value.problems) == 3
    with pytest.raises(ConfigError, match="smoothing"):
        teach(classifier(loss={"kind": "cross_entropy", "smoothing": 1.0}), pictures)


def test_a_loss_that_is_no_number_ends_it(classifier: Make, pictures: Pictures) -> None:
    """With the name, the step and what to do."""
    config = classifier(optimizer={"kind": "sgd", "rate": 1e30, "clip": 0.0, "warmup": 0.0})
    with pytest.raises(TrainingError, match=r"test: the loss is .* at step \d+: lower optimizer.rate"):
        teach(config, pictures, say=lambda line: None)
