"""The trajectory browser of a report as somebody uses it: a real browser, a page opened as a file, five thousand trajectories."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from many_episodes import ATTACK, World, large_run, scored

from experiments.config import TrainConfig
from experiments.evaluation.score_again import ReplayedTurn
from experiments.report.replay_page import disagreements_table, replay_page, rewards_table
from experiments.report.report_page import write_report
from experiments.tracking.run_folder import RunFolder
from experiments.tracking.trajectory_table import TRAJECTORY_SCHEMA
from rollout.records import Question, TurnReward

pytestmark = pytest.mark.slow
MEGABYTES = 2**20


@pytest.fixture(scope="module")
def report(browser, tmp_path_factory) -> Path:
    folder = large_run(tmp_path_factory.mktemp("runs"))
    write_report(folder)
    return folder.report


@pytest.fixture
def shown(browser):
    """Opens a report, unpacked. Nothing may be written to its console as an error."""
    contexts, complaints = [], []

    def opened(file: Path, width: int = 1280, height: int = 900, dark: bool = False):
        phone = width < 500
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=phone, is_mobile=phone
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(("file:", "data:")) else None)
        page.goto(file.as_uri())
        page.wait_for_selector("#browser:not([hidden])")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not complaints


def count(page) -> int:
    """How many trajectories pass the filters."""
    return int(page.inner_text("#found").split(" of ")[0].replace(",", ""))


def search(page, words: str) -> None:
    before = page.inner_text("#found")
    page.fill("#search", words)
    page.wait_for_function("before => document.querySelector('#found').textContent !== before", arg=before)


def test_five_thousand_trajectories_are_light_and_fast(report, shown):
    """Bounds are several times what an idle machine needs: the one that runs this may be busy."""
    page = shown(report)
    assert page.inner_text("#found") == "5,000 of 5,000"
    assert report.stat().st_size < 4 * MEGABYTES
    painted, unpacked = (
        page.evaluate(f"performance.getEntriesByName('{name}')[0].startTime") for name in ("first-contentful-paint", "unpacked")
    )
    slowest = page.evaluate(
        """() => Math.max(...['saffron', 'saffron harbour', 'q17', 'no such word', ''].map(words => {
             document.querySelector('#search').value = words;
             const began = performance.now(); filter(); return performance.now() - began; }))"""
    )
    print(
        f"{report.stat().st_size / MEGABYTES:.2f} MB, painted {painted:.0f} ms, unpacked {unpacked:.0f} ms, slowest filter {slowest:.0f} ms"
    )
    assert painted < 3000
    assert unpacked < 6000
    assert slowest < 500
    assert page.locator(".row").count() < 40  # the others have no elements


def test_filters_narrow_to_what_they_say(report, shown):
    page = shown(report)
    everything = page.evaluate("data.trajectories.map(t => [t.outcome, t.family, t.set, t.steps.map(s => s.choice)])")
    page.click("#outcomes button.wrong")
    assert count(page) == sum(t[0] == "wrong" for t in everything)
    page.click("#kbs button:has-text('table')")
    assert count(page) == sum(t[0] == "wrong" and "table" in t[3] for t in everything)
    page.select_option("#family", "image_table")
    assert count(page) == sum(t[0] == "wrong" and "table" in t[3] and t[1] == "image_table" for t in everything)
    page.select_option("#set", label="training iteration 40")
    expected = sum(t[0] == "wrong" and "table" in t[3] and t[1] == "image_table" and t[2] == 2 for t in everything)
    assert 0 < count(page) == expected
    assert page.get_attribute("#outcomes button.wrong", "aria-pressed") == "true"
    page.click("#reset")
    assert count(page) == 5000


def test_text_search_looks_into_questions_queries_and_passages(report, shown):
    page = shown(report)
    passage, users = page.evaluate(
        """() => { const place = data.trajectories[0].steps[0].passages[0][0];
             return [data.passages[place][0], data.trajectories.filter(t => t.steps.some(s => s.passages.some(p => p[0] === place))).length]; }"""
    )
    search(page, passage)
    assert count(page) >= users > 0
    search(page, "neverword")
    assert count(page) == 0
    assert page.inner_text("#rows") == "No trajectory is like that."
    search(page, page.evaluate("data.trajectories[7].question"))
    assert page.evaluate("shown.includes(data.trajectories[7])")


def test_a_trajectory_is_shown_with_its_steps_its_rewards_and_its_siblings(report, shown, picture):
    """The picture `report` is the one in docs/08_runs_and_evaluation.md."""
    page = shown(report, width=1060, height=860)
    page.select_option("#set", label="training iteration 40")
    page.select_option("#family", "image_table")
    told = page.evaluate("shown[0]")
    assert page.inner_text("#detail h3") == told["question"]
    steps = page.locator("#detail ol.path > li")
    assert steps.count() == len(told["steps"]) + 1
    for number, step in enumerate(told["steps"][:-1]):
        card = steps.nth(number)
        assert card.locator(".chip").first.inner_text() == step["choice"].replace("_", "-")
        assert step["query"] in card.locator("p.query").all_inner_texts()
        assert "reward 1.00" in card.locator(".reward").first.inner_text()
        siblings = step["plan"]["siblings"]
        assert sum(sibling[3] for sibling in siblings) == 8
        assert sum(sibling[3] * sibling[5] for sibling in siblings) == pytest.approx(0, abs=1e-3)  # advantages of a group
        shown_group = card.locator("details.siblings").first
        assert shown_group.locator(".sibling").count() == len(siblings)
        assert shown_group.locator(".sibling.trunk").count() == 1
        assert "advantage" in shown_group.inner_text()
        routes = card.locator("details.routes")
        (_, _, brought), best = step["plan"]["values"]["queries"][0], routes.locator("li.best")
        assert [best.locator(".chip").inner_text(), "0.96"] == [
            next(kb for kb, _, v in brought if v == 0.96).replace("_", "-"),
            best.locator("b").inner_text(),
        ]
        assert routes.locator("li:has(.here) .chip").inner_text() == step["choice"].replace("_", "-")
    page.locator("#detail").evaluate("box => { box.scrollTop = 0; }")
    picture(page, "report", "#browser")
    steps.nth(0).locator("details.passages summary").click()
    image = steps.nth(0).locator(".passages img").first
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    steps.nth(1).locator("details.passages summary").click()
    assert steps.nth(1).locator(".passages th").first.inner_text() == "year"


def test_the_same_question_before_training_is_one_click_away(report, shown):
    page = shown(report)
    question = page.inner_text("#detail h3")
    assert "after training" in page.inner_text("#detail .meta >> nth=0")
    page.click("#detail .elsewhere button:has-text('before training')")
    page.wait_for_function("document.querySelector('#detail .meta').textContent.includes('before training')")
    assert page.evaluate("shown[at].id") == "q0"
    assert page.evaluate("data.trajectories.filter(t => t.id === 'q0').length") == 3
    assert question == page.evaluate("data.trajectories[0].question")


def test_the_keyboard_is_enough(report, shown):
    page = shown(report)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    assert page.evaluate("at") == 2
    assert page.get_attribute("#list", "aria-activedescendant") == "row2"
    page.keyboard.press("End")
    assert page.evaluate("at") == 4999
    assert page.inner_text("#detail h3") == page.evaluate("shown[4999].question")
    assert page.locator("#row4999").is_visible()
    page.keyboard.press("b")
    assert page.evaluate("shown[at].id") == page.evaluate("shown[4999].id")


def test_on_a_phone_a_trajectory_lies_over_the_list_and_back_closes_it(report, shown, picture):
    page = shown(report, width=390, height=844)
    assert page.is_hidden("#detail")
    page.locator(".row").nth(1).click()
    page.wait_for_selector("#detail", state="visible")
    assert page.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.querySelector('#detail').scrollWidth <= window.innerWidth")
    picture(page, "report-phone")
    page.go_back()
    page.wait_for_selector("#detail", state="hidden")
    page.locator(".row").nth(1).click()
    page.click("#detail .back")
    page.wait_for_selector("#detail", state="hidden")


def attacked(folder: Path) -> RunFolder:
    """A run in which everybody says the same: an attempt to become part of the page."""
    run, world = RunFolder.start(TrainConfig(name=ATTACK.replace("/", "_"), runs_folder=str(folder))), World()
    made = [world.episode(number, siblings=3) for number in range(8)]
    run.write_trajectories("after", made, turns=scored(made))
    file = run.trajectories / "after.parquet"
    rows = pq.read_table(file).to_pylist()
    for row in rows:
        for key in ("text", "family", "final", "answer", "question_id"):
            row[key] = ATTACK
        row["answers"] = [ATTACK]
        for key in ("gold", "steps", "groups"):
            row[key] = json.dumps(hostile(json.loads(row[key])))
    pq.write_table(pa.Table.from_pylist([*rows, rows[0] | {"error": ATTACK}], schema=TRAJECTORY_SCHEMA), file)
    run.write_summary(
        {"name": ATTACK, "warnings": [{"iteration": 1, "name": ATTACK, "found": 1, "threshold": 1, "cause": ATTACK, "advice": ATTACK}]}
    )
    run.add_metrics({"iteration": 1, f"use_{ATTACK}": 0.5, "use_stop": 0.5})
    return run


def hostile(tree):
    """Every text in it replaced, but for kinds of turns, which decide what is drawn."""
    if isinstance(tree, dict):
        return {key: value if key in ("kind", "picture") else hostile(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [hostile(value) for value in tree]
    return ATTACK if isinstance(tree, str) and tree else tree


def test_what_models_and_passages_say_never_becomes_markup(tmp_path, shown):
    folder = attacked(tmp_path)
    write_report(folder)
    page = shown(folder.report)
    for place in range(page.evaluate("all.length")):
        page.evaluate(f"select({place})")
        page.evaluate("document.querySelectorAll('#detail details').forEach(box => { box.open = true; })")
    page.wait_for_selector("#detail .sibling")
    assert ATTACK in page.inner_text("#detail h3")
    assert ATTACK in page.inner_text("#detail .passages")
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("img[src=x]").count() == 0


def test_no_other_script_than_its_own_could_run_in_the_page(report, browser):
    page = browser.new_page()
    page.goto(report.as_uri())
    page.wait_for_selector("#browser:not([hidden])")
    page.evaluate("() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 1'; document.body.append(s); }")
    page.evaluate("() => { document.body.setAttribute('onclick', 'window.hacked = 1'); document.body.click(); }")
    assert page.evaluate("window.hacked") is None
    page.close()


def test_a_browser_that_cannot_unpack_is_told_where_the_trajectories_are(report, browser):
    page = browser.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(report.as_uri())
    page.wait_for_function("document.querySelector('#unpacking').textContent.includes('trajectories/')")
    assert "DecompressionStream" in page.inner_text("#unpacking")
    assert page.is_visible("h1")
    page.close()


def test_light_and_dark_follow_the_reader(report, shown):
    papers = [shown(report, dark=dark).evaluate("getComputedStyle(document.body).backgroundColor") for dark in (False, True)]
    assert papers == ["rgb(247, 247, 245)", "rgb(20, 22, 26)"]


def test_the_page_of_a_replay_shows_what_was_said_as_text_and_both_rewards(tmp_path, browser):
    question, stop = Question("q", ATTACK, ()), "<think>x</think><sub-question>None</sub-question><ret>None</ret>"
    turns = [
        ReplayedTurn("after", "plan", question, (0, 0), text, 1, paid, {"routing": paid}, TurnReward(1 - paid, {}, {"outcome": 1 - paid}))
        for text, paid in ((ATTACK, 0.25), (stop, 0.75))
    ]
    file = tmp_path / "replay.html"
    file.write_text(replay_page("run", ["r1-router replay run"], [rewards_table(turns), disagreements_table(turns, 5)]))
    page = browser.new_page()
    page.goto(file.as_uri())
    cells = page.locator("table >> nth=1").locator("td").all_inner_texts()
    assert sorted([cells[:5], cells[5:]], key=lambda row: row[2]) == [
        [ATTACK, "plan", "0.250 (routing 0.25)", "0.750 (outcome 0.75)", ATTACK],
        [ATTACK, "plan", "0.750 (routing 0.75)", "0.250 (outcome 0.25)", "stop"],
    ]
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0
    assert {*page.evaluate("[...document.querySelectorAll('th, td')].map(cell => getComputedStyle(cell).textAlign)")} == {"left"}
    page.close()
