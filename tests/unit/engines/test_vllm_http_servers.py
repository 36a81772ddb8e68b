"""Which server a stream gets, and when a lost one is asked again."""

import pytest

from qwen3_asr_server.engines._base import EngineOptions, Limited
from qwen3_asr_server.engines._vllm_http_servers import FAR_MORE, KNOWN_SESSIONS, LONGEST_RETRY_S, Fleet, Server
from qwen3_asr_server.engines.vllm_http import VllmHttpEngine, auto_reason
from qwen3_asr_server.errors import EngineNotReady

URLS = ("http://gpu1:8000", "http://gpu2:8000", "http://gpu3:8000")


@pytest.fixture
def fleet() -> Fleet:
    made = Fleet(URLS)
    for server in made.servers:
        server.well()
    return made


def seat(fleet: Fleet) -> Server:
    server = fleet.choose()
    assert server is not None
    server.take()
    return server


def test_streams_spread_evenly(fleet: Fleet) -> None:
    for _ in range(10):
        seat(fleet)
    assert sorted(server.streams for server in fleet.servers) == [3, 3, 4]


def test_one_stream_after_the_other_goes_round(fleet: Fleet) -> None:
    numbers = []
    for _ in range(6):
        server = seat(fleet)
        numbers.append(server.number)
        server.leave()
    assert numbers == [1, 2, 3, 1, 2, 3]


def test_who_has_the_fewest_streams_gets_the_next(fleet: Fleet) -> None:
    for _ in range(3):
        seat(fleet)
    fleet.servers[1].leave()
    assert fleet.choose() is fleet.servers[1]


def test_nobody_is_sent_to_a_server_that_is_not_up(fleet: Fleet) -> None:
    assert fleet.servers[0].lost("does not answer")
    assert {seat(fleet).number for _ in range(8)} == {2, 3}
    for server in fleet.servers[1:]:
        server.lost("does not answer")
    assert fleet.choose() is None


def test_a_server_that_is_back_takes_what_comes_until_it_has_its_share(fleet: Fleet) -> None:
    first = fleet.servers[0]
    first.lost("does not answer")
    for _ in range(4):
        seat(fleet)
    first.well()
    assert [seat(fleet).number for _ in range(2)] == [1, 1]


def test_a_session_stays_with_its_server(fleet: Fleet) -> None:
    homes = []
    for session in range(6):
        home = fleet.choose(session)
        assert home is not None
        home.take()
        homes.append(home)
    assert set(homes) == set(fleet.servers)
    fleet.servers[0].take()  # has more to do than the others now, but not far more
    assert [fleet.choose(session) for session in range(6)] == homes


@pytest.mark.parametrize("others", [0, 3])
def test_a_session_leaves_a_server_that_has_far_more_to_do(fleet: Fleet, others: int) -> None:
    home = fleet.choose(7)
    assert home is not None
    for server in fleet.servers:
        server.streams = others
    home.streams = 2 * others + FAR_MORE
    assert fleet.choose(7) is home
    home.take()
    new = fleet.choose(7)
    assert new is not home
    home.streams = others
    assert fleet.choose(7) is new


def test_a_session_whose_server_is_lost_finds_another_home(fleet: Fleet) -> None:
    home = fleet.choose(7)
    assert home is not None
    home.lost("does not answer")
    new = fleet.choose(7)
    home.well()
    assert new is not home
    assert fleet.choose(7) is new


def test_only_the_sessions_that_spoke_last_are_remembered(fleet: Fleet) -> None:
    home = fleet.choose(0)
    assert home is not None
    home.take()
    for session in range(1, KNOWN_SESSIONS):
        fleet.choose(session)
    assert fleet.choose(0) is home
    for session in range(KNOWN_SESSIONS):
        fleet.choose(KNOWN_SESSIONS + session)
    assert fleet.choose(0) is not home


def test_no_server_is_up_before_it_was_greeted() -> None:
    assert Fleet(URLS).choose() is None
    assert Fleet(URLS).up == 0


def test_a_loss_that_many_streams_see_counts_once(fleet: Fleet) -> None:
    server = fleet.servers[0]
    assert [server.lost("does not answer") for _ in range(5)] == [True, False, False, False, False]
    assert server.failures == 1


def test_a_lost_server_is_asked_again_ever_more_rarely() -> None:
    server = Server(1, URLS[0])
    waits = []
    for _ in range(40):
        server.failed("does not answer")
        waits.append(server.retry_s)
    assert waits[:5] == [0.5, 1, 2, 4, 8]
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_RETRY_S
    server.well()
    assert server.retry_s == 0
    server.failed("does not answer")
    assert server.retry_s == 0.5


def test_numbers_say_which_one_is_missing(fleet: Fleet) -> None:
    fleet.servers[1].lost("does not answer")
    fleet.servers[0].take()
    assert all(isinstance(value, float) for value in fleet.flat().values()), "levels are gauges"
    assert fleet.flat() == {
        "servers": 3,
        "servers_up": 2,
        "server_1_up": 1,
        "server_1_streams": 1,
        "server_2_up": 0,
        "server_2_streams": 0,
        "server_3_up": 1,
        "server_3_streams": 0,
    }


def test_a_reason_names_no_address(fleet: Fleet) -> None:
    for server in fleet.servers:
        server.failed("does not answer")
    assert fleet.why_none() == "; ".join(f"server {number} does not answer" for number in (1, 2, 3))
    assert Fleet(()).why_none() == "VLLM_URLS names no server"


async def test_without_servers_it_does_not_start() -> None:
    assert auto_reason(EngineOptions()) is None
    with pytest.raises(EngineNotReady, match="VLLM_URLS"):
        await VllmHttpEngine(EngineOptions()).start()


def test_it_takes_no_newcomers_while_no_server_is_up() -> None:
    engine = VllmHttpEngine(EngineOptions(server_urls=URLS))
    assert isinstance(engine, Limited)
    assert not engine.full, "it does not run"
    engine._shared = object()  # type: ignore[assignment]  # it runs
    assert engine.full
    engine.fleet.servers[1].well()
    assert not engine.full
    engine.fleet.servers[1].lost("does not answer")
    assert engine.full


def test_with_servers_it_says_that_it_can_run() -> None:
    assert auto_reason(EngineOptions(server_urls=URLS)) is not None


def test_the_key_is_not_in_what_options_show() -> None:
    assert "s3cret" not in repr(EngineOptions(server_key="s3cret"))
