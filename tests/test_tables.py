"""The formats of a catalogue: what each gives, what is passed over, and that a stranger's file does no harm."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import subprocess
import sys
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import tables
from lookalike.errors import CatalogueError, MissingExtra
from lookalike.tables import MAX_LITERAL, MAX_RECORD, Problems, delimited, is_table, parse, records

RECORDS = [{"image": "a.jpg", "n": 1, "tags": ["x", "y"]}, {"image": "b.jpg", "n": 2, "tags": ["z"]}]


def write(path: Path, text: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in records(path)]


def passed_over(path: Path) -> tuple[list[int], dict[str, int], list[str]]:
    """Rows that were read, and the problems: counts by kind, and the first of each."""
    problems = Problems()
    return (
        [number for number, _ in records(path, problems)],
        dict(problems.counts),
        [f"{problem.row}: {problem.reason}" for problem in problems.listed],
    )


def refused(path: Path) -> str:
    with pytest.raises(CatalogueError) as caught:
        list(records(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path), "FILE")


# ── every format ─────────────────────────────────────────────────────────────────────────────────────────────────────


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> str:
    text = io.StringIO()
    table = csv.writer(text, delimiter=delimiter)
    table.writerow(rows[0])
    for row in rows:
        table.writerow([json.dumps(v) if isinstance(v, list) else v for v in row.values()])
    return text.getvalue()


FORMATS = {
    "t.csv": as_csv(RECORDS),
    "t.tsv": as_csv(RECORDS, "\t"),
    "T.CSV": as_csv(RECORDS, ";"),
    "bar.csv": as_csv(RECORDS, "|"),
    "t.json": json.dumps(RECORDS),
    "indented.json": json.dumps(RECORDS, indent=2),
    "lines.json": "\n".join(map(json.dumps, RECORDS)),
    "t.jsonl": "\r\n".join(map(json.dumps, RECORDS)) + "\r\n\r\n",
    "t.ndjson": "\n".join(map(json.dumps, RECORDS)) + "\n",
    "dicts.json": "\n".join(map(repr, RECORDS)) + "\n",
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_the_same(tmp_path, name, mark, packed):
    """CSV, TSV, an array, lines and Python dicts, with and without byte-order mark and gzip: the same records."""
    content = mark + FORMATS[name].encode()
    path = write(tmp_path / (name + packed), gzip.compress(content) if packed else content)
    assert is_table(path)
    assert read(path) == RECORDS


def test_gzip_is_seen_whatever_the_name_says(tmp_path):
    """A compressed file without .gz is read, and a plain one with it."""
    assert read(write(tmp_path / "t.csv", gzip.compress(FORMATS["t.csv"].encode()))) == RECORDS
    assert read(write(tmp_path / "t.jsonl.gz", FORMATS["t.jsonl"])) == RECORDS


def test_parquet(tmp_path):
    """Parquet gives the values it holds: dates as text, decimals as numbers, lists, nulls as None."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    day = datetime.date(2020, 2, 29)
    columns = {
        "image": ["a.jpg", "b.jpg", None],
        "price": [Decimal("9.50"), Decimal("7.00"), None],
        "day": [day, None, day],
        "tags": [["x"], [], None],
    }
    path = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table(columns), path)
    assert read(path) == [
        {"image": "a.jpg", "price": 9.5, "day": "2020-02-29", "tags": ["x"]},
        {"image": "b.jpg", "price": 7, "day": None, "tags": []},
        {"image": None, "price": None, "day": "2020-02-29", "tags": None},
    ]
    assert "cannot read catalogue" in refused(write(tmp_path / "bad.parquet", b"PAR1 and nothing"))
    assert refused(tmp_path / "none.parquet").endswith("No such file or directory")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    """Where pyarrow is not installed, what to install is said."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'lookalike\[catalogue\]'"):
        list(records(tmp_path / "t.parquet"))


def test_names(tmp_path):
    """What is a table by its name; a folder is none, and another file is refused with the names there are."""
    assert all(is_table(f"x{suffix}") for suffix in (".csv", ".TSV", ".tab", ".json.gz", ".jsonl", ".ndjson", ".pq"))
    assert not any(is_table(name) for name in ("x.jpg", "x.gz", "csv", "x.csv.bak", "x.txt"))
    (tmp_path / "folder.csv").mkdir()
    assert not is_table(tmp_path / "folder.csv")
    assert "call it one of .csv" in refused(write(tmp_path / "t.xlsx", "x"))


# ── delimited text ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_cells_over_several_lines(tmp_path):
    """Quoted cells hold delimiters, quotation marks and line ends, and rows are counted as such."""
    text = 'image,note\r\na.jpg,"one\r\ntwo, ""three"""\r\nb.jpg\r\nc.jpg,four\r\n'
    path = write(tmp_path / "t.csv", text)
    assert passed_over(path) == ([2, 4], {"malformed": 1}, ["3: 1 fields instead of 2"])
    problems = Problems()
    assert [record["note"] for _, record in records(path, problems)] == ['one\r\ntwo, "three"', "four"]


