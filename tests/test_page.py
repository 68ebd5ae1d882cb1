"""The page in a real browser: every flow with real photographs, by mouse, finger and keyboard; and what axe says."""

from __future__ import annotations

import base64
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps
from test_search_text import encoder as words_encoder  # noqa: F401 - a fixture: a small bundle that knows four words

from lookalike.catalogue import rows
from lookalike.encoder import Encoder
from lookalike.feedback import Feedback
from lookalike.index import open_index
from lookalike.indexing import update_index
from lookalike.server.settings import Settings

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'lookalike[dev]'")
axe_api = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, photographs: list[Path]) -> Path:
    """Each photograph whole, once more as a worse JPEG, halved and mirrored; and four plain colours."""
    top = tmp_path_factory.mktemp("page") / "pictures"
    for place, source in enumerate(photographs):
        folder = top / ("animals" if "chelsea" in source.name else "flowers" if "flower" in source.name else "things")
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.open(source).convert("RGB")
        image.thumbnail((640, 640))
        image.save(folder / f"{source.stem}.jpg", quality=92)
        image.save(folder / f"{source.stem}-again.jpg", quality=60)
        image.crop((0, 0, image.width // 2, image.height)).save(folder / f"{source.stem}-left.jpg")
        ImageOps.mirror(image).rotate(10 * place, fillcolor="white").save(folder / f"{source.stem}-turned.jpg")
    (top / "colours").mkdir()
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220)), ("green", (30, 200, 30))):
        Image.new("RGB", (300, 200), colour).save(top / "colours" / f"{name}.png")
    return top


@pytest.fixture(scope="module")
def start(pictures: Path, words_encoder: Encoder) -> Iterator[Callable[..., str]]:  # noqa: F811
    """start(settings) serves an index of its own at a real socket."""
    import uvicorn

    from lookalike.server.app import create_app

    running: list[tuple[Any, threading.Thread]] = []

    def serve(settings: Settings) -> str:
        encoder = words_encoder
        place = pictures.parent / f"{len(running)}.index"
        index = open_index(place, dim=encoder.dim, meta={"encoder": encoder.describe()})
        found = [replace(r, payload={**r.payload, "price": 5 + n * 3 % 60}) for n, r in enumerate(rows([pictures]))]
        update_index(index, encoder, found)
        app = create_app(index, encoder, settings)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        # A page that is opened earlier asks /v1/ready in vain, which the browser complains of on its console.
        while not server.started or app.state.service.state == "starting":
            time.sleep(0.01)
        running.append((server, thread))
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"

    yield serve
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def store(pictures: Path) -> Path:
    return pictures.parent / "the.feedback"


@pytest.fixture(scope="module")
def address(start: Callable[..., str], store: Path) -> str:
    return start(Settings(rate=0, feedback=store))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """visit(**context) opens the page; at the end nothing was asked of anybody else, and no script complained."""
    contexts: list[Any] = []
    complaints: list[str] = []
    strangers: list[str] = []

    def opened(at: str = address, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda asked: (
                strangers.append(asked.url)
                if not asked.url.startswith((at.partition("#")[0], "blob:", "data:"))
                else None
            ),
        )
        page.goto(at)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert strangers == []
    # Expected: the network's word on a request before the token is typed, and the policy's on what a test smuggled in.
    assert [text for text in complaints if "401" not in text and "inline script violates" not in text] == []


@pytest.fixture
def page(visit: Callable[..., Any]) -> Any:
    opened = visit()
    ready(opened)
    return opened


def ready(page: Any) -> None:
    page.wait_for_selector("body[data-ready]")
    page.wait_for_selector("#results .card")


def settled(page: Any) -> None:
    """The answers are there."""
    page.wait_for_timeout(450)
    page.wait_for_selector("#results:not([aria-busy])")


def choose(page: Any, picture: Path) -> None:
    page.set_input_files("#file", picture)
    page.wait_for_selector("#query:not([hidden])")
    settled(page)


def names(page: Any) -> list[str]:
    return page.locator("#results .card .about span").all_inner_texts()


