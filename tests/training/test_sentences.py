"""Sentence-transformers models at rest: read as their library does, cached, a tower that needs no torch, a teacher."""

from __future__ import annotations

import csv
import json
import string
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers: pip install 'lookalike[sentences]'")

import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from lookalike.cli import main
from lookalike.encoder import Encoder
from lookalike.errors import CheckpointError, ConfigError, ExportError, MissingExtra, TrainingError
from lookalike.text import LONGEST, Subwords
from lookalike.training import export_words
from lookalike.training.config import TrainConfig, read_config
from lookalike.training.export_words import export_towers
from lookalike.training.folder import RunFolder
from lookalike.training.sentences import PHRASES, SentenceGraph, Sentences
from lookalike.training.towers import Run, build_towers, train_towers

TINY = Path(__file__).parent.parent / "data" / "tiny"
NAMES = ("zarpo", "miko", "lunta", "vesh", "dorri", "kappa", "oum", "rell", "sanno", "tibe", "ulf", "wexi")
LETTERS = string.ascii_lowercase + string.digits
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "red", "the", *LETTERS, *(f"##{one}" for one in LETTERS)]
ODD = [
    *PHRASES,
    "Красные КРОССОВКИ для бега",
    "giày chạy bộ màu đỏ, không đắt",
    "tênis de corrida vermelhos, não!",
    "红色跑鞋和狗",
    "👟🏃‍♀️ dog",
    " \t\n",
    "\x00\x01\x7f dog \x1b[31m",
    "lone \ud800 surrogate",
    "[PAD] [CLS] the [SEP] dog",
    "x" * 10_000,
    "the dog " * 5_000,
]


def quiet(line: str) -> None:
    """Nobody listens."""


def word_pieces(marks: bool = True) -> Tokenizer:
    """BERT's way of reading, with a vocabulary of letters and three words; or without marks of start and end."""
    reader = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    reader.normalizer = normalizers.BertNormalizer(lowercase=True)
    reader.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    reader.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    if marks:
        around = [("[CLS]", 2), ("[SEP]", 3)]
        reader.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    return reader


def bert(folder: Path, *, pool: str = "mean", seed: int = 0, marks: bool = True, after: Sequence[Any] = ()) -> Path:
    """A BERT of one layer with random weights, saved as any user would."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=48,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder / "inner")
    reader = word_pieces(marks)
    transformers.PreTrainedTokenizerFast(tokenizer_object=reader, pad_token="[PAD]").save_pretrained(folder / "inner")
    words = modules.Transformer(str(folder / "inner"), max_seq_length=40)
    model = SentenceTransformer(modules=[words, modules.Pooling(32, pool), *after], device="cpu")
    model.save(str(folder / "model"))
    return folder / "model"


def static(folder: Path, seed: int = 0) -> Path:
    """An embedding for each token, and their mean."""
    weights = np.random.default_rng(seed).normal(size=(len(VOCABULARY), 24)).astype(np.float32)
    model = SentenceTransformer(modules=[modules.StaticEmbedding(word_pieces(), weights)], device="cpu")
    model.save(str(folder))
    return folder


@pytest.fixture(scope="module")
def models_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind."""
    place = tmp_path_factory.mktemp("models")
    dense = modules.Dense(32, 20)
    return {
        "bert": bert(place / "bert"),
        "first": bert(place / "first", pool="cls", after=[dense, modules.Normalize()]),
        "bare": bert(place / "bare", pool="cls", marks=False),
        "static": static(place / "static"),
    }


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["bert", "first", "bare", "static"])
def test_texts_are_read_as_the_library_reads_them(kind: str, models_of: dict[str, Path]) -> None:
    """By the library opened on its own; by ids and graph, one by one and all at once; whatever the text."""
    sentences = Sentences.load(str(models_of[kind]))
    library = SentenceTransformer(str(models_of[kind]), device="cpu", local_files_only=True)
    texts = [text.encode("utf-8", "replace").decode()[:LONGEST] for text in ODD]
    graph = sentences.graph()

    ours = sentences(ODD)

    theirs = functional.normalize(torch.from_numpy(library.encode(texts)), dim=1).numpy()
    some = [place for place, text in enumerate(ODD) if len(sentences.vocabulary.ids(text))]
    short = [place for place in some if len(texts[place]) < 2000]  # a static model has no end: it is given one here
    np.testing.assert_allclose(ours[short], theirs[short], atol=1e-5)
    with torch.inference_mode():
        together = graph(torch.from_numpy(sentences.vocabulary(ODD))).numpy()
        alone = np.concatenate([graph(torch.from_numpy(sentences.vocabulary([text]))).numpy() for text in ODD])
    np.testing.assert_allclose(together, ours, atol=1e-5)
    np.testing.assert_allclose(alone, ours, atol=1e-5)
    assert len(some) == len(ODD) - (2 if kind in ("bare", "static") else 0)
    assert (
        ours.shape == (len(ODD), {"bert": 32, "first": 20, "bare": 32, "static": 24}[kind]) and ours.dtype == np.float32
    )
    np.testing.assert_allclose(np.linalg.norm(ours[some], axis=1), 1, atol=1e-5)


