"""Text settings are text, whatever YAML would make of it; a path with an equals sign is a path."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments.config import load_config, resolved_yaml
from experiments.config.reading import RunConfigError, is_setting, read_settings
from experiments.evaluate import read_arguments
from experiments.serving.settings import ServeSettings

TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))
"""All that a command line can hold."""
TAKEN_FOR_SOMETHING_ELSE = [
    "", " ", " a ", "0042", "0123456", "1e3", "0x10", "0b1", "12:30:00", "1_000", ".inf", "2024-13-45", "=", "a=b", "yes", "no", "on", "true",
    "null", "~", "None", "???", "a: b", "a:", "#5", "a #5", "- a", "* a", "&a", "!a", "%a", "@a", "`a`", "|", ">", "{x}", "[a]", "{", "]", "'",
    '"', "''", '"a"', "${oc.env:HOME}", "${", "\\${x}", "<<", "Zürich", "日本", "\n", "a\n\tb", "\u2028", "\x85", "🚩", "x " * 300,
]  # fmt: skip
"""By YAML, or by the interpolation of a configuration library."""


@dataclass
class Texts:
    name: str = ""
    description: str = ""
    perhaps: str | None = ""


def with_examples(test):
    for text in TAKEN_FOR_SOMETHING_ELSE:
        test = example(text)(test)
    return test


@settings(deadline=None)
@with_examples
@given(TEXTS)
def test_a_text_on_the_command_line_is_what_was_written(text: str):
    found = read_settings(Texts, [f"name={text}", f"description={text}"])
    assert (found.name, found.description) == (text, text)
    assert read_settings(ServeSettings, [f"api_key={text}"]).api_key == text
    assert read_settings(Texts, [f"perhaps={text}"]).perhaps == (None if text == "null" else text)


@settings(max_examples=8, deadline=None)
@with_examples
@given(TEXTS)
def test_a_text_of_a_run_is_what_was_written_and_stays_so_in_its_folder(tmp_path_factory, text: str):
    config = load_config([f"tracking.parent={text}", f"data.path={text}", f"learner.environment.NAME={text}"])
    assert (config.tracking.parent, config.data.path, config.learner.environment) == (text, text, {"NAME": text})
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(resolved_yaml(config), encoding="utf-8")
    assert load_config([str(file)]) == config


def test_a_text_in_a_file_is_what_is_written_there(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: 0042\ntracking: {parent: 1e3, experiment: yes, model: 'null'}\nretrieval: {folders: {no: 12:30:00, 2024: 2024-13-45}}\n"
        "data:\n  path: ${HOME}/0x10\nevaluation:\n  methods: [007, on, 'a: b']\nlearner:\n  environment:\n    A: 010\n    B: true\n",
        encoding="utf-8-sig",
    )
    config = load_config([str(file)])
    assert (config.name, config.tracking.parent, config.tracking.experiment, config.tracking.model) == ("0042", "1e3", "yes", "null")
    assert config.retrieval.folders == {"no": "12:30:00", "2024": "2024-13-45"}
    assert (config.data.path, config.evaluation.methods) == ("${HOME}/0x10", ["007", "on", "a: b"])
    assert config.learner.environment == {"A": "010", "B": "true"}


@dataclass
class Everything:
    whole: int = 0
    number: float = 0.0
    either: bool = False
    maybe: float | None = 1.0
    texts: list[str] = field(default_factory=list)
    wholes: list[int] = field(default_factory=list)
    by_name: dict[str, float] = field(default_factory=lambda: {"a": 1.0, "b": 2.0})
    pair: tuple[float, float] = (0.0, 1.0)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("whole=0042", 42),
        ("whole=-3", -3),
        ("number=1e-3", 0.001),
        ("number=010", 10.0),
        ("either=true", True),
        ("either=no", False),
        ("maybe=null", None),
        ("maybe=.5", 0.5),
        ("texts=[a, 0042, Zürich 🚩, 'b, c', null_, \"null\"]", ["a", "0042", "Zürich 🚩", "b, c", "null_", "null"]),
        ("wholes=[1, 007]", [1, 7]),
        ("by_name={b: 1e1}", {"a": 1.0, "b": 10.0}),
        ("pair=[.9, 0.98]", (0.9, 0.98)),
    ],
)
def test_other_values_are_read_as_their_type_says(said: str, meant: object):
    assert getattr(read_settings(Everything, [said]), said.partition("=")[0]) == meant


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        ("whole=many", "whole is 'many'; expected a valid integer"),
        ("whole=1:30", "whole is '1:30'; expected a valid integer"),
        ("whole=0x10", "whole is '0x10'; expected a valid integer"),
        ("whole=1.5", "whole is '1.5'; expected a valid integer"),
        ("whole=", "whole is ''; expected a valid integer"),
        ("whole=null", "whole is 'null'; expected a valid integer"),
        ("number=a: b", "number is 'a: b'; expected a valid number"),
        ("number=12:30:00", "number is '12:30:00'; expected a valid number"),
        ("either=7", "either is '7'; expected a valid boolean"),
        ("maybe=none", "maybe is 'none'; expected a valid number"),
        ("texts=a", "texts is 'a'; expected a valid list"),
        ("texts=", "texts is null; expected a valid list"),
        ("texts=[a, null]", "texts.1 is null; expected a valid string"),
        ("texts=[{a: b}]", "texts.0 is {'a': 'b'}; expected a valid string"),
        ("wholes=[1, b]", "wholes.1 is 'b'; expected a valid integer"),
        ("by_name={b: c}", "by_name.b is 'c'; expected a valid number"),
        ("by_name=[1]", "by_name is ['1']; expected a valid dictionary"),
        ("pair=[1, 2, 3]", "pair is ['1', '2', '3']; expected Tuple should have at most 2 items"),
        ("texts=[a", "texts=[a: not YAML: "),
        ("whol=1", "unknown key whol; did you mean whole?"),
        ("whole", "'whole': expected key=value, with a key of whole, number, "),
    ],
)
def test_a_value_of_another_type_is_one_line_with_key_value_and_what_was_expected(said: str, refused: str):
    with pytest.raises(RunConfigError) as error:
        read_settings(Everything, [said])
    assert str(error.value).startswith(refused)
    assert "\n" not in str(error.value)


def test_a_null_in_a_file_is_no_text(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    for written in ("data: {path: null}", "data:\n  path:\n"):
        file.write_text(written)
        with pytest.raises(RunConfigError, match=r"mine\.yaml: data\.path is null; expected a valid string$"):
            load_config([str(file)])


def test_what_a_section_refuses_may_be_put_right_by_a_later_layer(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("reward: {query_weight: 0.5}\n")
    with pytest.raises(RunConfigError, match=r"has to be 1$"):
        load_config([str(file)])
    assert load_config([str(file), "reward.entity_weight=0"]).reward.query_weight == 0.5


def test_an_anchor_joins_what_it_names(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("retrieval:\n  folders: &all {text: 01}\ndata: {name: 02}\nlearner:\n  environment: {<<: *all, text: 03, B: 04}\n")
    assert load_config([str(file)]).learner.environment == {"text": "03", "B": "04"}


def test_empty_braces_forget_what_files_and_defaults_say(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text("retrieval: {folders: {text: a, table: b}}\n")
    assert load_config([str(file), "retrieval.folders.text=c"]).retrieval.folders == {"text": "c", "table": "b"}
    assert load_config([str(file), "retrieval.folders.text=c", "retrieval.folders={}"]).retrieval.folders == {"text": "c"}


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "year=2024/run").mkdir(parents=True)
    (tmp_path / "year=2024/run/config.yaml").write_text("name: mine\n")
    (tmp_path / "year=2024/run/policy").mkdir()
    (tmp_path / "year=2024/run/policy/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for path in ("year=2024", "year=2024/run", "year=2024/new", "./name=x", "a/b=c", "../name=x", f"{tmp_path}/year=2024", "/a=b"):
        assert not is_setting(path), path
    for setting in ("name=a/b", "data.path=/a=b", "itertions=3", "train.itertions=3", "pth=nowhere/a.jsonl", "name=", "--iterations=3"):
        assert is_setting(setting), setting
    assert load_config(["year=2024/run/config.yaml", "train.seed=3"]).name == "mine"
    config, policy = read_arguments(["year=2024/run", "train.seed=3"])
    assert (config.name, config.train.seed, policy) == ("mine", 3, "year=2024/run/policy")


def test_text_that_is_not_utf8_is_refused_in_one_line_that_says_what_to_do():
    for read in (lambda argument: load_config([argument]), lambda argument: read_settings(Texts, [argument])):
        with pytest.raises(RunConfigError, match=r"^name=caf.: not UTF-8; .* rename the file"):
            read("name=caf\udce9")


@pytest.mark.parametrize("content", ["name: a\nname: b\n", "train: {iterations: 2}\ntrain:\n  seed: 1\n", "train: {seed: 1, seed: 2}\n"])
def test_a_key_that_stands_twice_in_a_file_is_refused_with_its_line(tmp_path: Path, content: str):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(RunConfigError, match=r"mine\.yaml: .*is given twice; give it once.* line \d"):
        load_config([str(tmp_path / "mine.yaml")])


@pytest.mark.parametrize(
    ("base", "said"),
    [("mine.yaml", "builds on itself"), ("other.yaml", "builds on itself"), ("[a]", r"base is \['a'\]"), ("{a: b}", "base is")],
)
def test_a_base_that_is_the_file_itself_or_no_name_is_refused(tmp_path: Path, base: str, said: str):
    (tmp_path / "mine.yaml").write_text(f"base: {base}\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\n")
    with pytest.raises(RunConfigError, match=said):
        load_config([str(tmp_path / "mine.yaml")])
