"""The page as somebody uses it: a real browser, the real service behind it."""

from __future__ import annotations

import io
import json

import httpx
import pytest
from PIL import Image

from experiments.worlds.atlas import Atlas
from retrieval_actors.pictures import data_url

pytestmark = pytest.mark.slow
QUESTIONS = Atlas("heldout", seed=0, worlds=1, countries=6).questions(64, 0)
TEXT = next(q.text for q in QUESTIONS if q.family == "text_two_hop")
PICTURED = next(q for q in QUESTIONS if q.family == "image_text")


def ask(page, question: str) -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")


def answered(page) -> str:
    page.wait_for_selector("#answer .said")
    return page.inner_text("#answer .said")


def test_a_text_question_is_answered_with_its_path_and_its_json(open_page, service, picture):
    page = open_page()
    picture(page, "empty")
    ask(page, TEXT)
    said = answered(page)
    whole = httpx.post(f"{service.url}/v1/route", json={"question": TEXT}, timeout=60).json()
    assert said == whole["answer"]
    assert page.locator("#path > li").count() == len(whole["steps"])
    for number, step in enumerate(whole["steps"]):
        card = page.locator("#path > li").nth(number)
        if step["kb"]:
            assert card.locator(".query").inner_text() == step["sub_question"]
            assert card.locator(".chip").inner_text() == step["kb"]
            assert step["sub_answer"] in card.locator(".sub").inner_text()
            assert card.locator(".passages li").count() == len(step["passages"])
    with page.context.expect_page() as opening:
        page.click("#json")
    opening.value.wait_for_load_state()
    assert json.loads(opening.value.inner_text("body"))["answer"] == whole["answer"]
    picture(page, "text")


def path_of(service, question) -> list[str]:
    """The knowledge bases that the policy asks."""
    body = {"question": question.text} | ({"image": data_url(question.image.data)} if question.image else {})
    steps = httpx.post(f"{service.url}/v1/route", json=body, timeout=60).json()["steps"]
    return [step["kb"] for step in steps if step["kb"]]


def told(route, *events: dict) -> None:
    """Answer a question with these events."""
    body = "".join(f"event: {event['event']}\ndata: {json.dumps(event)}\n\n" for event in events)
    route.fulfill(status=200, content_type="text/event-stream", body=body)


PLANNED = {"event": "planned", "step": 0, "decision": "retrieve", "thought": "t", "sub_question": "q", "seconds": 0.1}
FINISHED = {"event": "finished", "answer": "34", "retrievals": 1, "seconds": 0.2, "policy_version": 0, "steps": []}
PASSAGE = {"id": "p", "title": "", "score": 1.0, "error": "", "image": None}


def test_a_policy_that_did_not_pass_the_gate_is_warned_of(open_page, service, picture):
    page = open_page()
    warning = httpx.get(f"{service.url}/health").json()["warning"]
    assert "broken knowledge bases" in warning
    assert page.inner_text("#warning") == warning
    picture(page, "warning")
    page.route("**/health", lambda route: route.fulfill(json=route.fetch().json() | {"warning": ""}))
    page.reload()
    page.wait_for_selector("#examples button")
    assert not page.is_visible("#warning")


def test_tables_are_shown_as_tables(open_page, picture):
    """A row of a fictional world, and the form that `retrieval_actors/sources/tables.py` writes."""
    row = "Kormu statistics | year 1990 | population 98 | area 93"
    table = "Kormu | Ministers | header: name ; since | row: Ann ; 1990 | row: Bo ; 2001"
    page = open_page(dark=True)
    passages = [PASSAGE | {"text": text} for text in (row, table)]
    searched = {"event": "searched", "step": 0, "passages": passages, "seconds": 0.1}
    page.route("**/v1/route", lambda route: told(route, PLANNED | {"kb": "table"}, searched, FINISHED))
    ask(page, TEXT)
    answered(page)
    cells = [[shown.locator(tag).all_inner_texts() for tag in ("caption", "th", "td")] for shown in page.locator("#path table").all()]
    assert cells == [
        [["Kormu statistics"], ["year", "population", "area"], ["1990", "98", "93"]],
        [["Kormu · Ministers"], ["name", "since"], ["Ann", "1990", "Bo", "2001"]],
    ]
    picture(page, "table-dark")


