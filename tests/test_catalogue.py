"""Which pictures: what a folder, a file and a CSV catalogue list, and keys that lead back to the same file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike.catalogue import Row, key_of, path_of, read_table, rows
from lookalike.errors import CatalogueError
from lookalike.labels import labelled
from lookalike.tables import Problems

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


def plant(top: Path, *names: str, content: bytes = b"") -> Path:
    for name in names:
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return top


def listed(*places: Path) -> list[str]:
    """Paths in the order given, relative to the first place where they lie below it."""
    return [os.path.relpath(row.path, places[0]) for row in rows(places)]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def refused(*places: Path | str) -> str:
    with pytest.raises(CatalogueError) as caught:
        list(rows(places))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ── folders ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_folder_is_walked_to_the_bottom_in_order_of_name(tmp_path):
    """Pictures of a folder and of all folders below come in order of name, whatever the case of the extension."""
    plant(tmp_path, "b.PNG", "a.jpg", "z/deep/er/c.heic", "m/d.tiff", "m/notes.txt")
    assert listed(tmp_path) == ["a.jpg", "b.PNG", "m/d.tiff", "z/deep/er/c.heic"]


def test_category_is_the_folder_a_picture_lies_in(tmp_path):
    """The payload names the innermost folder, for files given by name too."""
    plant(tmp_path, "shoes/red/a.jpg")
    expected = Row(str(tmp_path / "shoes/red/a.jpg"), {"category": "red"})
    assert list(rows([tmp_path])) == [expected]
    assert list(rows([tmp_path / "shoes/red/a.jpg"])) == [expected]


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    """Names that begin with a dot are no pictures, unless they are what was asked for."""
    plant(tmp_path, ".a.jpg", ".thumbnails/b.jpg", "c.jpg")
    assert listed(tmp_path) == ["c.jpg"]
    assert listed(tmp_path / ".thumbnails") == ["b.jpg"]
    assert len(list(rows([tmp_path / ".a.jpg"]))) == 1


def test_pictures_without_extension_are_found_by_their_first_bytes(tmp_path):
    """A file counts if its first bytes say picture, whatever it is called."""
    plant(tmp_path, "scan", "photo.bak", content=PNG)
    plant(tmp_path, "readme", "data.bin", content=b"text and more text")
    plant(tmp_path, "empty")
    assert listed(tmp_path) == ["photo.bak", "scan"]


def test_links_to_files_count_and_links_to_folders_do_not(tmp_path):
    """A linked picture is listed, a broken link to one too (reading it will say why), a linked folder is not walked."""
    plant(tmp_path, "outside/x.jpg", "top/a.jpg")
    top = tmp_path / "top"
    (top / "link.jpg").symlink_to(tmp_path / "outside/x.jpg")
    (top / "broken.jpg").symlink_to(tmp_path / "nowhere")
    (top / "folder.jpg").symlink_to(tmp_path / "outside")
    assert listed(top) == ["a.jpg", "broken.jpg", "link.jpg"]


def test_loops_end(tmp_path):
    """A folder linked into itself is walked once."""
    plant(tmp_path, "a/b/x.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path / "a")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    assert listed(tmp_path) == ["self.jpg", "a/b/x.jpg"]


def test_folders_named_like_pictures(tmp_path):
    """A folder called x.jpg is a folder, and one called x.csv too."""
    plant(tmp_path, "x.jpg/inner.png", "x.csv/other.png")
    assert listed(tmp_path) == ["x.csv/other.png", "x.jpg/inner.png"]
    assert listed(tmp_path / "x.csv") == ["other.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_are_not_opened(tmp_path):
    """A named pipe without a picture's extension is passed over without waiting for a writer."""
    os.mkfifo(tmp_path / "pipe")
    assert listed(tmp_path) == []


def test_each_picture_once(tmp_path):
    """Folders and files that overlap give each picture once, at its first place."""
    plant(tmp_path, "a.jpg", "sub/b.jpg")
    assert listed(tmp_path, tmp_path / "sub", tmp_path / "a.jpg", tmp_path / "sub/../a.jpg") == ["a.jpg", "sub/b.jpg"]


def test_relative_places_give_absolute_paths(tmp_path, monkeypatch):
    """Rows hold absolute paths, so that a key does not depend on where one stands."""
    plant(tmp_path, "sub/a.jpg")
    monkeypatch.chdir(tmp_path / "sub")
    for place in (".", "a.jpg", "../sub", "../sub/./a.jpg"):
        assert [row.path for row in rows([place])] == [str(tmp_path / "sub/a.jpg")]


