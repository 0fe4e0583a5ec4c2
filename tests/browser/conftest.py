"""A real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

CHROMIUM = Path("/usr/bin/chromium")
PICTURES = os.environ.get("PAGE_PICTURES", "")
"""Folder that screenshots are written to; empty: nowhere."""


@pytest.fixture(scope="module")  # not longer: until it ends, playwright's event loop runs in this thread, and no test can run its own
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} is missing (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, service):
    """Opens the page, ready to ask. Nothing may be written to its console as an error, unless the test says so."""
    contexts, complaints = [], []

    def opened(width: int = 1000, height: int = 1100, dark: bool = False):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.complaints = complaints
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(service.url)
        page.wait_for_selector("#examples button")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def picture():
    """Takes a screenshot where screenshots are wanted: of the whole page, or of one part of it."""

    def take(page, name: str, part: str = "") -> None:
        if PICTURES:
            shot = Image.open(io.BytesIO(page.locator(part).screenshot() if part else page.screenshot(full_page=True)))
            shot.convert("RGB").quantize(128).save(Path(PICTURES) / f"{name}.png", optimize=True)  # half the size, and looks the same

    return take
