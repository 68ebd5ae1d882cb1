"""Any text becomes a bounded row of ids, the same on every machine; byte pairs are CLIP's, subwords a tokenizer's."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.errors import MissingExtra
from lookalike.text import FILLER, NOTHING, BytePairs, Hashing, Subwords, normalised, vocabulary_from_document, words

SCRIPTS = [
    "Красные КРОССОВКИ для бега",
    "giày chạy bộ màu đỏ",
    "tênis de corrida vermelhos, não!",
    "红色跑鞋",
    "赤いランニングシューズ",
    "รองเท้าวิ่งสีแดง",
    "लाल जूते",
    "👟🏃‍♀️ red",
]


@pytest.mark.parametrize("text", [*SCRIPTS, "", " ", "\x00\x01\x7f", "a" * 10_000, "ab " * 5_000, "\ud800 lone", "!?…"])
@pytest.mark.parametrize("hashing", [Hashing(), Hashing(trigrams=50, words=0, length=8)])
def test_any_text_has_a_bounded_number_of_ids(text: str, hashing: Hashing) -> None:
    """At least one, at most `length`, all of them above the padding and below the size."""
    ids = hashing.ids(text)

    assert 1 <= len(ids) <= hashing.length
    assert all(0 < number < hashing.size for number in ids)


@given(st.text(max_size=300))
def test_ids_are_bounded_whatever_the_text(text: str) -> None:
    """For anything Unicode allows; and the normal form is a fixed point."""
    hashing = Hashing(trigrams=64, words=32, length=40)

    assert all(0 < number < hashing.size for number in hashing.ids(text))
    assert normalised(normalised(text)) == normalised(text)


def test_words_of_many_scripts() -> None:
    """Spaces part words; without spaces each character is one, and each pair; an emoji is one; case is folded."""
    assert words("Two DOGS' running!") == ["two", "dogs", "running"]
    assert words("Красные кроссовки") == ["красные", "кроссовки"]
    assert words("红色跑鞋") == ["红", "色", "红色", "跑", "色跑", "鞋", "跑鞋"]
    assert words("red鞋") == ["red", "鞋"]
    assert words("👟🏃‍♀️ red") == ["👟", "🏃", "♀", "red"]
    assert words("लाल जूते") == ["लाल", "जूते"]
    assert words("STRASSE Straße") == ["strasse", "strasse"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("é", "e\u0301"), ("ｒｅｄ", "red"), ("RED", "red"), ("ﬁsh", "fish"), ("a\u200db", "ab"), ("a\tb", "a b")],
)
def test_what_reads_alike_has_the_same_ids(one: str, other: str) -> None:
    """Composed and decomposed, wide and plain, upper and lower, ligatures, joiners, blanks."""
    assert Hashing().ids(one) == Hashing().ids(other)


def test_trigrams_are_those_of_the_paper() -> None:
    """#go# gives #go and go# (Huang et al. 2013); kin share most of theirs, and words of their own do not."""
    alone = Hashing(trigrams=100_003, words=0)

    assert len(alone.ids("go")) == 2 and len(alone.ids("good")) == 4
    shared = set(alone.ids("running")) & set(alone.ids("runner"))
    assert len(shared) == 3  # #ru run unn
    assert not set(alone.ids("cat")) & set(alone.ids("dog"))
    assert len(Hashing().ids("good")) == 5


def test_a_text_without_words_is_told_from_padding() -> None:
    """One id of its own."""
    assert Hashing().ids("") == Hashing().ids("\x00 …") == [NOTHING]


def test_ids_are_the_same_on_every_machine() -> None:
    """Fixed numbers, also in a process whose own hashes are seeded otherwise."""
    code = "from lookalike.text import Hashing; print(Hashing().ids('red 鞋'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONHASHSEED": "7"})

    assert json.loads(done.stdout) == Hashing().ids("red 鞋") == [16273, 3850, 8081, 3850, 12035, 2421]


def test_rows_are_padded_to_a_few_widths() -> None:
    """Powers of two from 16 on; zeros behind."""
    table = Hashing()(["go", "word " * 10, ""])

    assert table.dtype == np.int64 and table.shape == (3, 64)
    assert Hashing()(["go"]).shape == (1, 16) and Hashing()([]).shape == (0, 16)
    assert (table[0] > 0).sum() == 3 and not table[0, 3:].any()


@pytest.mark.parametrize("vocabulary", [Hashing(7, 3, 5), BytePairs(("a b", "ab c</w>"), 8, 3, repair=False)])
def test_a_vocabulary_comes_back_from_its_document(vocabulary: Hashing | BytePairs) -> None:
    """Through JSON."""
    assert vocabulary_from_document(json.loads(json.dumps(vocabulary.to_document()))) == vocabulary


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"kind": "words"},
        {"kind": "hashing", "trigrams": 0},
        {"kind": "hashing", "trigrams": "many"},
        {"kind": "hashing", "extra": 1},
        {"kind": "byte_pairs", "merges": []},
        {"kind": "byte_pairs", "merges": ["a"]},
        {"kind": "byte_pairs", "merges": ["a b"], "length": 2},
        {"kind": "byte_pairs", "merges": ["a b"], "padding": 10**6},
    ],
)
def test_a_malformed_vocabulary_is_refused(document: dict[str, object]) -> None:
    """With ValueError, which the bundle turns into a BundleError."""
    with pytest.raises(ValueError, match=r"."):
        vocabulary_from_document(document)


# ── byte pairs ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def clip() -> BytePairs:
    """CLIP's own merges, as they ship with open_clip."""
    tokenizer = pytest.importorskip("open_clip.tokenizer")
    lines = gzip.decompress(Path(tokenizer.default_bpe()).read_bytes()).decode().split("\n")
    return BytePairs(tuple(lines[1 : 49152 - 256 - 2 + 1]))