def test_cited_passages_and_the_confidence_of_the_answer_are_shown(open_page, picture):
    page = open_page()
    passages = [PASSAGE | {"id": id, "text": f"The capital of {name} is Tasla."} for id, name in (("a", "Kormu"), ("b", "Zalmu"))]
    searched = {"event": "searched", "step": 0, "passages": passages, "seconds": 0.1}
    answered_by = {"event": "answered", "step": 0, "sub_answer": "Tasla", "answer_thought": "", "cited": ["a"], "seconds": 0.1}
    sure = FINISHED | {"answer": "Tasla", "confidence": 0.93, "reason": None}
    page.route("**/v1/route", lambda route: told(route, PLANNED | {"kb": "text"}, searched, answered_by, sure))
    ask(page, TEXT)
    assert answered(page) == "Tasla"
    assert page.inner_text("#answer .confidence").strip() == "93 % confidence"
    assert page.inner_text("#path summary") == "2 passages, 1 cited"
    page.click("#path summary")
    assert [item.get_attribute("class") for item in page.locator(".passages li").all()] == ["cited", "uncited"]
    assert [text.split(" · ")[0] for text in page.locator(".passages .meta").all_inner_texts()] == ["cited", "not cited"]
    picture(page, "cited")


@pytest.mark.parametrize(
    ("reason", "words"),
    [("nothing found", "no passage"), ("sources disagree", "do not say the same"), ("not read with confidence", "sure")],
)
def test_a_refusal_says_why_and_its_threshold_is_sent(open_page, picture, reason, words):
    page, sent = open_page(), []
    refused = FINISHED | {"answer": "unknown", "confidence": 0.21, "reason": reason}

    def answer(route):
        sent.append(route.request.post_data_json)
        told(route, refused)

    page.route("**/v1/route", answer)
    page.fill("#least", "80")
    ask(page, TEXT)
    assert answered(page) == "unknown"
    assert words in page.inner_text("#answer .why")
    assert "21 %" in page.inner_text("#answer .confidence")
    assert sent[0]["min_confidence"] == 0.8
    picture(page, f"refused-{reason.replace(' ', '-')}")


def test_the_route_names_the_knowledge_bases_in_their_order(open_page, service, picture):
    """The picture `page` is the one in docs/10_serving.md."""
    paths = {question: path_of(service, question) for question in QUESTIONS[:24] if question.image}
    longest = max(paths, key=lambda question: len(set(paths[question])))
    page = open_page(width=760, height=500)
    page.set_input_files("#file", {"name": "flag.png", "mimeType": "image/png", "buffer": longest.image.data})
    page.wait_for_selector("#preview:not([hidden])")
    ask(page, longest.text)
    answered(page)
    assert page.locator("#route .chip").all_inner_texts() == ["question", *paths[longest], "answer"]
    page.locator("#path summary").first.click()
    picture(page, "page")


def test_an_image_question_shows_pictures_and_can_be_asked_with_a_file(open_page, picture):
    page = open_page(width=390, height=844)
    page.set_input_files("#file", {"name": "flag.png", "mimeType": "image/png", "buffer": PICTURED.image.data})
    page.wait_for_selector("#preview:not([hidden])")
    for name in ("text", "table"):
        page.locator("#kbs input").nth({"text": 0, "table": 2}[name]).uncheck()
    ask(page, PICTURED.text)
    answered(page)
    assert page.locator("#path .chip").first.inner_text() == "text_image"
    page.locator("#path summary").first.click()
    shown = page.locator("#path .passages img").first
    assert shown.evaluate("image => image.complete && image.naturalWidth") > 0
    assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
    picture(page, "image-phone")


def test_an_example_is_asked_with_one_click(open_page, picture):
    page = open_page(dark=True)
    page.locator("#examples button", has=page.locator("img")).first.click()
    assert answered(page)
    assert page.is_visible("#preview")
    picture(page, "example-dark")


def test_steps_appear_one_after_another_before_the_answer(open_page):
    page = open_page()
    page.evaluate(
        """() => { window.seen = [];
          const look = () => window.seen.push([document.querySelectorAll('#path > li').length, document.querySelectorAll('.passages').length,
                                               document.querySelectorAll('.sub').length, !document.querySelector('#answer').hidden]);
          new MutationObserver(look).observe(document.querySelector('main'), {childList: true, subtree: true, attributes: true}); }"""
    )
    ask(page, TEXT)
    answered(page)
    seen = page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert [1, 0, 0, False] in seen  # the plan alone was seen before its passages came
    assert not any(shown for steps, passages, answers, shown in seen if answers < max(row[2] for row in seen))


def refuse(status: int, code: str):
    body = json.dumps({"error": {"message": "in the service's own words", "type": "t", "param": None, "code": code}})
    return lambda route: route.fulfill(status=status, content_type="application/json", body=body)


ERRORS = [
    (refuse(429, "rate_limit_exceeded"), "busy with other questions"),
    (refuse(503, "knowledge_base_unavailable"), "is being restarted"),
    (refuse(504, "deadline_exceeded"), "took too long"),
    (refuse(422, "something_new"), "in the service's own words"),
    (lambda route: route.abort(), "cannot be reached"),
    (lambda route: route.fulfill(status=200, content_type="text/event-stream", body=""), "broke off"),
    (lambda route: route.fulfill(status=502, content_type="text/html", body="<h1>Bad gateway</h1>"), "cannot be reached"),
]


