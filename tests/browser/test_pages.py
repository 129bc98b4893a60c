"""The pages in a real browser, with JavaScript off."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from holdings import ALICE, Holdings, dataset, schema
from playwright.sync_api import Browser, Page, sync_playwright
from postgres import TestDatabases

from atdata.nsid import DATASET, SAMPLE_SCHEMA
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
        holdings.engine.close()
        port = listener.getsockname()[1]
        app = create_app(AppViewSettings(database_url=url, search_dir=folder, port=port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        # Answers queue in the listening socket until it is ready.
        while not server.started:
            thread.join(0.02)
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


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


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(address: str, browser: Browser, width: int) -> None:
    """No page is wider than the window, and none asks for anything that its policy forbids."""
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    uri = httpx.get(f"{address}/xrpc/ac.foundation.dataset.searchDatasets").json()["datasets"][0]["uri"]
    did, _, rkey = uri.removeprefix("at://").split("/")
    for path in ("/", "/?q=digits", f"/dataset/{did}/{rkey}", "/docs"):
        page.goto(address + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    assert complaints == []
    context.close()