def scores(page: Any) -> list[float]:
    return [float(text) for text in page.locator("#results .card:not([hidden]) .about b").all_inner_texts()]


def said(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('status').textContent.includes(text)", arg=text)


def test_choose_a_picture(page: Any, pictures: Path) -> None:
    """Best first with scores; thumbnails have loaded; a screen reader is told."""
    choose(page, pictures / "animals" / "chelsea.jpg")
    found = scores(page)
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.999
    assert names(page)[0].startswith("chelsea")
    said(page, "pictures found")
    page.wait_for_function("() => document.querySelector('#results img').naturalWidth > 100")
    assert page.locator("#asked img").evaluate("image => image.naturalWidth") > 100


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_drop_and_paste(page: Any, pictures: Path, way: str) -> None:
    """A file that is dropped anywhere, or comes from the clipboard."""
    data = base64.b64encode((pictures / "things" / "coffee.jpg").read_bytes()).decode()
    page.click("nav [data-view=map]")
    page.evaluate(
        """([data, way]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "a.jpg", { type: "image/jpeg" }));
            const event = way === "drop"
                ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true })
                : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true, cancelable: true });
            document.body.dispatchEvent(event);
        }""",
        [data, way],
    )
    page.wait_for_selector("#query:not([hidden])")
    settled(page)
    assert names(page)[0].startswith("coffee")


def test_photograph(visit: Callable[..., Any], pictures: Path) -> None:
    """On a phone: the camera's input, answers in view at once, nothing wider than the screen, in the dark."""
    page = visit(viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True, color_scheme="dark")
    ready(page)
    assert page.get_attribute("#camera", "capture") == "environment"
    with page.expect_file_chooser() as chooser:
        page.tap("#photograph")
    chooser.value.set_files(pictures / "things" / "rocket.jpg")
    page.wait_for_selector("#query:not([hidden])")
    settled(page)
    assert names(page)[0].startswith("rocket")
    page.wait_for_function("() => document.getElementById('results-title').getBoundingClientRect().top < 300")
    for view in ("search", "duplicates", "name", "map"):
        page.tap(f"nav [data-view={view}]")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, view


def test_words(page: Any) -> None:
    """What the words say comes first; no heat map is offered for them."""
    page.fill("#words", "red")
    page.press("#words", "Enter")
    page.wait_for_selector("#query:not([hidden])")
    settled(page)
    assert names(page)[0] == "red.png"
    assert page.inner_text("#asked") == "“red”"
    assert page.locator("#results .why").count() == 0


def test_a_minimum_score(page: Any, pictures: Path) -> None:
    """The slider by keyboard: nothing below it is left, and it says its value."""
    choose(page, pictures / "things" / "coffee.jpg")
    before = len(scores(page))
    page.focus("#least")
    page.press("#least", "End")
    for _ in range(4):
        page.press("#least", "ArrowLeft")
    settled(page)
    assert page.inner_text("#least-out") == "0.96"
    assert 0 < len(scores(page)) < before
    assert min(scores(page)) >= 0.96


def test_click_an_answer_and_go_back(page: Any, pictures: Path) -> None:
    """An answer becomes the question; the browser's back button returns to the first."""
    choose(page, pictures / "things" / "coffee.jpg")
    before = names(page)
    page.locator("#results .pic").nth(6).click()
    page.wait_for_selector("#asked img[alt]:not([alt='Your picture'])")
    settled(page)
    assert page.get_attribute("#asked img", "alt") == before[6]
    assert before[6] not in names(page)
    page.go_back()
    page.wait_for_selector("#asked img[alt='Your picture']")
    settled(page)
    assert names(page) == before


def test_liked_and_disliked(page: Any, pictures: Path) -> None:
    """The basket asks with its examples, which are not among the answers; taken out and cleared again."""
    choose(page, pictures / "things" / "coffee.jpg")
    page.locator("#results .like").nth(1).click()
    page.locator("#results .like").nth(2).click()
    page.locator("#results .dislike").nth(3).click()
    said(page, "3 examples")
    chosen = names(page)[1:4]
    assert page.locator("#liked button").count() == 2
    assert page.locator("#disliked button").count() == 1
    assert page.locator("#results .like").nth(1).get_attribute("aria-pressed") == "true"
    page.click("#by-basket")
    settled(page)
    assert not set(chosen) & set(names(page))
    page.click("#beside-basket")
    page.wait_for_function("() => document.getElementById('results-title').textContent === 'Beside these'")
    page.locator("#liked button").first.click()
    assert page.locator("#liked button").count() == 1
    page.click("#clear-basket")
    assert page.locator("#basket").is_hidden()


def test_filters(page: Any, pictures: Path) -> None:
    """Values and ranges narrow what is listed and what is found; clearing brings all back."""
    assert page.locator("#facets details").first.get_attribute("open") is not None, "of two, the first is open"
    page.get_by_label("animals").check()
    settled(page)
    assert len(names(page)) == 4
    assert all(name.startswith("chelsea") for name in names(page))
    choose(page, pictures / "things" / "coffee.jpg")
    assert all(name.startswith("chelsea") for name in names(page))
    page.get_by_label("things").check()
    settled(page)
    both = len(names(page))
    assert both > 4
    page.locator("#facets summary", has_text="price").click()
    page.get_by_label("price to").fill("20")
    settled(page)
    assert 0 < len(names(page)) < both
    page.click("#clear-filters")
    settled(page)
    assert len(names(page)) >= both
    assert "red.png" in names(page)


@pytest.mark.parametrize("way", ["mouse", "finger", "keyboard"])
def test_a_region_of_the_query(page: Any, pictures: Path, way: str) -> None:
    """The left half finds the picture that is the left half; dropped again, the whole is searched."""
    choose(page, pictures / "things" / "astronaut.jpg")
    assert not names(page)[0].endswith("-left.jpg")
    stage = page.locator("#asked .stage")
    where = stage.bounding_box()
    corners = [(where["x"] + 1, where["y"] + 1), (where["x"] + where["width"] / 2, where["y"] + where["height"] + 5)]
    with page.expect_request("**/v1/search"):
        if way == "mouse":
            page.mouse.move(*corners[0])
            page.mouse.down()
            page.mouse.move(*corners[1], steps=5)
            page.mouse.up()
        elif way == "finger":
            for kind, (x, y) in zip(("down", "move", "up"), (corners[0], corners[1], corners[1]), strict=True):
                detail = {"pointerId": 1, "pointerType": "touch", "clientX": x, "clientY": y, "bubbles": True}
                stage.evaluate("node => (node.setPointerCapture = () => {})")
                stage.dispatch_event(f"pointer{kind}", detail)
        else:
            stage.focus()
            page.keyboard.press("Enter")
            for arrow in ["ArrowLeft", "ArrowUp"] * 9:
                page.keyboard.press(arrow)
            for _ in range(17):
                page.keyboard.press("Shift+ArrowDown")
    settled(page)
    assert page.locator("#asked .box").is_visible()
    assert names(page)[0] == "astronaut-left.jpg"
    if way == "keyboard":
        stage.focus()
        page.keyboard.press("Escape")
    else:
        page.click("#whole")
    settled(page)
    assert page.locator("#asked .box").is_hidden()
    assert not names(page)[0].endswith("-left.jpg")


def test_why_alike(page: Any, pictures: Path) -> None:
    """Two heat maps with their words; closed by Escape, focus comes back."""
    choose(page, pictures / "animals" / "chelsea.jpg")
    button = page.locator("#results .why").nth(1)
    button.click()
    page.wait_for_selector("#why[open] img")
    assert page.locator("#why img").count() == 2
    page.wait_for_function("() => [...document.querySelectorAll('#why img')].every((image) => image.naturalWidth > 50)")
    page.keyboard.press("Escape")
    assert page.locator("#why").is_hidden()
    assert button.evaluate("node => node === document.activeElement")


def test_duplicates(page: Any) -> None:
    """Each photograph is with its worse copy; the slider makes groups fewer; a click searches."""
    page.click("nav [data-view=duplicates]")
    page.wait_for_selector("#groups .card")
    at_first = page.locator("#groups > li").count()
    assert at_first > 3
    page.focus("#threshold")
    page.press("#threshold", "End")
    page.wait_for_function("count => document.querySelectorAll('#groups > li').length < count", arg=at_first)
    page.press("#threshold", "PageDown")
    page.wait_for_selector("#groups .card .pic")
    page.locator("#groups .pic").first.click()
    page.wait_for_selector("#view-search:not([hidden]) #query:not([hidden])")


def test_name_by_example(page: Any, pictures: Path) -> None:
    """Two baskets with two examples each name the rest; an example can be taken back."""
    page.click("nav [data-view=name]")
    page.wait_for_selector("#picker .card")
    assert page.locator("#name-rest").is_disabled()
    for basket, stem in (("cats", "chelsea"), ("cups", "coffee")):
        page.fill("#basket-name", basket)
        page.press("#basket-name", "Enter")
        for ending in ("", "-again"):
            page.locator(f"#picker .pic[title='{stem}{ending}.jpg']").click()
    assert page.locator("#picker .pic[aria-pressed=true]").count() == 4
    page.uncheck("#allow-none")
    page.click("#name-rest")
    page.wait_for_selector("#named .card")
    cats = page.locator("#named section", has_text="cats")
    assert cats.locator(".pic[title='chelsea-turned.jpg']").count() == 1
    said(page, "Named")
    page.get_by_label("Take out chelsea.jpg").click()
    assert page.locator("#picker .pic[aria-pressed=true]").count() == 3


def test_the_map(page: Any) -> None:
    """Pan and zoom by mouse and keyboard; the nearest picture is told and searched by."""
    page.click("nav [data-view=map]")
    said(page, "Map of")
    assert page.locator("#map-legend li").count() >= 4
    canvas = page.locator("#map")
    before = canvas.screenshot()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(300)
    zoomed = canvas.screenshot()
    assert zoomed != before
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 200, steps=4)
    page.mouse.up()
    page.wait_for_timeout(200)
    assert canvas.screenshot() != zoomed
    page.click("#map-all")
    canvas.focus()
    for pressed in ("+", "+", "ArrowLeft", "ArrowUp", "-"):
        page.keyboard.press(pressed)
    page.keyboard.press("Enter")
    page.wait_for_selector("#view-search:not([hidden]) #query:not([hidden])")
    settled(page)
    assert len(names(page)) > 5