def test_missing_place(tmp_path):
    """A place that does not exist is an error that names it."""
    assert refused(tmp_path / "nowhere") == f"no such file or folder: {tmp_path / 'nowhere'}"
    assert "\\n" in refused(tmp_path / "no\nwhere")


def test_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    """A folder without permission stops the run: its pictures would otherwise pass for gone."""
    plant(tmp_path, "secret/a.jpg")

    def scandir(path):
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert refused(tmp_path) == f"cannot list folder {tmp_path / 'secret'}: Permission denied"


@pytest.mark.skipif(sys.platform != "linux", reason="names of undecodable bytes exist on Linux")
def test_undecodable_names(tmp_path):
    """Names that are not UTF-8 are listed, with keys and payloads that JSON can hold, leading back to the file."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    plant(folder, os.fsdecode(b"\xff\xfe.jpg"))
    [row] = rows([tmp_path])
    assert os.fsencode(row.path) == os.fsencode(tmp_path) + b"/caf\xe9/\xff\xfe.jpg"
    assert row.payload == {"category": "caf\\xe9"}
    assert row.key.endswith("/caf%E9/%FF%FE.jpg")
    assert path_of(row.key) == row.path


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv(tmp_path, delimiter, encoding, newline):
    """Comma, semicolon or tab, byte-order mark or not, either line end: paths relative to the file, and payload."""
    lines = ["image,name,price", 'pics/a.jpg,"Große; rote, Schuhe",12.5', "/elsewhere/b.jpg,Hut,7", ""]
    text = newline.join(lines)
    if delimiter != ",":
        text = text.replace("; rote, ", " rote ").replace(",", delimiter)
    name = "Große; rote, Schuhe" if delimiter == "," else "Große rote Schuhe"
    assert list(rows([write(tmp_path / "list.csv", text, encoding)])) == [
        Row(str(tmp_path / "pics/a.jpg"), {"name": name, "price": 12.5}),
        Row("/elsewhere/b.jpg", {"name": "Hut", "price": 7.0}),
    ]


@pytest.mark.parametrize("column", ["image", "Picture", "PATH", " file ", "filename"])
def test_csv_picture_column(tmp_path, column):
    """The picture column goes by any of its names, in any case, at any place."""
    [row] = rows([write(tmp_path / "list.CSV", f"id,{column}\n5, a.jpg \n")])
    assert row == Row(str(tmp_path / "a.jpg"), {"id": 5})


def test_csv_image_goes_before_file(tmp_path):
    """Where several columns could hold the picture, image comes first, then picture, path, file, filename."""
    [row] = rows([write(tmp_path / "list.csv", "filename,image\noriginal.tif,a.jpg\n")])
    assert row == Row(str(tmp_path / "a.jpg"), {"filename": "original.tif"})


def column(tmp_path: Path, *values: str) -> list:
    text = "image,value\n" + "".join(f"{i}.jpg,{value}\n" for i, value in enumerate(values))
    return [row.payload.get("value") for row in rows([write(tmp_path / "list.csv", text)])]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "-2", "+3"], [1, -2, 3]),
        (["1", "2.5", ""], [1.0, 2.5, None]),
        (["1", "", " "], [1, None, None]),
        (["0", "-0", "10"], [0, 0, 10]),
        (["0.5", "1e3"], [0.5, 1000.0]),
        (["007", "12"], ["007", "12"]),
        (["-01", "12"], ["-01", "12"]),
        (["1", "two"], ["1", "two"]),
        (["nan", "1.5"], ["nan", "1.5"]),
        (["NaN", "NaN"], ["NaN", "NaN"]),
        (["inf", "1"], ["inf", "1"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["9223372036854775807"], [2**63 - 1]),
        (["9223372036854775808"], ["9223372036854775808"]),
        (["9" * 5000], ["9" * 5000]),
        (["true", "false"], ["true", "false"]),
    ],
    ids=lambda values: str(values)[:40],
)
def test_csv_numbers(tmp_path, values, expected):
    """A column is numbers if all its values are; leading zeros, underscores, NaN, giants stay text; empty is absent."""
    result = column(tmp_path, *values)
    assert result == expected
    assert [type(value) for value in result] == [type(value) for value in expected]


def test_csv_blank_lines_and_cells(tmp_path):
    """Blank lines are no rows, blanks around cells do not count, and a column without a name is left out."""
    text = "image , colour,\n\na.jpg,  dark red ,x\n,,\n"
    assert list(rows([write(tmp_path / "list.csv", text)])) == [Row(str(tmp_path / "a.jpg"), {"colour": "dark red"})]


def test_csv_names_each_picture_once(tmp_path):
    """Two spellings of one path are one picture; its first row counts."""
    text = "image,n\na.jpg,1\n./a.jpg,2\nsub/../a.jpg,3\n"
    assert list(rows([write(tmp_path / "list.csv", text)])) == [Row(str(tmp_path / "a.jpg"), {"n": 1})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: its first row must name the columns"),
        (",,\n", "is empty: its first row must name the columns"),
        (
            "name,price\nx,1\n",
            "has no picture column: name one of image, picture, path, file, filename, image_url, or say which it is "
            "with --map image=COLUMN; found name, price",
        ),
        ("image,a\nx.jpg,1\ny.jpg\n", "row 3: 1 fields instead of 2"),
        ("image,a\nx.jpg,1,2\n", "row 2: 3 fields instead of 2"),
        ("image,a\nx.jpg,1\n ,2\n", "row 3: no picture"),
    ],
)
def test_csv_errors_say_file_row_and_reason(tmp_path, text, message):
    """A CSV file that is not a list of pictures is refused with file, row and what is wrong."""
    path = write(tmp_path / "list.csv", text)
    problem = refused(path)
    assert str(path) in problem
    assert problem.endswith(message)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_csv_in_another_encoding(tmp_path, encoding):
    """A CSV file that is not UTF-8 is refused with the cure, not read as nonsense."""
    problem = refused(write(tmp_path / "list.csv", "image,name\na.jpg,Größe\n", encoding))
    assert "is not UTF-8 text" in problem
    assert problem.endswith("save it as UTF-8")


def test_csv_that_cannot_be_read(tmp_path):
    """A missing CSV file, and one with a field beyond all bounds, are errors that name it."""
    assert refused(tmp_path / "none.csv") == f"cannot read catalogue {tmp_path / 'none.csv'}: No such file or directory"
    large = write(tmp_path / "large.csv", 'image,a\nx.jpg,"' + "a" * 200_000 + '"\n')
    assert refused(large).startswith(f"cannot read catalogue {large}: field larger")


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_keys():
    """A key is the absolute path, or a file URI where the path is not valid UTF-8."""
    assert key_of("/a/../b/ü 日%20#?.jpg") == "/b/ü 日%20#?.jpg"
    assert key_of(Path("x.jpg")) == str(Path.cwd() / "x.jpg")
    assert key_of(os.fsdecode(b"/photos/caf\xe9 #?%.jpg")) == "file:///photos/caf%E9%20%23%3F%25.jpg"


@pytest.mark.skipif(sys.platform == "win32", reason="names are not bytes on Windows")
@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_keys_lead_back_to_the_same_bytes(name):
    """path_of undoes key_of for every name an operating system allows, and every key is valid Unicode."""
    path = os.path.normpath(os.fsdecode(b"/top/" + name))
    key = key_of(path)
    assert path_of(key) == path
    key.encode("utf-8")
    assert key_of(path_of(key)) == key


def test_different_files_have_different_keys(tmp_path):
    """A file whose name spells another one's URI is not mistaken for it."""
    odd = os.fsdecode(b"/x/caf\xe9.jpg")
    assert key_of(odd) != key_of("/x/caf%E9.jpg")
    assert path_of(key_of("/file:/x")) == "/file:/x"


