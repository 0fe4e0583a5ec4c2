"""Room for questions: how many are let in, and what happens at the end."""

from __future__ import annotations

import asyncio

import pytest

from experiments.serving.endpoint import Endpoint
from experiments.serving.schemas import Refusal
from experiments.serving.settings import ServeSettings


def endpoint(**settings) -> Endpoint:
    made = Endpoint(None, None, ServeSettings(**settings), "", [])
    made.status = "ready"
    return made


def test_there_is_room_for_the_slots_of_all_replicas_and_the_queue():
    room = endpoint(slots=2, max_replicas=2, queue=1)
    held = [room.slot() for _ in range(5)]
    for slot in held:
        slot.__enter__()
    with pytest.raises(Refusal) as refusal, room.slot():
        pass
    assert (refusal.value.status, refusal.value.retry_after_s) == (429, 1)
    held[0].__exit__(None, None, None)
    with room.slot():
        assert room.under_way == 5


def test_nothing_is_let_in_before_everything_has_loaded():
    loading = endpoint()
    loading.status, loading.progress = "loading", "policy: loading"
    with pytest.raises(Refusal, match="policy: loading") as refusal, loading.slot():
        pass
    assert refusal.value.status == 503


def test_at_the_end_nothing_new_is_let_in_and_what_is_under_way_is_waited_for():
    async def ended() -> None:
        last = endpoint(drain_s=20)
        with last.slot():
            draining = asyncio.create_task(last.drain())
            await asyncio.sleep(0.15)
            assert not draining.done()
            with pytest.raises(Refusal) as refusal, last.slot():
                pass
            assert (refusal.value.status, refusal.value.code) == (503, "draining")
        await asyncio.wait_for(draining, 2)

    asyncio.run(ended())


def test_what_does_not_end_is_waited_for_no_longer_than_said():
    async def ended() -> None:
        last = endpoint(drain_s=0.2)
        with last.slot():
            await asyncio.wait_for(last.drain(), 2)

    asyncio.run(ended())
