"""How loops wait: a ring ends a pause, also one that has not begun; a drain ends all."""

import asyncio
import time

from reconsup.worker.pause import Pauses


def waited(seconds: float = 5.0, *, ring: bool = False, stop: bool = False, whole: bool = False) -> float:
    """How long a pause of `seconds` takes if there was a ring, or the drain, before it begins."""

    async def run() -> float:
        pauses = Pauses()
        pause = pauses.pause()
        if ring:
            pauses.ring()
        if stop:
            pauses.stop()
        started = time.monotonic()
        await (pause.whole(seconds) if whole else pause.for_seconds(seconds))
        return time.monotonic() - started

    return asyncio.run(run())


def test_a_pause_is_as_long_as_it_says() -> None:
    assert waited(0.02) >= 0.02
    assert waited(0.02, whole=True) >= 0.02


def test_a_ring_that_came_before_ends_the_next_pause_and_no_other() -> None:
    async def run() -> None:
        pauses = Pauses()
        pause = pauses.pause()
        pauses.ring()
        await pause.for_seconds(60)
        started = time.monotonic()
        await pause.for_seconds(0.02)
        assert time.monotonic() - started >= 0.02

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_ring_does_not_end_a_whole_pause_and_is_kept_for_the_next_one() -> None:
    async def run() -> None:
        pauses = Pauses()
        pause = pauses.pause()
        pauses.ring()
        started = time.monotonic()
        await pause.whole(0.02)
        assert time.monotonic() - started >= 0.02
        await pause.for_seconds(60)

    asyncio.run(asyncio.wait_for(run(), 5))


def test_a_drain_ends_every_pause() -> None:
    assert waited(60, stop=True) < 5
    assert waited(60, stop=True, whole=True) < 5


def test_a_ring_wakes_every_loop_of_the_process() -> None:
    async def run() -> None:
        pauses = Pauses()
        waiting = [asyncio.create_task(pauses.pause().for_seconds(60)) for _ in range(3)]
        await asyncio.sleep(0)
        pauses.ring()
        await asyncio.gather(*waiting)

    asyncio.run(asyncio.wait_for(run(), 5))