def test_the_delimiter_is_that_outside_of_quotation_marks(tmp_path):
    """A header whose names hold commas is still one of semicolons."""
    path = write(tmp_path / "t.csv", '"a,b,c";image\n1;x.jpg\n')
    assert read(path) == [{"a,b,c": 1, "image": "x.jpg"}]
    assert list(delimited(path)) == [(1, ["a,b,c", "image"]), (2, ["1", "x.jpg"])]


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (['["a", "b"]', "[]", ""], [["a", "b"], [], None]),
        (["['a']", "[['b', 'c']]"], [["a"], [["b", "c"]]]),
        (['{"k": 1}'], [{"k": 1}]),
        (['["a"]', "b"], ['["a"]', "b"]),
        (["[a]"], ["[a]"]),
    ],
)
def test_columns_of_lists(tmp_path, cells, expected):
    """A column holds lists where all its cells do, as JSON or as Python writes them."""
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "value"], *(["x", cell] for cell in cells)])
    assert [record["value"] for record in read(path)] == expected


def test_headers(tmp_path):
    """No names, and two columns of one name, are refused; a column without a name is left out."""
    assert refused(write(tmp_path / "t.csv", "")).endswith("is empty: its first row must name the columns")
    assert refused(write(tmp_path / "t.csv", "\n\na,b\n")).endswith("is empty: its first row must name the columns")
    assert refused(write(tmp_path / "t.csv", "a,b,a\n1,2,3\n")).endswith("two columns called a: rename one of them")
    assert read(write(tmp_path / "t.csv", ",image\n0,x.jpg\n")) == [{"image": "x.jpg"}]


# ── JSON ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_lines_that_cannot_be_read_are_passed_over(tmp_path):
    """Counted, the first of them listed with row and reason; the rows after them are read."""
    lines = ['{"a": 1}', '{"a": 1', "[1]", "null", "{'a': f()}", "", '{"a": ' + "9" * MAX_RECORD + "}", "{'a': 2}"]
    numbers, counts, listed = passed_over(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert numbers == [1, 8]
    assert counts == {"malformed": 5}
    assert "neither JSON" in listed[0]
    assert listed[1:3] == ["3: an object was expected, not list", "4: an object was expected, not NoneType"]
    assert "neither JSON" in listed[3]
    assert listed[4] == f"7: longer than {MAX_RECORD:,} characters"


def test_only_the_first_of_many_problems_are_listed(tmp_path):
    """All are counted, twenty are kept: a million bad rows cost nothing."""
    numbers, counts, listed = passed_over(write(tmp_path / "t.jsonl", "x\n" * 1000))
    assert (numbers, counts, len(listed)) == ([], {"malformed": 1000}, 20)


def test_strict(tmp_path):
    """Without a place for problems the first one is raised, with file and row."""
    assert refused(write(tmp_path / "t.jsonl", '{"a": 1}\n[]\n')) == (
        "catalogue FILE, row 2: an object was expected, not list"
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 16])
def test_arrays_are_read_in_pieces(tmp_path, monkeypatch, chunk):
    """An array is read wherever its text is cut."""
    monkeypatch.setattr(tables, "_CHUNK", chunk)
    wanted = [{"n": n, "text": 'é"]},[{\\' * n, "inner": [{"x": [n]}]} for n in range(6)]
    for indent in (None, 1):
        assert (
            read(write(tmp_path / "t.json", "  \n" + json.dumps(wanted, indent=indent, ensure_ascii=False))) == wanted
        )
    assert read(write(tmp_path / "t.json", "[]")) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1}, {"a": }]', "row 2: not JSON (Expecting value)"),
        ('[{"a": 1}', "row 2: not JSON (Expecting value)"),
        ('[{"a": "', "row 1: not JSON (Unterminated string starting at)"),
        ('[{"a": 1}, 7]', "row 2: an object was expected, not int"),
        ('[{"a": 1}] x', "something follows the end of its array"),
        ("[" * 100_000, "row 1: nested too deeply"),
    ],
)
def test_arrays_that_are_none(tmp_path, text, problem):
    """What comes after a mistake within an array cannot be read: it is refused with the row."""
    assert refused(write(tmp_path / "t.json", text)).endswith(problem)