def test_a_static_model_is_the_mean_of_its_rows(models_of: dict[str, Path]) -> None:
    """By hand; nothing to read is the zero vector, in the model and in the graph."""
    sentences = Sentences.load(str(models_of["static"]))
    weights = np.random.default_rng(0).normal(size=(len(VOCABULARY), 24)).astype(np.float32)
    mean = weights[[VOCABULARY.index(word) for word in ("the", "red", "dog", "dog")]].mean(0)

    rows = sentences(["The RED dog dog", " "])

    np.testing.assert_allclose(rows[0], mean / np.linalg.norm(mean), atol=1e-6)
    with torch.inference_mode():
        served = sentences.graph()(torch.from_numpy(sentences.vocabulary(["the red dog dog", " "]))).numpy()
    np.testing.assert_allclose(served, rows, atol=1e-6)
    assert not rows[1].any()


def test_vectors_are_computed_once(models_of: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time from the file; other texts, in another order or of another model, are other files."""
    sentences, said = Sentences.load(str(models_of["bert"])), []
    first = sentences.once(["a dog", "кот"], tmp_path / "new", said.append)
    monkeypatch.setattr(sentences.model, "encode", lambda *_, **__: pytest.fail("asked again"))

    again = sentences.once(["a dog", "кот"], tmp_path / "new", said.append)

    assert said == ["model reads 2 texts, once"] and (first == again).all()
    monkeypatch.undo()
    turned = sentences.once(["кот", "a dog"], tmp_path / "new", said.append)
    np.testing.assert_allclose(turned[::-1], first)
    Sentences.load(str(models_of["static"])).once(["a dog", "кот"], tmp_path / "new", said.append)
    assert len(said) == 3 and len(list((tmp_path / "new").glob("*.npy"))) == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot keep the vectors of model"):
        sentences.once(["a dog"], tmp_path / "file", quiet)


def test_the_fingerprint_is_that_of_the_vectors(tmp_path: Path) -> None:
    """The same from two folders; another for other weights, another mean, another prefix."""
    one, same = (Sentences.load(str(bert(tmp_path / name))) for name in ("one", "same"))
    others = [
        Sentences.load(str(bert(tmp_path / "seed", seed=1))),
        Sentences.load(str(bert(tmp_path / "pool", pool="max"))),
        Sentences.load(str(tmp_path / "one" / "model"), "query: "),
    ]

    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_prefix_is_read_before_each_text(tmp_path: Path) -> None:
    """That of the model by default, or the one that is given; and the bundle's vocabulary knows it."""
    folder = bert(tmp_path)
    model = SentenceTransformer(str(folder), device="cpu", prompts={"query": "red "}, default_prompt_name="query")
    model.save(str(folder))
    own, none, other = (Sentences.load(str(folder), prefix) for prefix in (None, "", "the "))

    library = functional.normalize(torch.from_numpy(model.encode(["red dog", "the dog"], prompt="")), dim=1).numpy()
    np.testing.assert_allclose(own(["dog"]), library[:1], atol=1e-5)
    np.testing.assert_allclose(none(["red dog"]), library[:1], atol=1e-5)
    np.testing.assert_allclose(other(["dog"]), library[1:], atol=1e-5)
    assert own.vocabulary.ids("dog") == [2, VOCABULARY.index("red"), VOCABULARY.index("dog"), 3]
    held = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({**held, "include_prompt": False}))
    with pytest.raises(ConfigError, match=r"set sentences\.prefix"):
        Sentences.load(str(folder))
    assert Sentences.load(str(folder), "").dim == 32


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_no_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, a folder of something else, a broken one, a name that the hub does not know, parts that do not fit."""
    with pytest.raises(ConfigError, match=r"there is no folder .*gone"):
        Sentences.load(str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"there is no folder \./gone"):
        Sentences.load("./gone")
    with pytest.raises(ConfigError, match=r"holds no modules\.json"):
        Sentences.load(str(tmp_path))
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(ConfigError, match="cannot be read"):
        Sentences.load(str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot read texts \(RuntimeError: mat1 and mat2"):
        Sentences.load(str(bert(tmp_path / "unfit", after=[modules.Dense(16, 8)])))

    def offline(*_: Any, **__: Any) -> Any:
        raise OSError("cannot reach the hub\nat length")

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", offline)
    with pytest.raises(ConfigError, match=r"some/model cannot be read \(OSError: cannot reach the hub\)"):
        Sentences.load("some/model")


def test_a_missing_library_is_told(models_of: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"needs sentence-transformers: pip install 'lookalike\[sentences\]'"):
        Sentences.load(str(models_of["bert"]))


def test_another_kind_of_reader_is_refused(models_of: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is no tokenizer of `tokenizers` cannot be carried over."""
    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "backend_tokenizer", None)
    with pytest.raises(ConfigError, match="only tokenizers of the library tokenizers"):
        Sentences.load(str(models_of["bert"]))