def test_each_view_has_an_address(visit: Callable[..., Any], address: str) -> None:
    """Opened at a view, the page stays there; its title says where one is."""
    for view, title in (("map", "Map"), ("duplicates", "Near-duplicates"), ("name", "Name by example")):
        page = visit(f"{address}#/{view}")
        page.wait_for_selector("body[data-ready]")
        assert page.locator(f"#view-{view}").is_visible()
        assert page.title() == f"{title} · Lookalike"


def test_a_server_that_starts_is_waited_for(browser: Any, address: str) -> None:
    """Opened too early, the page says why it is empty, and fills itself as soon as the server is ready."""
    opened = browser.new_page()
    opened.route("**/v1/ready", lambda route: route.fulfill(status=503, json={"status": "starting"}))
    opened.goto(address)
    opened.wait_for_function(
        "document.getElementById('which').textContent == 'The server is starting.'", timeout=10_000
    )
    opened.unroute("**/v1/ready")
    ready(opened)
    assert "pictures" in opened.text_content("#which")
    opened.close()


def test_judgements_are_kept_and_forgotten(page: Any, pictures: Path, store: Path) -> None:
    """Only when asked to; clicks and judgements reach the store; forgetting empties it."""
    choose(page, pictures / "things" / "coffee.jpg")
    assert page.locator("#results .alike").count() == 0
    page.check("#remember")
    settled(page)
    page.locator("#results .alike").nth(1).click()
    said(page, "Judged alike")
    page.locator("#results .unlike").nth(4).click()
    said(page, "Judged not alike")
    page.locator("#results .pic").nth(2).click()
    page.wait_for_selector("#asked img:not([alt='Your picture'])")
    settled(page)
    with Feedback(store) as kept:
        first = next(search for search in kept.searches() if search.alike)
    assert first.query.picture.startswith(b"\xff\xd8")
    assert first.alike == (first.shown[1],)
    assert first.unlike == (first.shown[4],)
    assert first.clicked == (first.shown[2],)
    page.click("#forget")
    said(page, "forgotten")
    with Feedback(store) as kept:
        assert len(kept) == 0


