"""The commands that build and show a knowledge base, as a user calls them."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from experiments import kb
from retrieval_actors.build.from_passages import write_knowledge_base
from retrieval_actors.knowledge_base import KnowledgeBase
from retrieval_actors.records import Passage


def test_a_file_becomes_a_folder_that_finds_its_passages(ray_cluster, tmp_path, capsys):
    source = tmp_path / "facts.jsonl"
    source.write_text(
        "".join(json.dumps({"title": f"Country {n}", "text": f"Its capital is City{n}."}) + "\n" for n in range(8))
        + '{"text": " "}\n'
        + '{"txt": "[bad]"}\n' * 9
    )
    assert kb.main(["build", str(source), str(tmp_path / "kb"), "description=Capitals.", "shards=3", "limit=16", "on_error=skip"]) == 0
    said = capsys.readouterr().out
    assert "8 in 3 shards" in said
    assert "8 passages, " in said
    assert "1 records without a passage" in said
    assert f"    {source}:9\n" in said
    assert [line.split(": Country")[0] for line in said.split("a sample of its passages:\n")[1].splitlines()[:3]] == [
        "    0",
        "    4",
        "    7",
    ]
    assert "7 broken records, all of them in skipped.jsonl; the first:" in said
    assert said.count("expected 'text', 'contents'") == 5
    card = KnowledgeBase.open(tmp_path / "kb").card
    assert (card.name, card.retriever_name, card.description, card.modality) == ("text", "Text Retriever", "Capitals.", "text")
    assert kb.main(["search", str(tmp_path / "kb"), "What is the capital of Country 5?", "k=2"]) == 0
    assert "Its capital is City5." in capsys.readouterr().out


def test_a_sample_shows_passages_of_different_files_cut_to_two_lines(tmp_path):
    card = {"name": "text", "retriever_name": "Text Retriever", "description": "", "modality": "text", "embedder": "minilm"}

    def sampled(shards, **files):
        made = [Passage(f"{name}.txt#{number}", f"word {number} " * 50, name) for name, count in files.items() for number in range(count)]
        vectors = np.eye(1, 8, dtype=np.float32).repeat(len(made), 0)
        return kb.sample(write_knowledge_base(tmp_path / "kb", passages=made, vectors=vectors, shards=shards, **card))

    assert [passage.title for passage in sampled(2, a=3000, b=1, c=2, d=1, e=5)] == ["a", "c", "e"]
    assert [passage.id for passage in sampled(2, a=5, b=2)] == ["a.txt#0", "a.txt#3", "b.txt#1"]
    assert [passage.id for passage in sampled(1, a=1)] == ["a.txt#0"]
    line = kb.sample_line(sampled(1, a=1)[0])
    assert line.startswith("    a.txt#0: a. word 0 word 0")
    assert 140 < len(line) <= 168
    assert line.endswith(" ...")


@pytest.mark.slow
def test_a_source_with_pictures_becomes_a_text_image_knowledge_base(ray_cluster, tmp_path, capsys):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    (tmp_path / "red.png").write_bytes(picture.getvalue())
    (tmp_path / "flags.jsonl").write_text('{"text": "A red flag.", "image": "red.png"}\n')
    assert kb.main(["build", str(tmp_path / "flags.jsonl"), str(tmp_path / "kb"), "name=flags"]) == 0
    base = KnowledgeBase.open(tmp_path / "kb")
    assert (base.card.name, base.card.modality, base.card.embedder) == ("flags", "text_image", "colour-layout+minilm")
    assert next(base.passages()).image == picture.getvalue()
    assert kb.main(["status", str(tmp_path / "kb")]) == 0
    assert "Text Image Retriever" in capsys.readouterr().out


def test_a_picture_that_cannot_be_used_is_one_line(ray_cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (900, 3)).save("thin.png")
    Image.new("RGB", (9, 9)).save("anim.gif")
    (tmp_path / "captions.jsonl").write_text('{"file": "thin.png", "caption": "thin"}\n')
    (tmp_path / "kb").mkdir()  # no knowledge base: to open it would fail with other words
    for arguments, finding in [
        (["search", "kb", "What is this?", "image=anim.gif"], "image 'anim.gif' does not decode (it begins with b'GIF8"),
        (["search", "kb", "What is this?", "image=none.png"], "image 'none.png' does not exist in ."),
        (["search", "kb", "What is a=b?", "imag=none.png"], "unknown key imag; did you mean image?"),
    ]:
        assert kb.main(arguments) == 2
        assert capsys.readouterr().out.startswith(f"error: {finding}")
    assert kb.main(["build", "captions.jsonl", "out"]) == 2
    assert (
        capsys.readouterr().out
        == f"error: {tmp_path}/captions.jsonl:1: image 'thin.png' is 900 x 3 pixels: too thin, expected sides of at most 200 to 1\n"
    )


@pytest.mark.slow
def test_a_folder_with_an_equals_sign_becomes_a_knowledge_base_with_a_name_of_digits(ray_cluster, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "year=2024").mkdir()
    (tmp_path / "year=2024/passages.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert kb.main(["build", "year=2024/passages.jsonl", "year=2024/kb", "name=0042", "description=Years: 2024, and more"]) == 0
    card = KnowledgeBase.open("year=2024/kb").card
    assert (card.name, card.description) == ("0042", "Years: 2024, and more")
    assert kb.main(["status", "year=2024/kb"]) == 0
    capsys.readouterr()
    assert kb.main(["build", "year=2024/passages.jsonl", "limt=3"]) == 2
    assert "build SOURCE OUT [key=value ...]" in capsys.readouterr().out


def test_wrong_input_is_one_line_that_names_it(ray_cluster, tmp_path, capsys):
    source = tmp_path / "facts.jsonl"
    source.write_text('{"text": "good"}\nnot json\n')
    for arguments, finding in [
        (
            [str(source), str(tmp_path / "kb")],
            "facts.jsonl:2: not JSON (Expecting value at column 1, found 'not json'); expected one object on",
        ),
        ([str(source), str(tmp_path / "kb"), "shard=3"], "unknown key shard; did you mean shards?"),
        ([str(source), str(tmp_path / "kb"), "title_form=a"], "unknown key title_form; did you mean title_from?"),
        ([str(source), str(tmp_path / "kb"), "on_error=stop"], "on_error is 'stop'; expected 'fail' or 'skip'"),
        ([str(source), str(tmp_path / "kb"), "source=sql"], "source=sql: use auto, MODULE:CLASS, or one of"),
        ([str(source), str(tmp_path / "kb"), "shards=two"], "shards is 'two'; expected a valid integer"),
        ([str(source), str(tmp_path / "kb"), "limit=1", "embedder=bert"], "unknown embedder 'bert'"),
        ([str(tmp_path / "none.jsonl"), str(tmp_path / "kb")], "none.jsonl: no such file"),
        (["name=x"], "build SOURCE OUT [key=value ...]"),
    ]:
        assert kb.main(["build", *arguments]) == 2
        said = capsys.readouterr().out
        assert finding in said
        assert said.count("\n") == 1
    assert kb.main(["status", str(tmp_path / "kb")]) == 2
    assert "kb is no folder" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["facts.jsonl"]
