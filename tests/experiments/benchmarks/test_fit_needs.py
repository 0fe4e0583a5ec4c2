"""The shipped calibration of needs: what it recognises, and that the command makes it."""

from __future__ import annotations

import json

import pytest

from experiments.benchmarks.rewards import rewards_rows
from experiments.fit_needs import main
from rollout.fit_needs import fitted, paraphrases, recognised
from rollout.need_matcher import SHIPPED, need_matcher, read_calibration


def test_needs_are_recognised_in_natural_language_on_relations_that_were_not_fitted():
    rows = {row.name: row for row in rewards_rows(quick=True)}
    assert [row.name for row in rows.values() if row.bar is not None and not row.holds] == []
    assert rows["paraphrases recognised, unfitted relations"].value >= 0.9
    assert rows["hard negatives recognised (at most)"].value <= 0.02


def test_nearly_every_way_to_ask_that_is_listed_is_recognised():
    for section in ("fit", "measured"):
        right, wrong = recognised(need_matcher(), section)
        assert right >= 0.99
        assert wrong <= 0.01


def test_the_paraphrases_are_many_and_the_fit_and_the_measure_share_no_relation():
    fit, measured = ({name for relations in paraphrases(part).values() for name in relations} for part in ("fit", "measured"))
    assert len(fit) >= 12
    assert len(measured) >= 12
    assert not fit & measured
    every = [query for relations in paraphrases().values() for queries in relations.values() for query in queries[1:]]
    assert len(every) >= 300
    assert all("X" not in query.split() for query in every)


def test_the_command_makes_the_calibration_that_comes_along():
    made, shipped = fitted("minilm"), read_calibration()
    assert (made.alpha, made.beta, made.delta, made.gamma) == pytest.approx(
        (shipped.alpha, shipped.beta, shipped.delta, shipped.gamma), abs=0.02
    )
    assert {first: list(others) for first, others in shipped.relations.items()} == made.relations


@pytest.mark.parametrize(
    "damage",
    [lambda found: found.pop("alpha"), lambda found: found.update(beta=float("nan")), lambda found: found.update(relations=[])],
)
def test_a_calibration_that_cannot_be_used_names_its_file_and_how_to_make_one(tmp_path, damage):
    found = json.loads(SHIPPED.read_text())
    damage(found)
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(found))
    for path in (file, tmp_path / "missing.json"):
        with pytest.raises(match=rf"reward.need_calibration={path}.*fit-needs"):
            read_calibration(path)


def test_an_unknown_embedder_is_refused_in_one_line(capsys, tmp_path):
    assert main(["embedder=minlm", f"output={tmp_path}/x.json"]) == 2
    assert "unknown embedder 'minlm'" in capsys.readouterr().out
    assert not (tmp_path / "x.json").exists()
