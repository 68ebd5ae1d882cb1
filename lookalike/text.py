"""Text → bounded integer ids: letter trigrams and words, hashed; the byte pairs of CLIP; or a tokenizer carried along.

What a text tower reads is frozen into a small document, ``vocabulary.json`` of the bundle, and gives the same ids on
every machine: hashes are CRC-32 of UTF-8, never Python's own ``hash``.

Three kinds, of which only the last needs more than NumPy:

* `Hashing`, of the towers trained here. Text is brought to one form (Unicode NFKC, case folded), cut into words, and
  each word into its letter trigrams with marks at both ends, ``#go#`` → ``#go``, ``go#`` (Huang et al. 2013, "Learning
  deep structured semantic models"): a word never seen, or misspelt, still shares most of its trigrams with its kin.
  Where a script writes no spaces (Chinese, Japanese, Thai, …), each character counts as a word, and so does each pair
  of neighbours; so does an emoji.
* `BytePairs`, of CLIP (Radford et al. 2021): byte-level pair encoding by a list of merges (Sennrich et al. 2016).
* `Subwords`, of sentence-transformers models: whatever their tokenizer is, as its JSON document, read by the library
  `tokenizers`.
"""

from __future__ import annotations

import html
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from lookalike.errors import MissingExtra

Ids = npt.NDArray[np.int64]

# Of `Hashing`: fills a row up; and what stands for a text without a single word.
PADDING, NOTHING = 0, 1
FIRST = 2
# Of `Subwords`: fills a row up, and is no id of any tokenizer.
FILLER = -1
# Characters of a text that are looked at: what lies behind them would not fit into the ids anyway.
LONGEST = 10_000

__all__ = ["BytePairs", "Hashing", "Ids", "Subwords", "Vocabulary", "normalised", "vocabulary_from_document", "words"]


