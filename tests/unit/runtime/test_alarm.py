import asyncio

import pytest

from qwen3_asr_server.runtime.alarm import Alarm
from support.clock import clock, virtual_time


@pytest.mark.parametrize(
    ("times", "rings"),
    [
        ([5], [5]),
        ([5, 9], [5]),  # the later one is asked for again by whoever is rung
        ([9, 5], [5]),
        ([5, None], [5]),
        ([None], []),
        ([-3], [0]),
    ],
)
def test_rings(times, rings):
    @virtual_time
    async def run():
        began, heard = clock(), []
        alarm = Alarm(clock, lambda: heard.append(clock() - began))
        for time in times:
            alarm.set(None if time is None else began + time)
        await asyncio.sleep(20)
        assert heard == pytest.approx(rings)

    run()


@virtual_time
async def test_cancelled_it_is_silent_and_can_be_set_again():
    heard = []
    alarm = Alarm(clock, lambda: heard.append(clock()))
    alarm.set(clock() + 1)
    alarm.cancel()
    await asyncio.sleep(5)
    assert not heard
    alarm.set(clock() + 1)
    await asyncio.sleep(5)
    assert len(heard) == 1
