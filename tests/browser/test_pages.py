"""The pages in a real browser, with JavaScript off."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
import uvicorn
from holdings import ALICE, BOB, Holdings, dataset, lens, schema
from playwright.sync_api import Browser, Page, sync_playwright
from postgres import TestDatabases
from psycopg.types.json import Jsonb

from atdata.nsid import DATASET, FIELD_TYPE, LENS, SAMPLE_SCHEMA
from atdata_appview.app import create_app
from atdata_appview.settings import AppViewSettings
from atdata_backend.search.tantivy import TantivyEngine


@pytest.fixture(scope="module")
def address(postgres: TestDatabases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An AppView with some datasets."""
    folder = tmp_path_factory.mktemp("search")
    with postgres.database() as url, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        holdings = Holdings(url, TantivyEngine(folder))
        holdings.account(ALICE, "alice.test")
        digit = holdings.add(ALICE, SAMPLE_SCHEMA, "digit", schema())
        for n, name in enumerate(["Handwritten digits", "Owls at night", "<script>alert(1)</script>"]):
            holdings.add(ALICE, DATASET, f"d{n}", dataset(name, digit, tags=["vision" if n == 0 else "audio"]))
        _add_awkward(holdings)
        # Up to date for as long as these tests take.
        holdings.execute(
            "INSERT INTO indexer_status VALUES (DEFAULT, %s, now() + interval '1 hour')",
            [Jsonb({"relay": "relay.test", "connected": True, "lagSeconds": 0.1})],
        )
        holdings.engine.close()
        port = listener.getsockname()[1]
        app = create_app(AppViewSettings(database_url=url, search_dir=folder, port=port, search_processes=0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        # Answers queue in the listening socket until it is ready.
        while not server.started:
            thread.join(0.02)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


def _add_awkward(holdings: Holdings) -> None:
    """Names without spaces, texts from right to left, towers of accents, tables without end."""
    long = "Donaudampfschifffahrtsgesellschaft" * 8
    url = "https://example.org/" + "a/very/long/path/" * 12
    primitive = {"$type": f"{FIELD_TYPE}#primitive", "primitive": "int"}
    array = {"$type": f"{FIELD_TYPE}#ndarray", "dtype": "float32", "shape": list(range(30))}
    lost = {"$type": f"{FIELD_TYPE}#ref", "ref": f"at://{BOB}/{SAMPLE_SCHEMA}/{'lost' * 60}"}
    fields = [
        {"name": long if n % 9 == 0 else f"field_{n}", "fieldType": (primitive, array, lost)[n % 3], "description": url}
        for n in range(300)
    ]
    holdings.account(BOB)
    huge = holdings.add(
        ALICE, SAMPLE_SCHEMA, "huge", schema(long, "1.0.0-" + "rc." * 40, fields=fields, description=long)
    )
    arabic = holdings.add(BOB, SAMPLE_SCHEMA, "arabic", schema("عينة الكلام"))
    tower = "Z" + "\u0300\u0316" * 80
    # Pictures of lenses: to what is long, from right to left, piled up or missing, both ways and many at once.
    digit, gone = f"at://{ALICE}/{SAMPLE_SCHEMA}/digit", f"at://{BOB}/{SAMPLE_SCHEMA}/gone"
    ends = [
        (digit, huge),
        (huge, digit),
        (digit, arabic),
        (digit, arabic),
        (gone, digit),
        (digit, gone),
        (arabic, arabic),
    ]
    holdings.add_all(
        BOB, LENS, [(f"lens{n}", lens((long, "عدسة", tower)[n % 3], *pair)) for n, pair in enumerate(ends)]
    )
    holdings.add(
        *(ALICE, DATASET, "huge"),
        dataset(
            *(long, huge),
            description=url * 3,
            tags=[long, *(f"tag-{n}" for n in range(200))],
            license=long,
            size={"samples": 2**53 - 1, "bytes": 2**53 - 1},
            storage={"$type": "ac.foundation.dataset.storageExternal", "urls": [url + str(n) for n in range(99)]},
        ),
    )
    text = "تسجيلات صوتية من 12 دولة. speech."
    holdings.add(BOB, DATASET, "arabic", dataset("مجموعة بيانات الكلام", arabic, description=text, tags=["لغة:ar"]))
    holdings.add_all(BOB, DATASET, [(f"more{n}", dataset(f"More {n}", arabic, -1)) for n in range(100)])
    holdings.add(BOB, DATASET, "tower", dataset(tower, arabic, description=tower, tags=[tower]))
    holdings.add(BOB, DATASET, "odd", {"$type": DATASET, "name": 7, "tags": "none", "storage": {"$type": "x"}})


PATHS = (
    "/",
    "/?q=digits&tags=vision&publishers=@alice.test",
    "/?q=zzyzx",
    "/?limit=0",
    "/docs",
    f"/dataset/{ALICE}/d0",
    f"/dataset/{ALICE}/huge",
    f"/dataset/{BOB}/arabic",
    f"/dataset/{BOB}/tower",
    f"/dataset/{BOB}/odd",
    f"/schema/{ALICE}/digit",
    f"/schema/{ALICE}/huge",
    f"/schema/{BOB}/arabic",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None and os.environ.get("CI") != "true":
        pytest.skip("no Chromium on the PATH; tests/browser/install installs one")
    with sync_playwright() as playwright:
        # Root, as in containers, cannot have Chromium's sandbox; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(java_script_enabled=False, viewport={"width": request.param, "height": 844})
    yield context.new_page()
    context.close()


def test_search_by_hand(address: str, page: Page, tmp_path: Path) -> None:
    """Type a word with a typo, press Enter, follow the first hit to its dataset and on to its schema."""
    page.goto(address)
    page.get_by_role("searchbox").fill("handwriten")
    page.get_by_role("searchbox").press("Enter")
    page.get_by_role("link", name="Handwritten digits").click()
    assert page.title().startswith("Handwritten digits")
    assert "atdata.load_dataset(" in page.content()
    page.get_by_role("link", name="Digit", exact=False).first.click()
    assert "uint8" in page.content()


def test_facets_are_links(address: str, page: Page) -> None:
    """A tag beside the results narrows them down."""
    page.goto(f"{address}/?q=")
    assert page.get_by_role("link", name="Owls at night").count() == 1
    if filters := page.locator("summary", has_text="Filters").filter(visible=True).all():
        filters[0].click()
    page.locator("a", has_text="vision").filter(visible=True).first.click()
    assert page.get_by_role("link", name="Owls at night").count() == 0
    assert page.get_by_role("link", name="Handwritten digits").count() == 1


def test_names_are_text(address: str, page: Page) -> None:
    """A dataset named like a script is shown by that name."""
    page.goto(f"{address}/?q=alert")
    assert page.get_by_role("link", name="<script>alert(1)</script>").count() == 1
    assert page.locator("script").count() == 0


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_nothing_sticks_out(address: str, browser: Browser, width: int) -> None:
    """No page is wider than the window, whatever records hold, and none asks for anything that its policy forbids."""
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for path in PATHS:
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    # The browser itself says that an answer has status 400.
    assert [text for text in complaints if "400" not in text] == []
    context.close()


def test_counts_stay_whole(address: str, page: Page) -> None:
    """However long the name beside it, the number of a facet's value stands on one line."""
    page.goto(address)
    if page.locator("aside label").is_visible():
        page.locator("aside label").click()
    numbers = page.locator(".facets .n", has_text="103")
    assert numbers.first.text_content() == "103"
    for number in numbers.all():
        assert number.evaluate("n => n.offsetHeight < 2 * parseFloat(getComputedStyle(n).fontSize)")


def test_a_date_beside_foreign_letters(address: str, page: Page) -> None:
    """Letters from right to left do not draw what stands beside them into their order."""
    page.goto(f"{address}/?q=الكلام")
    card = page.locator(".card", has_text="مجموعة بيانات")
    assert card.locator("time").evaluate("time => time.getClientRects().length") == 1
    assert card.locator(".text").evaluate("text => getComputedStyle(text).direction") == "rtl"
    assert card.locator(".by").evaluate("by => getComputedStyle(by).direction") == "ltr"


# The texts that are hard to read: all whose contrast with what is behind them is lower than WCAG 2.2 asks (1.4.3),
# each with its contrast. Colours go through a canvas, which knows every way to write them.
_ILLEGIBLE = """() => {
    const context = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
    const rgba = colour => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b]
        .map(part => part / 255)
        .map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
    const between = (...colours) => {
        const [dark, bright] = colours.map(colour => light(rgba(colour))).sort((a, b) => a - b);
        return (bright + 0.05) / (dark + 0.05);
    };
    const found = new Set();
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest(".hidden")) continue;
        const style = getComputedStyle(element);
        let behind = element, opacity = 1;
        for (let at = element; at; at = at.parentElement) opacity *= getComputedStyle(at).opacity;
        while (behind && rgba(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
        const contrast = between(style.color, getComputedStyle(behind).backgroundColor);
        const size = parseFloat(style.fontSize);
        const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        if (contrast < (isLarge ? 3 : 4.5) || opacity < 1)
            found.add(`${contrast.toFixed(2)} ${texts.currentNode.data.trim().slice(0, 40)}`);
    }
    for (const field of document.querySelectorAll("input:not([type=hidden], .hidden), select")) {
        const behind = getComputedStyle(field.closest("header, body")).backgroundColor;
        const contrast = between(getComputedStyle(field).borderColor, behind);
        if (contrast < 3) found.add(`${contrast.toFixed(2)} the border of ${field.name}`);
    }
    return [...found];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(address: str, browser: Browser, scheme: Literal["light", "dark"]) -> None:
    """Text has a contrast of 4.5 to what is behind it, large text and the borders of fields one of 3."""
    context = browser.new_context(viewport={"width": 1280, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    for path in PATHS:
        page.goto(address + path)
        assert page.evaluate(_ILLEGIBLE) == [], path
    context.close()


# What a screen reader could not tell: fields and links without a name, headings that skip a level, names used twice.
_UNNAMED = """() => {
    const wrong = [];
    for (const field of document.querySelectorAll("input:not([type=hidden]), select"))
        if (!field.ariaLabel && !field.labels.length) wrong.push(`no label: ${field.outerHTML}`);
    for (const element of document.querySelectorAll("a, button, summary, h1, h2, h3"))
        if (!element.textContent.trim()) wrong.push(`no text: ${element.outerHTML}`);
    for (const image of document.images) if (!image.hasAttribute("alt")) wrong.push(`no alt: ${image.src}`);
    const levels = [...document.querySelectorAll("h1, h2, h3")].map(heading => Number(heading.tagName[1]));
    if (levels.filter(level => level === 1).length !== 1) wrong.push(`headings: ${levels}`);
    levels.forEach((level, i) => { if (level > (levels[i - 1] ?? 0) + 1) wrong.push(`h${level} at ${i}: ${levels}`); });
    const ids = [...document.querySelectorAll("[id]")].map(element => element.id);
    for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`twice: #${id}`);
    for (const box of document.querySelectorAll("pre, .scroll"))
        if (box.scrollWidth > box.clientWidth && box.tabIndex < 0) wrong.push("scrolls, and not by keyboard");
    return wrong;
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_everything_has_a_name(address: str, browser: Browser, width: int) -> None:
    """Fields have labels, links texts, and headings their order, so that a page makes sense without being seen."""
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    for path in PATHS:
        page.goto(address + path)
        assert page.evaluate(_UNNAMED) == [], path
    context.close()


def test_the_keyboard_reaches_everything(address: str, browser: Browser) -> None:
    """Tab goes from one link and field to the next, each visible when it is reached, and shows where it is."""
    context = browser.new_context(viewport={"width": 1280, "height": 844})
    page = context.new_page()
    for path in ("/?q=digits", f"/dataset/{ALICE}/d0", "/docs"):
        page.goto(address + path)
        targets = page.locator("a, button, select, summary, input:not([type=hidden]), [tabindex='0']")
        # Inside of what is folded up, nothing can be reached, or must be.
        count = sum(target.evaluate("target => target.checkVisibility()") for target in targets.all())
        for n in range(count):
            page.keyboard.press("Tab")
            is_shown = page.evaluate("""() => {
                const focused = document.activeElement, box = focused.getBoundingClientRect();
                return focused !== document.body && getComputedStyle(focused).outlineStyle !== "none"
                    && box.width > 1 && box.right > 0;
            }""")
            assert is_shown, (path, n, page.evaluate("document.activeElement.outerHTML"))
    context.close()