def normalised(text: str) -> str:
    """One form for what reads alike: Unicode NFKC, case folded, without control and format characters, single blanks.

    Full-width letters become plain ones, ``É`` written as one character or as two becomes the same ``é``.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text[:LONGEST]).casefold())
    # A zero-width joiner or a variation selector says how to draw, not what; a control character parts words.
    kept = (
        "" if _is_drawing_hint(letter) else " " if unicodedata.category(letter)[0] in "CZ" else letter
        for letter in folded
    )
    return " ".join("".join(kept).split())


def words(text: str) -> list[str]:
    """The words of a text in its normal form, in order.

    Runs of letters, marks and digits; single characters of scripts without spaces, and each joined to its left
    neighbour; single emoji and other symbols. Punctuation only parts them.
    """
    found: list[str] = []
    run = before = ""
    for letter in normalised(text):
        kind = unicodedata.category(letter)
        alone = _is_unspaced(letter)
        if kind[0] in "LMN" and not alone:
            run, before = run + letter, ""
            continue
        if run:
            found.append(run)
            run = ""
        if alone and kind[0] in "LMN":
            found.append(letter)
            if before:
                found.append(before + letter)
            before = letter
            continue
        if kind in ("So", "Sc", "Sm"):
            found.append(letter)
        before = ""
    return [*found, run] if run else found


@dataclass(frozen=True)
class Hashing:
    """Letter trigrams, and whole words if wanted, hashed into a fixed number of ids.

    Attributes:
        trigrams: how many ids trigrams are spread over.
        words: how many ids whole words are spread over; 0 is without them.
        length: most ids of one text; what comes after them is left out.
    """

    trigrams: int = 8192
    words: int = 8192
    length: int = 512

    def __post_init__(self) -> None:
        whole = all(type(value) is int for value in (self.trigrams, self.words, self.length))
        if not whole or self.trigrams < 1 or self.words < 0 or self.length < 1:
            raise ValueError(
                f"trigrams and length must be whole numbers of at least 1 and words of at least 0, got "
                f"{self.trigrams!r}, {self.length!r}, {self.words!r}"
            )

    @property
    def size(self) -> int:
        """How many different ids there are: all lie below it."""
        return FIRST + self.trigrams + self.words

    def ids(self, text: str) -> list[int]:
        """Between 1 and `length` ids, each from 1 to below `size`; a text without words is the one id `NOTHING`."""
        found: list[int] = []
        for word in words(text):
            found += self._of_word(word)
            if len(found) >= self.length:
                break
        return found[: self.length] or [NOTHING]

    def __call__(self, texts: Sequence[str]) -> Ids:
        """(n, m) int64: a row of ids per text, filled up with `PADDING`; m is a power of two from 16 on."""
        rows = [self.ids(text) for text in texts]
        return _filled(rows, _width(rows), PADDING)

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        return {"kind": "hashing", "trigrams": self.trigrams, "words": self.words, "length": self.length}

    def _of_word(self, word: str) -> list[int]:
        marked = f"#{word}#"
        grams = [marked[i : i + 3] for i in range(len(marked) - 2)]
        own = [FIRST + self.trigrams + _hashed(word) % self.words] if self.words else []
        return own + [FIRST + _hashed(gram) % self.trigrams for gram in grams]


@dataclass(frozen=True)
class BytePairs:
    """The tokenizer of CLIP: lower-cased text, as UTF-8 bytes, joined pair by pair in the order of a list of merges.

    Attributes:
        merges: pairs as ``"left right"``, the first to be joined first, in the byte alphabet of GPT-2.
        length: ids of a text: start, its tokens, end, then filling; longer texts are cut, and still end with the end.
        padding: the id that fills up: 0 in open_clip, that of the end in the originals.
        repair: undo HTML entities, curly quotes, full-width letters and control characters first, as open_clip does.
            (It also repairs wrongly decoded text, which is not done here.)
    """

    merges: tuple[str, ...] = field(repr=False)
    length: int = 77
    padding: int = 0
    repair: bool = True

    def __post_init__(self) -> None:
        if not self.merges or not all(isinstance(m, str) and len(m.split()) == 2 for m in self.merges):
            raise ValueError('merges must be pairs "left right", at least one')
        if type(self.length) is not int or self.length < 3 or not 0 <= self.padding < self.size:
            raise ValueError(f"length must be at least 3 and padding an id, got {self.length!r} and {self.padding!r}")

    @property
    def size(self) -> int:
        """How many different ids there are."""
        return 2 * len(_BYTES) + len(self.merges) + 2

    @property
    def start(self) -> int:
        """The id before a text."""
        return self.size - 2

    @property
    def end(self) -> int:
        """The id after a text."""
        return self.size - 1

    def ids(self, text: str) -> list[int]:
        """Start, at most ``length - 2`` tokens, end."""
        found: list[int] = []
        for word in _clip_words(self._cleaned(text[:LONGEST])):
            found += self._word(word)
            if len(found) > self.length:
                break
        return [self.start, *found[: self.length - 2], self.end]

    def __call__(self, texts: Sequence[str]) -> Ids:
        """(n, length) int64: a row of ids per text, filled up with `padding`."""
        return _filled([self.ids(text) for text in texts], self.length, self.padding)

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        facts = {"kind": "byte_pairs", "length": self.length, "padding": self.padding, "repair": self.repair}
        return {**facts, "merges": list(self.merges)}

    @cached_property
    def _numbers(self) -> dict[str, int]:
        letters = list(_BYTES.values())
        joined = ["".join(merge.split()) for merge in self.merges]
        names = [*letters, *(f"{letter}</w>" for letter in letters), *joined]
        return {name: number for number, name in enumerate(names)}

    @cached_property
    def _ranks(self) -> dict[tuple[str, str], int]:
        ranks: dict[tuple[str, str], int] = {}
        for rank, merge in enumerate(self.merges):
            left, right = merge.split()
            ranks[left, right] = rank
        return ranks

    def _cleaned(self, text: str) -> str:
        if self.repair:
            plain = "".join(
                letter
                for letter in html.unescape(html.unescape(text.translate(_STRAIGHT)))
                if letter.isspace() or unicodedata.category(letter) != "Cc"
            )
            text = _FULL_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found.group()), plain)
        return " ".join(unicodedata.normalize("NFC", text).split()).lower()

    def _word(self, word: str) -> list[int]:
        parts = [_BYTES[byte] for byte in word.encode("utf-8", errors="replace")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            ranked = [(self._ranks.get(pair, len(self._ranks)), pair) for pair in pairwise(parts)]
            rank, (left, right) = min(ranked)
            if rank == len(self._ranks):
                break
            parts = list(_joined(parts, left, right))
        return [self._numbers[part] for part in parts]


@dataclass(frozen=True)
class Subwords:
    """The tokenizer of a sentence-transformers model, as the library `tokenizers` writes and reads it.

    Attributes:
        tokenizer: its JSON document.
        length: most ids of one text, the marks around it among them; longer texts are cut.
        prefix: put before each text.
        marks: whether the tokenizer's marks of start and end are put around each text.

    Raises:
        MissingExtra: `tokenizers` is not installed.
        ValueError: no tokenizer, or a `length` that leaves no room for a text.
    """

    tokenizer: str = field(repr=False)
    length: int = 128
    prefix: str = ""
    marks: bool = True

    def __post_init__(self) -> None:
        right = isinstance(self.tokenizer, str) and isinstance(self.prefix, str) and isinstance(self.marks, bool)
        if not right or type(self.length) is not int:
            raise ValueError("tokenizer and prefix must be texts, length a whole number, marks true or false")
        around = self._reader.num_special_tokens_to_add(False) if self.marks else 0
        if self.length <= around:
            raise ValueError(f"length must be above {around}, the marks around a text, got {self.length}")
        self._reader.enable_truncation(self.length, direction=(self._reader.truncation or {}).get("direction", "right"))

    def readable(self, text: str) -> str:
        """What of a text is read: its first `LONGEST` characters, those without UTF-8 replaced, behind the prefix."""
        return self.prefix + text[:LONGEST].encode("utf-8", errors="replace").decode("utf-8")

    def ids(self, text: str) -> list[int]:
        """At most `length` ids; of a text without anything to read, and without marks, none."""
        found: list[int] = self._reader.encode(self.readable(text), add_special_tokens=self.marks).ids
        return found

    def __call__(self, texts: Sequence[str]) -> Ids:
        """(n, m) int64: a row of ids per text, filled up with `FILLER`; m is a power of two from 16 on, or `length`."""
        rows = [self.ids(text) for text in texts]
        return _filled(rows, min(_width(rows), self.length), FILLER)

    def to_document(self) -> dict[str, Any]:
        """As JSON."""
        facts = {"kind": "subwords", "length": self.length, "prefix": self.prefix, "marks": self.marks}
        return {**facts, "tokenizer": self.tokenizer}

    @cached_property
    def _reader(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            feature = "reading words for a sentence-transformers model"
            raise MissingExtra(feature, "tokenizers", "tokenizers") from error
        try:
            reader = tokenizers.Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises nothing more special
            raise ValueError(f"tokenizer is not one: {error}") from error
        reader.no_padding()
        return reader


Vocabulary = Hashing | BytePairs | Subwords


def vocabulary_from_document(document: Mapping[str, Any]) -> Vocabulary:
    """Back from `to_document`. Raises ValueError for anything else."""
    kinds: dict[Any, type[Vocabulary]] = {"hashing": Hashing, "byte_pairs": BytePairs, "subwords": Subwords}
    facts = dict(document)
    kind = facts.pop("kind", None)
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, got {kind!r}")
    if isinstance(facts.get("merges"), list):
        facts["merges"] = tuple(facts["merges"])
    try:
        return kinds[kind](**facts)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _width(rows: Sequence[Sequence[int]]) -> int:
    """The power of two, from 16 on, that holds all rows: a compiled network then meets only a few shapes."""
    return 1 << max(4, (max(map(len, rows), default=1) - 1).bit_length())


def _filled(rows: Sequence[Sequence[int]], width: int, filler: int) -> Ids:
    table = np.full((len(rows), width), filler, dtype=np.int64)
    for row, found in zip(table, rows, strict=True):
        row[: len(found)] = found
    return table


def _hashed(text: str) -> int:
    # An unpaired surrogate has no UTF-8, but Python lets a text hold one.
    return zlib.crc32(text.encode("utf-8", errors="replace"))


@lru_cache(maxsize=1 << 14)
def _is_drawing_hint(letter: str) -> bool:
    return (
        unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f" or unicodedata.category(letter) == "Sk"
    )


# Scripts that write words without spaces between them.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)


@lru_cache(maxsize=1 << 14)
def _is_unspaced(letter: str) -> bool:
    return any(first <= ord(letter) <= last for first, last in _UNSPACED)


# ── byte pairs ───────────────────────────────────────────────────────────────────────────────────────────────────────

_STRAIGHT = str.maketrans({"‘": "'", "’": "'", "‚": ",", "“": '"', "”": '"', "„": '"'})
_FULL_WIDTH = re.compile("[\uff01-\uffef]")
# English endings, which CLIP splits off first.
_ENDINGS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d", re.IGNORECASE)


def _byte_alphabet() -> dict[int, str]:
    """A printable character for each byte, as in GPT-2: those that print stand for themselves."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _clip_words(text: str) -> Iterator[str]:
    r"""As CLIP's pattern: an ending, a run of letters, a single digit, or a run of whatever else is no blank.

    The pattern, ``'s|…|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+``, needs a library for ``\p``.
    """
    place = 0
    while place < len(text):
        special = _ENDINGS.match(text, place)
        if special:
            yield special.group()
            place = special.end()
            continue
        kind = _kind(text[place])
        end = place + 1
        while kind in "Lo" and end < len(text) and _kind(text[end]) == kind:
            end += 1
        if kind != " ":
            yield text[place:end]
        place = end


def _kind(letter: str) -> str:
    """L letter, N number, blank, or o for others."""
    return " " if letter.isspace() else kind if (kind := unicodedata.category(letter)[0]) in "LN" else "o"


def _joined(parts: Sequence[str], left: str, right: str) -> Iterator[str]:
    place = 0
    while place < len(parts):
        if parts[place] == left and place + 1 < len(parts) and parts[place + 1] == right:
            yield left + right
            place += 2
        else:
            yield parts[place]
            place += 1