# ── strangers ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "{'a': __import__('os').system('true')}",
        "{'a': open('/etc/passwd').read()}",
        "{'a': [x for x in (1, 2)]}",
        "{'a': 'x' * 10**9}",
        "{'a': 10 ** 10 ** 10}",
        "(lambda: 1)()",
        "{'a': f'{1}'}",
        "{[]: 1}",
        "{'a': " + "9" * 5000 + "}",
        "{'a': b'\\x00', 'b': undefined}",
        "",
    ],
)
def test_python_is_read_and_not_run(text):
    """Only literals are values: no name, call, operator or comprehension."""
    with pytest.raises(ValueError, match="neither JSON"):
        parse(text)
    assert parse("{'a': (1, None, True, -2.5, 'é\\'\\d')}") == {"a": (1, None, True, -2.5, "é'\\d")}


@pytest.mark.parametrize(
    "unit",
    ["(", "[", "{1:", "-", "~", "1+", "not ", "a.", "1 if 1 else ", "1**", "1<", "lambda:", "'", '"', "\\", "{'a':"],
)
def test_python_that_is_deeply_nested_ends_as_an_error(unit):
    """Text made to exhaust the parser's stack is refused, in a process of its own in case it is not."""
    code = "import sys\nfrom lookalike.tables import MAX_LITERAL, parse\n"
    code += "text = (sys.argv[1] * MAX_LITERAL)[: MAX_LITERAL - 1] + '1'\n"
    code += "try:\n    parse(text)\nexcept ValueError:\n    sys.exit(7)"
    done = subprocess.run([sys.executable, "-c", code, unit], capture_output=True, timeout=60)
    assert done.returncode == 7, done.stderr[-300:]


def test_python_that_is_too_long():
    """A long dict is refused before its syntax tree takes the memory."""
    with pytest.raises(ValueError, match="too long for a Python dict"):
        parse("{'a': [" + "1," * MAX_LITERAL + "]}")


@pytest.mark.parametrize("unit", ["a,", '"\n",'])
def test_rows_without_end(tmp_path, unit):
    """A row of a CSV file that goes on and on is refused before it is all in memory, in one line or in many."""
    path = write(tmp_path / "t.csv.gz", gzip.compress(("image,b\n" + unit * MAX_RECORD).encode()))
    assert "a row of more than" in refused(path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("image\nGröße\n".encode("latin-1"), "is not UTF-8 text (byte 0xf6): save it as UTF-8"),
        ("image\na\n".encode("utf-16"), "is not UTF-8 text (byte 0xff): save it as UTF-8"),
        (gzip.compress(b"image\n" + b"a.jpg\n" * 9999)[:-20], "its gzip compression is damaged"),
        (b"\x1f\x8b and no more", "Unknown compression method"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_bytes_that_are_no_text(tmp_path, name, content, problem):
    """Another encoding, and damaged compression, are refused with the cure."""
    assert refused(write(tmp_path / name, content)).endswith(problem)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(CELLS, VALUES, max_size=4), max_size=6))
def test_records_come_back(wanted):
    """Whatever JSON can hold comes back from lines, from an array, and from Python dicts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json"
        for text in ("\n".join(map(json.dumps, wanted)), json.dumps(wanted, ensure_ascii=False)):
            path.write_text(text, encoding="utf-8", newline="")
            assert read(path) == wanted
        path.write_text("\n".join(ascii(record) for record in wanted), encoding="utf-8")
        assert repr(read(path)) == repr(wanted)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), max_size=6), st.sampled_from(",;\t|"))
def test_tables_come_back(wanted, delimiter):
    """Cells come back as they were written, but for the blanks around them; rows of blanks are no rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([["one", "two"], *wanted])
        kept = [[cell.strip() for cell in row] for row in wanted]
        assert [cells for _, cells in delimited(path)][1:] == [row for row in kept if any(row)]


@given(st.binary(max_size=200), st.sampled_from(["t.csv", "t.tsv", "t.json", "t.jsonl", "t.jsonl.gz"]))
def test_any_bytes_end_as_records_or_errors(content, name):
    """No file makes the reader fail in any other way."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, content)
        problems = Problems()
        try:
            found = list(records(path, problems))
        except CatalogueError:
            return
        assert all(isinstance(record, dict) for _, record in found)