TEXTS = [
    *SCRIPTS,
    "It's 12.5% of the dogs' — they'Re, I'LL",
    "dog’s “quote”",
    "a&amp;b &lt;3 &amp;amp;",
    "½ ² 1234",
    "",
    "  tabs\tand\nlines  ",
    "a" * 400,
    "word " * 200,
    "ｆｕｌｌ　ｗｉｄｔｈ",
    "\x00\x01 zero",
    "!!!'s 's",
]


def test_byte_pairs_are_those_of_open_clip(clip: BytePairs) -> None:
    """Ids of texts of many scripts, cut and padded alike."""
    import open_clip

    assert (open_clip.tokenizer.SimpleTokenizer()(TEXTS).numpy() == clip(TEXTS)).all()
    assert (clip.size, clip.start, clip.end) == (49408, 49406, 49407)


def test_byte_pairs_are_those_of_transformers(clip: BytePairs, tmp_path: Path) -> None:
    """Likewise, where nothing is repaired beforehand."""
    transformers = pytest.importorskip("transformers")
    (tmp_path / "vocab.json").write_text(json.dumps(clip._numbers | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(clip.merges), encoding="utf-8")
    tokenizer = transformers.CLIPTokenizerFast(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    plain = BytePairs(clip.merges, repair=False)

    for text in TEXTS:
        assert plain.ids(text) == tokenizer(text, truncation=True, max_length=77)["input_ids"], text


@given(st.text(max_size=100))
def test_byte_pairs_are_bounded_whatever_the_text(text: str) -> None:
    """Start first, end last, at most `length`."""
    pairs = BytePairs(("t h", "th e</w>"), length=16)
    ids = pairs.ids(text)

    assert ids[0] == pairs.start and ids[-1] == pairs.end and len(ids) <= 16
    assert all(0 <= number < pairs.size for number in ids)


# ── subwords ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def word_pieces() -> str:
    """The JSON of a tokenizer of three words and some letters, as BERT's reads."""
    library = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'lookalike[tokenizers]'")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "dog", "run", "##s", "к", "##о", "##т", "红"]
    reader = library.Tokenizer(
        library.models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    reader.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    reader.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    reader.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    reader.add_special_tokens(["[PAD]"])
    reader.enable_padding(length=99)  # which a carried tokenizer must not do
    return reader.to_str()


def test_subwords_are_those_of_the_tokenizer() -> None:
    """By hand: pieces, marks, filling that is no id, a prefix, no marks, a cut that keeps the marks."""
    pieces = word_pieces()

    table = Subwords(pieces)(["Dogs run", "кот", "红红", "zzz", ""])

    assert table.shape == (5, 16) and table.dtype == np.int64
    read = [row[row != FILLER].tolist() for row in table]
    assert read == [[2, 4, 6, 5, 3], [2, 7, 8, 9, 3], [2, 10, 10, 3], [2, 1, 3], [2, 3]]
    assert Subwords(pieces, prefix="run ").ids("dog") == [2, 5, 4, 3]
    assert Subwords(pieces, marks=False).ids("dog") == [4] and Subwords(pieces, marks=False).ids("") == []
    assert Subwords(pieces, 5).ids("dog " * 100) == [2, 4, 4, 4, 3]
    assert Subwords(pieces, 40)(["dog " * 100, "run"]).shape == (2, 40)


def test_what_fills_a_row_of_subwords_is_never_read() -> None:
    """-1, as the page on bundles says and as graphs that were exported expect: any id from 0 on may be a word."""
    library = pytest.importorskip("tokenizers", reason="needs tokenizers: pip install 'lookalike[tokenizers]'")
    reader = library.Tokenizer(library.models.WordLevel({"dog": 0, "run": 1, "[UNK]": 2, "[PAD]": 3}, "[UNK]"))
    reader.pre_tokenizer = library.pre_tokenizers.Whitespace()
    reader.enable_padding(pad_id=3, pad_token="[PAD]", length=16)

    table = Subwords(reader.to_str(), marks=False)(["dog run cat dog", "run", ""])

    assert table.tolist() == [[0, 1, 2, 0] + [-1] * 12, [1] + [-1] * 15, [-1] * 16]


@pytest.mark.parametrize(
    "text", [*SCRIPTS, "", "\x00\x01\x7f", "a" * 10_000, "dog " * 5_000, "\ud800 lone", "[PAD] dog"]
)
def test_any_text_has_a_bounded_row_of_subwords(text: str) -> None:
    """None longer than the length; what is written like filling is none; alone and beside others the same."""
    subwords = Subwords(word_pieces(), 12)

    ids = subwords.ids(text)

    assert 2 <= len(ids) <= 12 and min(ids) >= 0
    together = subwords([text, "dog " * 12])[0]
    assert together[together != FILLER].tolist() == ids


def test_subwords_lie_in_a_document() -> None:
    """As JSON, and back; what is no tokenizer is refused."""
    subwords = Subwords(word_pieces(), 20, "query: ", marks=False)
    document = json.loads(json.dumps(subwords.to_document()))

    assert vocabulary_from_document(document) == subwords
    for wrong in ({"tokenizer": "{}"}, {"length": 0}, {"length": 2, "marks": True}, {"prefix": 3}, {"more": 1}):
        with pytest.raises(ValueError, match=r"tokenizer|length|prefix|more"):
            vocabulary_from_document({**document, **wrong})


def test_subwords_without_their_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    pieces = word_pieces()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"needs tokenizers: pip install 'lookalike\[tokenizers\]'"):
        Subwords(pieces)