# ── other tables, and rows that are passed over ──────────────────────────────────────────────────────────────────────


def lines(path: Path, *records: dict) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("name", ["list.jsonl", "list.JSON", "list.ndjson.gz"])
def test_json_lines(tmp_path, name):
    """A table is known by its name; paths are relative to it, and values keep their types."""
    path = lines(tmp_path / name, {"picture": "pics/a.jpg", "price": 12, "new": True, "tags": ["x"]})
    expected = Row(str(tmp_path / "pics/a.jpg"), {"price": 12, "new": True, "tags": ["x"]})
    assert list(rows([path])) == [expected]


def test_rows_that_are_passed_over(tmp_path):
    """With a place for problems the good rows come, and each bad one is counted with its row and reason."""
    path = lines(
        tmp_path / "list.jsonl",
        {"id": 1, "image": "a.jpg"},
        {"id": 1, "image": "b.jpg"},
        {"id": 2},
        {"id": 3, "image": "http://host.example/c.jpg"},
        {"id": 4, "image": "./a.jpg"},
        {"id": 5, "image": "d.jpg"},
    )
    problems = Problems()
    assert [row.payload["id"] for row in rows([path], problems=problems)] == [1, 5]
    assert [(problem.row, problem.kind) for problem in problems.listed] == [
        (2, "duplicate id"),
        (3, "no picture"),
        (4, "not fetched"),
        (5, "same picture"),
    ]
    assert problems.sentences()[0] == f"1 × duplicate id, the first: catalogue {path}, row 2: id 1 was seen before"
    assert refused(path) == f"catalogue {path}, row 2: id 1 was seen before"