def test_by_keyboard_alone(page: Any) -> None:
    """From the top of the page to an answer, its likes and its reasons, without a pointer."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "words"
    page.keyboard.type("blue")
    page.keyboard.press("Enter")
    page.wait_for_selector("#query:not([hidden])")
    settled(page)
    page.locator("#results .pic").first.focus()
    page.keyboard.press("ArrowRight")
    focus = "[...document.querySelectorAll('#results .pic')].indexOf(document.activeElement)"
    assert page.evaluate(focus) == 1
    page.keyboard.press("ArrowDown")
    row = page.evaluate(focus) - 1
    assert row > 1
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Home")
    assert page.evaluate(focus) == 0
    page.keyboard.press("+")
    said(page, "liked")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "like"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#asked img")
    settled(page)
    page.locator("#results .pic").nth(1).focus()
    page.keyboard.press("w")
    page.wait_for_selector("#why[open] img")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    # One stop for the whole grid: Tab from a picture goes through its own buttons and on.
    assert page.locator("#results button[tabindex='0']").count() <= 4


def test_a_token_is_asked_for_and_remembered(visit: Callable[..., Any], start: Callable[..., str]) -> None:
    """Typed once, or behind the # of the address; a wrong one is refused and asked for again."""
    token = "0123456789abcdef-token"
    address = start(Settings(rate=0, token=token))
    page = visit(address)
    page.wait_for_selector("#door[open]")
    page.fill("#door-token", "wrong-token-of-some-length")
    page.press("#door-token", "Enter")
    page.wait_for_selector("#toast.on")
    page.fill("#door-token", token)
    page.press("#door-token", "Enter")
    ready(page)
    page.reload()
    ready(page)
    carried = visit(f"{address}#token={token}")
    ready(carried)
    assert token not in carried.url