def test_a_model_that_cannot_be_carried_over_is_no_tower(
    models_of: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other vectors by the graph, or none at all, are noticed before anything is trained."""
    sentences = Sentences.load(str(models_of["bert"]))
    monkeypatch.setattr(Subwords, "__call__", lambda *_: np.full((len(PHRASES), 16), 5))
    with pytest.raises(ConfigError, match=r"gives other vectors \(lowest cosine .* it can be a teacher"):
        sentences.graph()
    monkeypatch.setattr(Subwords, "__call__", lambda *_: np.full((len(PHRASES), 16), 500))
    with pytest.raises(ConfigError, match=r"cannot become a text tower \(IndexError"):
        sentences.graph()


def test_wrong_tables_are_told() -> None:
    """A tower that there is not, a tower without a model, a model without words, a key that there is not."""
    data = {"root": "x.csv"}
    with pytest.raises(ConfigError, match=r"text\.tower: input should be 'hashing' or 'sentences', got 'bert'"):
        read_config({"data": data, "text": {"captions": True, "tower": "bert"}})
    with pytest.raises(ConfigError, match=r"text\.tower \"sentences\" needs a model: set sentences\.model"):
        read_config({"data": data, "text": {"captions": True, "tower": "sentences"}})
    with pytest.raises(ConfigError, match=r"set text\.captions, or leave sentences\.model out"):
        read_config({"data": data, "sentences": {"model": "x"}})
    with pytest.raises(ConfigError, match=r"unknown key sentences\.modell: did you mean 'model'"):
        read_config({"data": data, "text": {"captions": True}, "sentences": {"modell": "x"}})


# ── the tower ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def captions(classes: Path) -> Path:
    """A caption for each of 72 pictures of twelve classes, with a made-up word for its class."""
    file = classes.parent / "sentences.csv"
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["image", "caption"])
        for number, picture in enumerate(sorted(classes.rglob("*.png"))):
            name = NAMES[int(picture.parent.name[-2:])]
            writer.writerow([picture, f"{name} {name} number {number}"])
    return file


@pytest.fixture(scope="module")
def configured(captions: Path) -> Callable[..., TrainConfig]:
    def make(**tables: Any) -> TrainConfig:
        document: dict[str, Any] = {
            "name": "words",
            "data": {"root": str(captions), "validation": 0.2, "test": 0.2},
            "text": {"captions": True, "encoder": str(TINY), "trigrams": 64, "words": 0, "width": 32, "dim": 16,
                     "batch": 24, "dropout": 0.1},
            "optimizer": {"rate": 0.01},
            "loop": {"steps": 60, "validate_every": 20, "report_every": 20, "tensorboard": False, "threads": 1},
        }  # fmt: skip
        for name, table in tables.items():
            document[name] = {**document.get(name, {}), **table}
        return read_config(document)

    return make


@pytest.mark.slow
def test_trained_and_asked_from_the_command_line(
    captions: Path, classes: Path, models_of: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A BERT as tower: train, export, index, search, the last two without torch; the words find their pictures."""
    sets = {
        "text.encoder": TINY, "text.tower": "sentences", "sentences.model": models_of["bert"], "text.dim": 16,
        "text.dropout": 0.1, "text.batch": 24, "optimizer.rate": 0.01, "loop.steps": 150, "loop.tensorboard": "false",
        "data.cache": tmp_path / "cache",
    }  # fmt: skip
    given = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--captions", str(captions), "--to", str(tmp_path / "w"), "--json", *given])
    told = json.loads(capsys.readouterr().out)

    assert stopped.value.code in (0, 3) and told["verdict"]["ours"]["text_r_at_5"]["mean"] > 0.6  # chance: 5 of 14
    assert len(list((tmp_path / "cache").glob("sentences-*.npy"))) == 1
    commands = [
        ["index", str(classes), "--to", str(tmp_path / "i"), "--model", str(tmp_path / "w")],
        ["search", str(tmp_path / "i"), "--text", "vesh vesh number 20", "-k", "6", "--json"],
    ]
    without = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'sentence_transformers']))\n"
    without += f"from lookalike.cli import main\nfor command in {commands}: main(command)"
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("class03") >= 3

    encoder = Encoder.load(tmp_path / "w", precision="fp32")
    manifest = encoder.bundle.manifest
    assert manifest["check"]["lowest_cosine_of_texts"] >= 0.9999 and manifest["check"]["texts"] >= 70
    rows = encoder.texts(ODD)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([encoder.texts([text]) for text in ODD]), rows, atol=1e-4)
    told = (tmp_path / "w" / "manifest.json").read_text() + (tmp_path / "w" / "README.md").read_text()
    assert str(tmp_path) not in told and str(models_of["bert"]) not in told
    assert "model of sentence-transformers as it was" in told
    held = (tmp_path / "w" / "text.safetensors").read_bytes()
    assert b"sentences.model" in held and b"pooler" not in held  # what its vectors do not need is left behind