def test_an_error_is_told_in_words_and_the_question_stays(open_page, picture):
    page = open_page()
    for number, (handle, finding) in enumerate(ERRORS):
        page.route("**/v1/route", handle)
        ask(page, TEXT)
        page.wait_for_selector("#error:not([hidden])")
        assert finding in page.inner_text("#message")
        assert page.input_value("#question") == TEXT
        assert page.is_enabled("#ask")
        assert page.is_hidden("#route")
        picture(page, f"error-{number}")
        page.unroute("**/v1/route")
    page.complaints.clear()  # the browser itself notes the failed requests
    ask(page, TEXT)
    assert answered(page)
    assert page.is_hidden("#error")


def test_a_key_that_is_missing_is_asked_for_and_sent(open_page, picture):
    page, sent = open_page(), []

    def guard(route) -> None:
        sent.append(route.request.headers.get("authorization"))
        refuse(401, "invalid_api_key")(route) if sent[-1] is None else route.fallback()

    page.route("**/v1/route", guard)
    ask(page, TEXT)
    page.wait_for_selector("#keybox:not([hidden])")
    picture(page, "key")
    page.complaints.clear()
    page.fill("#key", "the key")
    ask(page, TEXT)
    answered(page)
    assert sent == [None, "Bearer the key"]


def test_a_file_that_is_no_picture_is_refused_before_it_is_sent(open_page):
    page = open_page()
    page.set_input_files("#file", {"name": "a.gif", "mimeType": "image/gif", "buffer": b"GIF89a"})
    assert "PNG or a JPEG" in page.inner_text("#message")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"not a picture"})
    ask(page, TEXT)
    page.wait_for_selector("#error:not([hidden])")
    assert "does not decode" in page.inner_text("#message")
    page.complaints.clear()


def test_an_image_can_be_dropped_and_removed(open_page):
    page = open_page()
    file = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(file, "PNG")
    page.evaluate(
        """bytes => { const data = new DataTransfer(); data.items.add(new File([new Uint8Array(bytes)], 'a.png', {type: 'image/png'}));
          document.querySelector('#form').dispatchEvent(new DragEvent('drop', {bubbles: true, cancelable: true, dataTransfer: data})); }""",
        list(file.getvalue()),
    )
    page.wait_for_selector("#preview:not([hidden])")
    page.click("#remove")
    assert page.is_hidden("#preview")


def test_what_passages_and_the_policy_say_is_never_run(open_page, picture):
    attack = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    passage = PASSAGE | {"id": attack, "title": attack, "text": f"{attack} | header: {attack} | row: {attack}"}
    plan = PLANNED | {"thought": attack, "sub_question": attack}
    passages = [passage | {"image": f"javascript:{attack}"}, passage | {"text": attack}]
    path = [
        plan | {"kb": "table"},
        {"event": "searched", "step": 0, "passages": passages, "seconds": 0.1},
        {"event": "answered", "step": 0, "answer_thought": attack, "sub_answer": attack, "seconds": 0.1},
        plan | {"step": 1, "kb": attack},
        FINISHED | {"answer": attack},
    ]
    page = open_page()
    page.route("**/v1/route", lambda route: told(route, *path))
    ask(page, attack)
    assert answered(page) == attack
    assert page.locator("main img:visible").count() == page.locator("#examples img").count()
    assert page.evaluate("window.hacked") is None
    picture(page, "injection")


def test_nothing_but_the_page_s_own_script_runs(open_page):
    page = open_page()
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s); }")
    page.evaluate("() => { document.body.setAttribute('onclick', 'window.hacked = 1'); document.body.click(); }")
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in said for said in page.complaints)
    page.complaints.clear()


def test_the_keyboard_is_enough(open_page):
    page = open_page()
    page.locator("h1").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type(TEXT)
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#question") == TEXT + "\n"
    held = []
    page.route("**/v1/route", lambda route: held.append(route))  # and never answers
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:not([hidden])")
    page.keyboard.press("Escape")
    page.wait_for_selector("#stop", state="hidden")
    assert page.is_hidden("#error")
    page.unroute("**/v1/route")
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"ask", "file", "steps", "BUTTON"} <= reached


def test_light_and_dark_follow_the_reader(open_page):
    papers = [open_page(dark=dark).evaluate("getComputedStyle(document.body).backgroundColor") for dark in (False, True)]
    assert papers == ["rgb(251, 250, 247)", "rgb(22, 24, 29)"]