def test_a_table_of_which_nothing_is_left(tmp_path):
    """A table without one good row is refused with a reason, also where bad rows are passed over."""
    path = lines(tmp_path / "list.jsonl", *[{"image": f"http://host.example/{n}.jpg"} for n in range(30)])
    other = lines(tmp_path / "other.jsonl", {"image": "a.jpg"}, *[{"image": f"http://x/{n}"} for n in range(30)])
    for places in ([path], [other, path]):
        with pytest.raises(
            CatalogueError, match=r"list.jsonl, row 30: its picture is a URL: fetch it first with .*; nor is"
        ):
            list(rows(places, problems=Problems()))


def test_mapping_of_columns(tmp_path):
    """Columns called otherwise are named, for every table."""
    path = write(tmp_path / "list.csv", "sku,photo,kind\n007,a.jpg,A > B\n")
    expected = Row(str(tmp_path / "a.jpg"), {"id": "007", "category": "A > B", "categories": ["A", "B"]})
    assert list(rows([path], {"id": "sku", "image": "photo", "category": "kind"})) == [expected]


def run(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lookalike", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    return done


def test_index_of_a_catalogue(tmp_path, make_pictures):
    """A catalogue with mapped columns: indexed with its payload, bad rows said, filters answered; strict stops."""
    from lookalike.index import open_index

    top = make_pictures("a.png", "b.png", "c.png")
    path = lines(
        top / "shop.jsonl",
        {"sku": "A1", "photo": "a.png", "kinds": [["Clothing", "Shoes"], ["Sport"]]},
        {"sku": "B2", "photo": "b.png", "kinds": [["Clothing", "Hats"]]},
        {"sku": "B2", "photo": "c.png"},
    )
    arguments = ["index", path, "--to", tmp_path / "index", "--model", Path(__file__).parent / "data" / "tiny"]
    mapping = ["--map", "id=sku,image=photo", "--map", "category=kinds"]
    done = run(*arguments, *mapping, "--json")
    assert json.loads(done.stdout)["added"] == 2
    assert "passed over 1 × duplicate id" in done.stderr
    index = open_index(str(tmp_path / "index"), read_only=True)
    for where, wanted in [
        ({"id": "B2"}, "b.png"),
        ({"categories": "Sport"}, "a.png"),
        ({"category": "Clothing > Hats"}, "b.png"),
    ]:
        assert [Path(item.key).name for item in index.scan(where)] == [wanted]
    index.close()
    assert json.loads(run(*arguments, *mapping, "--json").stdout)["unchanged"] == 2
    assert "row 3: id 'B2' was seen before" in run(*arguments, *mapping, "--strict", status=1).stderr
    assert "--map takes NAME=COLUMN" in run(*arguments, "--map", "sku", status=1).stderr


def test_any_table_as_text(tmp_path):
    """What reads labels, pairs and roles reads them from any table: numbers, lists and truth values as in JSON."""
    path = lines(
        tmp_path / "list.jsonl", {"image": "a", "n": 1, "new": True}, {"image": " b ", "tags": ["x"], "n": None}
    )
    table = read_table(path)
    assert table.header == ["image", "n", "new", "tags"]
    assert table.body == [(1, ["a", "1", "true", ""]), (2, ["b", "", "", '["x"]'])]
    same = lines(tmp_path / "labels.jsonl", *({"image": f"{n}.jpg", "kind": n // 2} for n in range(4)))
    found = labelled(same, "kind").examples
    assert [(Path(one.path).name, one.label) for one in found] == [
        ("0.jpg", "0"),
        ("1.jpg", "0"),
        ("2.jpg", "1"),
        ("3.jpg", "1"),
    ]
