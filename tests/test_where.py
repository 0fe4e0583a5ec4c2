"""docs/where.md names files that exist, in every room; links between pages lead somewhere; the examples of CONTRIBUTING.md run."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"retrieval_actors", "rollout", "rewards", "learner", "experiments"}
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_files_that_answer_the_25_questions_exist_in_all_rooms():
    named = re.findall(r"^\|.*\| `([^`]+)` \|$", (ROOT / "docs/where.md").read_text(encoding="utf-8"), re.M)
    assert len(named) == len(set(named)) == 25
    assert not [name for name in named if not (ROOT / name).is_file()]
    assert {name.split("/")[0] for name in named} == ROOMS


def test_every_link_within_the_docs_leads_somewhere():
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            found = (page.parent / file).resolve() if file else page
            if "://" not in target and (not found.exists() or (anchor and anchor not in anchors(found))):
                lost.append(f"{page.name}: {target}")
    assert not lost


def test_every_file_that_the_docs_name_exists():
    roots = "|".join((*ROOMS, "tests"))
    named = {(page.name, path) for page in PAGES for path in re.findall(rf"`((?:{roots})/[\w./]+)`", page.read_text(encoding="utf-8"))}
    assert not [name for name in named if not (ROOT / name[1]).exists()]


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The examples as modules that can be imported."""
    for name, code in EXAMPLES:
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_example_of_a_reward_is_a_term_and_that_of_a_method_routes(examples):
    import brief_answer
    import stay

    from rollout.records import Action, Exchange

    turn = SimpleNamespace(answer="the capital Kormu", state=SimpleNamespace(kind="final"))
    assert brief_answer.TERM.judge(turn) == 0.25
    later = SimpleNamespace(history=(Exchange("Where is Runo?", "text", "Kormu"),))
    assert stay.keep_first_kb(later, Action("How many?", "table")).kb == "text"
    assert stay.keep_first_kb(SimpleNamespace(history=()), Action("How many?", "table")).kb == "table"
    assert stay.METHOD.run
