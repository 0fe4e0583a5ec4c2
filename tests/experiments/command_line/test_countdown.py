"""The time left of an evaluation."""

from __future__ import annotations

from experiments.command_line import progress
from experiments.command_line.progress import Countdown


def test_the_time_left_follows_from_the_speed_so_far(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    countdown = Countdown(50)
    now[0] += 60
    assert countdown.after(10) == "0:04:00 left"
    now[0] += 15
    assert countdown.after(30) == "0:00:19 left"
    assert countdown.after(10) == "0:00:00 left"
