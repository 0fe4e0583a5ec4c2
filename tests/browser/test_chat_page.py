"""A chat on the page: a real browser, a real HTTP server, a scripted policy that can rewrite."""

from __future__ import annotations

import json

import pytest
from in_process import EXAMPLES, served


@pytest.fixture(scope="module")
def service():
    with served() as service:
        yield service


def ask(page, question: str) -> None:
    page.wait_for_selector("#ask:not([disabled])")
    page.fill("#question", question)
    page.keyboard.press("Enter")
    page.wait_for_selector("#answer .said")


def test_a_follow_up_is_understood_with_the_chat_until_a_new_one_begins(open_page, picture):
    page, sent = open_page(width=760, height=500), []
    page.on("request", lambda request: sent.append(json.loads(request.post_data)) if request.url.endswith("/v1/route") else None)
    ask(page, EXAMPLES[0]["question"])
    assert page.is_hidden("#understood")
    assert page.inner_text("#earlier li") == f"{EXAMPLES[0]['question']} Rell"
    page.locator("#kbs input").nth(1).uncheck()
    ask(page, "and its currency?")
    page.wait_for_selector("#understood:not([hidden])")
    assert page.inner_text("#understood") == "Understood as: What is the currency of Kormu?"
    assert page.locator("#earlier li").all_inner_texts()[1] == "What is the currency of Kormu? Rell"
    assert sent[1] == {
        "question": "and its currency?",
        "stream": True,
        "pictures": True,
        "earlier": [{"question": EXAMPLES[0]["question"], "answer": "Rell"}],
        "kbs": ["text"],
    }
    picture(page, "chat")
    page.click("#anew")
    assert page.is_hidden("#chat")
    assert page.is_hidden("#answer")
    ask(page, "and its currency?")
    assert page.is_hidden("#understood")
    assert "earlier" not in sent[2]
    page.wait_for_selector("#ask:not([disabled])")
    page.locator("#examples button").click()
    page.wait_for_selector("#answer .said")
    assert "earlier" not in sent[3]


def test_of_a_long_chat_the_page_keeps_the_latest_turns_on_a_phone(open_page, picture):
    page = open_page(width=390, height=844, dark=True)
    for number in range(6):
        ask(page, f"What is the capital of Kormu in {number}?")
        page.wait_for_function(f"document.querySelectorAll('#earlier li').length === {min(4, number + 1)}")
    assert page.inner_text("#understood") == "Asked as it stands: What is the capital of Kormu in 5?"  # the rewrite lost the 5
    assert "in 5?" in page.locator("#earlier li").last.inner_text()
    assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
    picture(page, "chat-phone-dark")
