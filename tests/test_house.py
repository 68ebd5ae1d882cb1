"""The rules of the house, kept by tests: light imports, arrows, documented names, documented commands that run."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lookalike

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "sklearn", "matplotlib", "cv2")
MODULES = sorted(
    name for _, name, _ in pkgutil.walk_packages(lookalike.__path__, "lookalike.") if not name.endswith("__main__")
)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md")])


@pytest.mark.parametrize("code", ["import lookalike", "from lookalike.cli import main; main(['--help'])"])
def test_starting_up_is_light(code: str) -> None:
    """Importing the package and asking for help load no heavy library, and no engine or network either."""
    unwanted = {*HEAVY, "numpy", "openvino", "qdrant_edge"}
    check = f"import sys; bad = set(sys.modules) & {unwanted!r}; sys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["-c", "import lookalike"], ["-m", "lookalike", "--help"]])
def test_starting_up_takes_less_than_four_tenths_of_a_second(arguments: list[str]) -> None:
    """The best of five uses under 0.4 s of processor time, so that other work on the machine is no matter."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.4


def test_working_needs_no_heavy_library() -> None:
    """Every module but those of training imports without torch, sklearn, matplotlib and cv2."""
    code = "import sys, importlib\nfor n in sys.argv[1:]: importlib.import_module(n)\n"
    code += f"bad = set(sys.modules) & set({HEAVY!r}); sys.exit(str(bad) if bad else 0)"
    core = [name for name in MODULES if not name.startswith("lookalike.training")]
    done = subprocess.run([sys.executable, "-c", code, *core], capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr


def test_arrows_point_down() -> None:
    """import-linter's contracts hold: layers, independent engines, no torch."""
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("name", MODULES)
def test_public_names_are_documented(name: str) -> None:
    """Each module says what it is for and what is public; each public name and method has a docstring of its own."""
    module = importlib.import_module(name)
    assert module.__doc__
    if name.rpartition(".")[2].startswith("_"):
        return
    for public in module.__all__:
        thing = getattr(module, public)
        if not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        assert thing.__doc__, f"{name}.{public}"
        for attribute, value in vars(thing).items() if inspect.isclass(thing) else ():
            member = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if inspect.isfunction(member) and not attribute.startswith("_") and member.__qualname__.startswith(public):
                assert member.__doc__, f"{name}.{public}.{attribute}"


def test_public_names_of_the_package_exist() -> None:
    """What `lookalike` promises can be imported; what it does not, cannot."""
    for name in lookalike.__all__:
        assert getattr(lookalike, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lookalike.nonsense


def test_error_tree_is_complete() -> None:
    """The tree drawn in the docstring of `errors` names every error and no other."""
    from lookalike import errors

    drawn = set(re.findall(r"[├└]── (\w+)", errors.__doc__ or "")) | {"LookalikeError"}
    assert drawn == set(errors.__all__)


@pytest.fixture(scope="module")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, photographs: list[Path], draw_classes: Callable[..., Path]
) -> Path:
    """A folder as a reader of the documentation has it: some pictures, a query, a catalogue."""
    from PIL import Image

    top = tmp_path_factory.mktemp("docs")
    for number, source in enumerate(photographs):
        folder = top / "pictures" / ("animals" if "chelsea" in source.name else "things")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.open(source).convert("RGB")
        image.save(folder / f"{source.stem}.jpg")
        if number < 3:
            image.resize((image.width // 2, image.height // 2)).save(folder / f"{source.stem}-small.jpg")
    wanted = {"some.jpg": "chelsea", "red.jpg": "coffee", "blue.jpg": "astronaut"}
    for name, stem in wanted.items():
        shutil.copy(next(top.rglob(f"{stem}.jpg")), top / name)
    lines = ["image,name,price,brand"]
    for number, path in enumerate(sorted((top / "pictures").rglob("*.jpg"))):
        lines.append(f"{path.relative_to(top)},{path.stem},{5 * number + 9.5},{'Acme' if number % 2 else 'Ajax'}")
    (top / "products.csv").write_text("\n".join(lines) + "\n")
    draw_classes(top / "shapes")
    return top


def _page(page: Path) -> object:
    """A page as a parameter; what a newcomer reads first is tried at every run, the others take their time."""
    marks = [] if page.name in ("README.md", "tutorial.md", "examples.md", "python.md") else [pytest.mark.slow]
    return pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks)


@pytest.mark.parametrize("page", [_page(page) for page in PAGES])
def test_documented_commands_run(page: Path, workplace: Path, tmp_path: Path) -> None:
    """Commands in ```console blocks and ```python blocks of a page run, in order, in one folder."""
    place = Path(shutil.copytree(workplace, tmp_path / "place"))
    search_path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"PATH": search_path, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    for kind, text in re.findall(r"^```(console|python)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        commands = [[sys.executable, "-c", text]]
        if kind == "console":
            lines = re.findall(r"^\$ (.*(?:\n> .*)*)", text, re.MULTILINE)
            commands = [["bash", "-c", line.replace("\n> ", "\n")] for line in lines]
        for command in commands:
            done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, f"{command[-1]}\n{done.stderr}"


def test_every_command_has_its_reference() -> None:
    """docs/reference/ is what `make docs` writes."""
    command = [sys.executable, str(ROOT / "scripts" / "write_reference.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stdout + done.stderr