def test_nothing_inline_runs(page: Any) -> None:
    """The policy stops a script and a style that somebody managed to put into the page."""
    assert page.evaluate(
        """() => new Promise((done) => {
            window.ran = false;
            document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = true";
            document.body.append(script);
        })"""
    ).startswith("script-src")
    assert page.evaluate("window.ran") is False


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(visit: Callable[..., Any], pictures: Path, scheme: str, width: int) -> None:
    """Every view with something in it: no violation of impact serious or critical."""
    page = visit(viewport={"width": width, "height": 900}, color_scheme=scheme)
    ready(page)
    axe = axe_api.Axe()

    def check(view: str) -> None:
        page.wait_for_timeout(300)
        found = axe.run(page).response["violations"]
        bad = [
            (one["id"], [node["html"][:120] for node in one["nodes"][:3]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert bad == [], f"{view}: {bad}"

    check("list")
    choose(page, pictures / "things" / "coffee.jpg")
    page.locator("#results .like").nth(1).click()
    page.locator("#results .dislike").nth(2).click()
    page.check("#remember")
    settled(page)
    check("search")
    page.locator("#results .why").nth(1).click()
    page.wait_for_selector("#why[open] img")
    check("why")
    page.keyboard.press("Escape")
    page.click("#help-button")
    check("help")
    page.keyboard.press("Escape")
    page.click("nav [data-view=duplicates]")
    page.wait_for_selector("#groups .card")
    check("duplicates")
    page.click("nav [data-view=name]")
    page.wait_for_selector("#picker .card")
    page.fill("#basket-name", "things")
    page.press("#basket-name", "Enter")
    page.locator("#picker .pic").first.click()
    page.click("#name-rest")
    page.wait_for_selector("#named .card")
    check("name")
    page.click("nav [data-view=map]")
    said(page, "Map of")
    check("map")
