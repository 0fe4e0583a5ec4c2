"""The examples of docs/10_serving.md, run as they stand there, against the service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/10_serving.md"
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_runs_and_prints_an_answer(service, number):
    language, code = BLOCKS[number]
    code = code.replace("http://localhost:8000", service.url).replace("localhost:8000", service.url)
    command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert '"error":{' not in done.stdout


def test_the_picture_of_the_page_is_there_and_small():
    picture = PAGE.parent / "images/page.png"
    assert 5_000 < picture.stat().st_size < 150_000
    assert len(BLOCKS) >= 4