@pytest.fixture(scope="module")
def run(
    configured: Callable[..., TrainConfig], models_of: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run with a static model as tower."""
    folder = tmp_path_factory.mktemp("sentences") / "run"
    config = configured(text={"tower": "sentences", "hidden": [20]}, sentences={"model": str(models_of["static"])})
    train_towers(config, folder, say=quiet)
    return folder


def test_a_checkpoint_holds_the_head_alone(run: Path) -> None:
    """Not the model, which rests."""
    names = torch.load(run / "best.pt", weights_only=True)["learner"]

    assert {name.split(".")[1] for name in names if name.startswith("towers.")} == {"text", "projection"}
    assert sum(value.numel() for name, value in names.items() if name.startswith("towers.text.")) == (
        2 * 24 + (24 * 20 + 20) + (20 * 16 + 16)
    )


def test_the_bundle_answers_as_model_and_head(run: Path, models_of: dict[str, Path], tmp_path: Path) -> None:
    """By the library's vectors and the kept weights, layer by layer."""
    bundle = export_towers(run, tmp_path / "bundle")
    state = torch.load(run / "best.pt", weights_only=True)["learner"]
    part = {name.removeprefix("towers.text.layers."): value for name, value in state.items()}
    texts = ["zarpo number 3", "the red dog", "x" * 300]
    library = SentenceTransformer(str(models_of["static"]), device="cpu")
    rows = functional.layer_norm(
        functional.normalize(torch.from_numpy(library.encode(texts)), dim=1), (24,), part["0.weight"], part["0.bias"]
    )
    inner = functional.gelu(rows @ part["2.weight"].T + part["2.bias"])
    wanted = functional.normalize(inner @ part["5.weight"].T + part["5.bias"], dim=1).numpy()

    found = Encoder(bundle, precision="fp32").texts(texts)

    assert float((found * wanted).sum(1).min()) > 0.9999
    assert isinstance(bundle.vocabulary, Subwords) and bundle.dim == 16


def test_a_graph_that_disagrees_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written; nor where there can be no graph."""
    right = SentenceGraph.forward
    monkeypatch.setattr(SentenceGraph, "forward", lambda self, ids: right(self, ids).flip(1))
    monkeypatch.setattr(Sentences, "graph", lambda self: SentenceGraph(self.model, 0, False))
    with pytest.raises(ExportError, match="text graph disagrees"):
        export_towers(run, tmp_path / "bundle")

    def unwritable(*_: Any) -> Any:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(export_words, "in_onnx", unwritable)
    with pytest.raises(ExportError, match=r"static cannot be written as an ONNX graph .*text\.tower = \"hashing\""):
        export_towers(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_another_model_in_the_same_folder_is_refused(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """On going on, and on export."""
    static(tmp_path / "static")
    config = configured(text={"tower": "sentences"}, sentences={"model": str(tmp_path / "static")}, loop={"steps": 2})
    train_towers(config, tmp_path / "run", say=quiet)
    static(tmp_path / "static", seed=1)

    with pytest.raises(CheckpointError, match="the run was trained with the sentence model static"):
        export_towers(tmp_path / "run", tmp_path / "bundle")
    (tmp_path / "run" / "report.json").unlink()
    with pytest.raises(CheckpointError, match="gives other vectors"):
        train_towers(config, tmp_path / "run", say=quiet)


# ── the teacher ──────────────────────────────────────────────────────────────────────────────────────────────────────


def naive(rows: np.ndarray, targets: np.ndarray, temperature: float) -> float:
    """The divergence of the spreads of similarity, one text and one neighbour at a time, in float64."""
    count, total = len(rows), 0.0
    for i in range(count):
        others = [j for j in range(count) if j != i]
        spread = []
        for table in (targets, rows):
            powers = [np.exp(float(table[i] @ table[j]) / temperature) for j in others]
            spread.append([power / sum(powers) for power in powers])
        total += sum(p * np.log(p / q) for p, q in zip(*spread, strict=True))
    return total / count


def test_what_the_teacher_says_is_its_formula(
    configured: Callable[..., TrainConfig], models_of: dict[str, Path], tmp_path: Path
) -> None:
    """Each text of a batch once, pictures that are queries left out; of one text, or none, it says nothing."""
    config = configured(sentences={"model": str(models_of["static"]), "temperature": 0.3})
    place = RunFolder(tmp_path / "run", quiet)
    place.claim(config)
    run = Run(config, place, "cpu", None)
    count = len(run.captions.texts)
    queries = np.array([7, 3, count + 2, 7, 11, 5])
    rows = functional.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), dim=1).requires_grad_()

    loss = run._untaught(queries, rows)

    kept = [1, 5, 0, 4]  # 3, 5, 7 once, 11
    targets = Sentences.load(str(models_of["static"]))([run.captions.texts[queries[i]] for i in kept])
    ours = rows.detach().numpy().astype(np.float64)[kept]
    assert float(loss.detach()) == pytest.approx(naive(ours, targets.astype(np.float64), 0.3), rel=1e-3)
    [gradient] = torch.autograd.grad(loss, rows)
    assert not gradient[[2, 3]].any() and gradient[kept].abs().sum(1).all()
    for few in (slice(1, 3), slice(2, 3)):
        nothing = run._untaught(queries[few], rows[few])
        [gradient] = torch.autograd.grad(nothing, rows)
        assert float(nothing.detach()) == 0 and not gradient.any()  # nor NaN
    place.close()


def test_a_teacher_is_learned_from(
    configured: Callable[..., TrainConfig], models_of: dict[str, Path], tmp_path: Path
) -> None:
    """Texts never seen are nearer to how alike the teacher finds them."""
    texts = [f"{one} {other}" for one in NAMES for other in ("dog", "number 7")]
    targets = Sentences.load(str(models_of["static"]))(texts).astype(np.float64)
    far = {}
    for name, table in {"alone": {}, "taught": {"model": str(models_of["static"]), "weight": 20.0}}.items():
        config = configured(sentences=table)
        train_towers(config, tmp_path / name, say=quiet)
        hashing, towers = build_towers(config, 48, None)
        state = torch.load(tmp_path / name / "best.pt", weights_only=True)["learner"]
        towers.load_state_dict({key[7:]: value for key, value in state.items() if key.startswith("towers.")})
        with torch.inference_mode():
            rows = towers.eval().text(torch.from_numpy(hashing(texts))).numpy()
        far[name] = naive(rows.astype(np.float64), targets, 0.1)

    assert far["taught"] < 0.7 * far["alone"]


def test_a_teacher_from_the_command_line(
    captions: Path, models_of: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake ends in one line; a right call in a bundle of hashed words that holds nothing of the teacher."""
    given = ["train", "--captions", str(captions), "--to", str(tmp_path / "w"), "--set", f"text.encoder={TINY}"]
    given += ["--set", "loop.steps=3", "--set", "text.batch=8", "--set", "loop.tensorboard=false"]
    with pytest.raises(SystemExit) as stopped:
        main([*given, "--set", f"sentences.model={tmp_path / 'gone'}"])
    assert stopped.value.code == 1 and "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([*given[:4], str(tmp_path / "v"), *given[5:], "--set", f"sentences.model={models_of['bert']}"])
    assert stopped.value.code in (0, 3)
    bundle = Encoder.load(tmp_path / "v").bundle
    assert bundle.vocabulary.to_document()["kind"] == "hashing"
    assert b"sentences" not in (tmp_path / "v" / "text.safetensors").read_bytes()
    assert "taught by model of sentence-transformers besides" in (tmp_path / "v" / "README.md").read_text()


# ── other kinds of models ────────────────────────────────────────────────────────────────────────────────────────────

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
PADDED = {**SMALL, "max_position_embeddings": 50, "pad_token_id": 1}
FAMILIES: dict[str, tuple[str, str, str, dict[str, Any], str]] = {
    "roberta": ("RobertaConfig", "RobertaModel", "bytes", {**PADDED, "type_vocab_size": 1}, "mean"),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", "unigram", {**PADDED, "type_vocab_size": 1}, "cls"),
    "mpnet": ("MPNetConfig", "MPNetModel", "unigram", PADDED, "mean"),
    "t5": (
        "T5Config", "T5EncoderModel", "unigram",
        {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2, "pad_token_id": 1}, "mean",
    ),
    "modernbert": (
        "ModernBertConfig", "ModernBertModel", "bytes",
        {**PADDED, "local_attention": 8, "cls_token_id": 0, "bos_token_id": 0, "sep_token_id": 2, "eos_token_id": 2},
        "cls",
    ),
    "qwen3": (
        "Qwen3Config", "Qwen3Model", "bytes",
        {**SMALL, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64}, "lasttoken",
    ),
}  # fmt: skip


def reader(kind: str) -> Any:
    """A tokenizer of sentence pieces or of byte pairs, learned from what it will be asked."""
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "bytes":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
        )
    else:
        inner = Tokenizer(models.Unigram())
        inner.normalizer, inner.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=marks, unk_token="<unk>", show_progress=False)
    inner.train_from_iterator(PHRASES[:7] * 3, trainer)
    around = [("<s>", 0), ("</s>", 2)]
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=around)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_become_towers(
    family: str, configured: Callable[..., TrainConfig], tmp_path: Path, captions: Path
) -> None:
    """Other tokenizers, positions, attentions and means: a run of two steps, and a bundle that agrees."""
    shape, network, kind, options, pool = FAMILIES[family]
    torch.manual_seed(0)
    tokenizer = reader(kind)
    config = getattr(transformers, shape)(vocab_size=len(tokenizer), **options)
    getattr(transformers, network)(config).save_pretrained(tmp_path / "inner")
    tokenizer.save_pretrained(tmp_path / "inner")
    words = modules.Transformer(str(tmp_path / "inner"), max_seq_length=40)
    SentenceTransformer(modules=[words, modules.Pooling(32, pool)], device="cpu").save(str(tmp_path / family))
    table = {"model": str(tmp_path / family)}

    train_towers(
        configured(text={"tower": "sentences"}, sentences=table, loop={"steps": 2}), tmp_path / "run", say=quiet
    )
    bundle = export_towers(tmp_path / "run", tmp_path / "bundle")

    assert bundle.manifest["check"]["lowest_cosine_of_texts"] >= 0.9999
    assert np.isfinite(Encoder(bundle).texts(ODD)).all()
