import asyncio
import itertools
from contextlib import ExitStack, asynccontextmanager, nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_asr_server.errors import EngineCrashed, EngineNotReady, ShuttingDown
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.admission import Refused
from qwen3_asr_server.runtime.pool import Pool, PoolOptions
from support.clock import clock, settle, virtual_time
from support.lives import Company, MortalEngine, User

LOAD_S, STOP_S = 40.0, 5.0


class Stage:
    """A pool of two models, `a` the default, and what its user is told."""

    def __init__(self, **options):
        self.engines = {
            name: MortalEngine(name=name, start_s=LOAD_S, stop_s=STOP_S, on_start=self._alone, on_stop=self._not_in_use)
            for name in ("a", "b")
        }
        self.a, self.b = self.engines.values()
        self.user, self.metrics = User(), Metrics()
        self.died = False
        self.company = Company(self.engines.values())
        self.pool = Pool(self.engines, PoolOptions(**options), self.metrics, clock, self._died, self.company)
        self.leases = {"a": 0, "b": 0}
        self.stopping = False

    def lease(self, model="a"):
        """Return a context that holds a lease, counted."""
        stack = ExitStack()
        stack.enter_context(self.pool.lease(model))
        self._count(model, 1)
        stack.callback(self._count, model, -1)
        return stack

    def phase(self):
        return self.pool.status().phase

    def value(self, name):
        return self.metrics.registry.get_sample_value(name)

    def _count(self, model, more):
        self.leases[model] += more

    def _died(self):
        self.died = True

    def _alone(self, engine):
        assert not any(other.up for other in self.engines.values()), "two engines at once"
        assert self.company.up

    def _not_in_use(self, engine):
        in_use = engine.running and not engine.dead and self.leases[engine.name]
        assert self.stopping or not in_use, "a session lost its model"
        assert self.user.engine is None, "it is stopped before its user knows"


@asynccontextmanager
async def staged(**options):
    """Run a pool; afterwards nothing is started and no task is left."""
    stage = Stage(**options)
    stage.pool.start(stage.user)
    try:
        yield stage
    finally:
        stage.stopping = True
        await stage.pool.stop()
    assert not any(one.up for one in (*stage.engines.values(), stage.company))
    assert not stage.died
    assert asyncio.all_tasks() == {asyncio.current_task()}


# Loading


@virtual_time
async def test_the_default_is_loaded_once():
    async with staged() as stage:
        await asyncio.gather(stage.pool.load(), stage.pool.load())
        assert stage.user.engine is stage.a
        assert stage.a.starts == 1
        assert stage.phase() == "ready"
        assert stage.value("asr_engine_up") == 1
        assert stage.value("asr_engine_load_seconds_sum") == pytest.approx(LOAD_S)


@virtual_time
async def test_nothing_is_loaded_before_the_first_lease_and_once_for_all_of_them():
    async with staged() as stage:
        await asyncio.sleep(1000)
        assert stage.a.starts == 0
        with stage.lease(), stage.lease():
            await asyncio.sleep(LOAD_S / 2)
            assert stage.phase() == "loading"
            assert stage.user.engine is None
            status = stage.pool.status()
            assert (status.model, status.attempt, status.leases) == ("a", 1, 2)
            assert status.since_s == pytest.approx(LOAD_S / 2)
            with stage.lease():
                await asyncio.sleep(LOAD_S)
            assert stage.user.engine is stage.a
            assert stage.a.starts == 1


@pytest.mark.parametrize(
    ("failure", "told"),
    [(EngineNotReady("no weights"), "no weights"), (ValueError("secret"), "The engine could not be loaded.")],
)
@virtual_time
async def test_a_first_load_that_fails_is_tried_again_by_the_next(failure, told):
    async with staged() as stage:
        stage.a.start_failures.append(failure)
        with pytest.raises(EngineNotReady, match=told):
            await stage.pool.load()
        assert stage.phase() == "failed"
        assert stage.pool.status().last_error == told
        assert stage.user.failure.message == told
        assert not stage.a.up
        await asyncio.sleep(1000)
        assert stage.a.starts == 1, "nobody asked for it"
        with stage.lease():
            await asyncio.sleep(1)
            assert stage.user.failure is None, "what comes now waits for this attempt"
            await asyncio.sleep(LOAD_S)
            assert stage.user.engine is stage.a
            assert stage.pool.status().last_error is None


@virtual_time
async def test_an_engine_is_not_loaded_without_its_companion():
    async with staged() as stage:
        stage.company.start_failures.append(EngineNotReady("no aligner"))
        with pytest.raises(EngineNotReady, match="no aligner"):
            await stage.pool.load()
        assert stage.a.starts == 0
        with stage.lease():
            await asyncio.sleep(LOAD_S + 1)
            assert (stage.a.starts, stage.company.starts) == (1, 2)


@virtual_time
async def test_a_companion_goes_with_what_is_unloaded_and_stays_when_it_dies():
    async with staged() as stage:
        await stage.pool.load()
        assert await stage.pool.release()
        assert not stage.company.up
        with stage.lease("b"):
            await asyncio.sleep(LOAD_S + 1)
            assert stage.company.starts == 2
            stage.b.dead = True
            await asyncio.sleep(2 * LOAD_S)
            assert (stage.b.starts, stage.company.starts) == (2, 2)


# Death and restart


@pytest.mark.parametrize("noticed_by", ["a step", "the watch"])
@virtual_time
async def test_a_dead_engine_is_started_again(noticed_by):
    async with staged() as stage:
        await stage.pool.load()
        with stage.lease():
            stage.a.dead = True
            if noticed_by == "a step":
                stage.pool.look()
                assert stage.user.engine is None, "at once"
            else:
                await asyncio.sleep(1.01)
            assert [type(error) for error in stage.user.lost] == [EngineCrashed]
            assert (stage.phase(), stage.pool.status().attempt) == ("restarting", 1)
            stage.pool.look()
            assert len(stage.user.lost) == 1
            assert stage.value("asr_engine_up") == 0
            await asyncio.sleep(STOP_S + LOAD_S + 1)
            assert stage.user.engine is stage.a
            assert stage.phase() == "ready"
            assert stage.a.starts == 2
            assert stage.value("asr_engine_deaths_total") == 1


@virtual_time
async def test_a_step_that_crashed_in_a_living_engine_restarts_nothing():
    async with staged() as stage:
        await stage.pool.load()
        stage.pool.look()
        await asyncio.sleep(100)
        assert stage.user.engine is stage.a
        assert stage.a.starts == 1


@virtual_time
async def test_restarts_that_fail_wait_longer_each_time_and_never_give_up():
    async with staged() as stage:
        await stage.pool.load()
        began = []
        stage.a.on_start = lambda engine: began.append(clock())
        stage.a.start_s = stage.a.stop_s = 0.0
        stage.a.start_failures.extend(EngineNotReady("no memory") for _ in range(9))
        stage.a.dead = True
        stage.pool.look()
        await asyncio.sleep(4)
        status = stage.pool.status()
        assert (status.phase, status.attempt, status.last_error) == ("restarting", 4, "no memory")
        assert stage.user.failure is None, "what comes waits"
        await asyncio.sleep(400)
        gaps = [later - earlier for earlier, later in itertools.pairwise(began)]
        assert gaps == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60], abs=0.01)
        assert stage.user.engine is stage.a
        assert stage.pool.status().last_error is None


@virtual_time
async def test_an_engine_that_dies_again_and_again_is_started_ever_more_rarely():
    async with staged() as stage:
        stage.a.start_s = stage.a.stop_s = 0.0
        await stage.pool.load()
        for _ in range(600):
            stage.a.dead = stage.a.running
            await asyncio.sleep(1)
        assert 10 <= stage.a.starts <= 18


@virtual_time
async def test_a_restart_ends_when_the_operator_releases_the_model():
    async with staged() as stage:
        await stage.pool.load()
        stage.a.start_failures.extend(EngineNotReady("no memory") for _ in range(100))
        stage.a.dead = True
        await asyncio.sleep(500)
        assert stage.phase() == "restarting"
        assert await stage.pool.release()
        await settle()
        assert stage.phase() == "unloaded"
        starts = stage.a.starts
        await asyncio.sleep(500)
        assert stage.a.starts == starts


@virtual_time
async def test_a_death_in_mid_stop_is_no_death():
    async with staged() as stage:
        await stage.pool.load()
        release = asyncio.create_task(stage.pool.release())
        await asyncio.sleep(STOP_S / 2)
        stage.a.dead = True
        await release
        assert stage.phase() == "unloaded"
        assert stage.value("asr_engine_deaths_total") == 0


# Unloading


@virtual_time
async def test_an_idle_engine_is_unloaded_and_loaded_again():
    async with staged(idle_unload_s=600) as stage:
        with stage.lease():
            await asyncio.sleep(5000)
            assert stage.user.engine is stage.a, "a session holds it, however silent"
        await asyncio.sleep(300)
        with stage.lease():
            pass
        await asyncio.sleep(598)
        assert stage.user.engine is stage.a
        await asyncio.sleep(3 + STOP_S)
        assert stage.user.engine is None
        assert stage.phase() == "unloaded"
        assert not stage.a.up
        with stage.lease():
            await asyncio.sleep(LOAD_S + 1)
            assert stage.user.engine is stage.a


@virtual_time
async def test_the_time_of_loading_is_not_idle():
    async with staged(idle_unload_s=10) as stage:
        with stage.lease():
            pass
        await asyncio.sleep(LOAD_S + 8)
        assert stage.user.engine is stage.a
        await asyncio.sleep(4)
        assert stage.user.engine is None


@virtual_time
async def test_it_stays_where_idleness_is_no_reason():
    async with staged(idle_unload_s=0) as stage:
        await stage.pool.load()
        await asyncio.sleep(5000)
        assert stage.user.engine is stage.a


@virtual_time
async def test_the_operator_releases_what_nobody_uses():
    async with staged() as stage:
        assert not await stage.pool.release()
        await stage.pool.load()
        with stage.lease():
            with pytest.raises(Refused, match="in use"):
                await stage.pool.release()
            assert stage.user.engine is stage.a
        assert await stage.pool.release()
        assert not stage.a.up
        await asyncio.sleep(1000)
        assert stage.a.starts == 1
        with stage.lease():
            await asyncio.sleep(LOAD_S + 1)
            assert stage.user.engine is stage.a


@virtual_time
async def test_who_comes_while_it_is_unloaded_gets_it_back():
    async with staged() as stage:
        await stage.pool.load()
        release = asyncio.create_task(stage.pool.release())
        await asyncio.sleep(STOP_S / 2)
        assert stage.phase() == "unloading"
        with stage.lease():
            assert await release
            await asyncio.sleep(STOP_S + LOAD_S + 1)
            assert stage.user.engine is stage.a


@virtual_time
@pytest.mark.parametrize("after_s", [LOAD_S / 2, LOAD_S + 1], ids=["loading", "ready"])
async def test_a_release_says_so_if_somebody_comes_just_before(after_s):
    async with staged() as stage:
        with stage.lease():
            await asyncio.sleep(after_s)
        release = asyncio.create_task(stage.pool.release())
        await asyncio.sleep(0)
        with stage.lease():
            assert not await release
            await asyncio.sleep(LOAD_S + 1)
            assert stage.user.engine is stage.a
            assert stage.a.starts == 1


@virtual_time
async def test_who_comes_while_a_load_is_given_up_gets_another_load():
    async with staged() as stage:
        with stage.lease():
            await asyncio.sleep(LOAD_S / 2)
        release = asyncio.create_task(stage.pool.release())
        await asyncio.sleep(STOP_S / 2)
        assert stage.phase() == "unloading"
        with stage.lease():
            assert await release
            await asyncio.sleep(STOP_S + LOAD_S + 1)
            assert stage.user.engine is stage.a
            assert stage.a.starts == 2


@virtual_time
async def test_a_release_gives_up_a_load():
    async with staged() as stage:
        with stage.lease():
            await asyncio.sleep(LOAD_S / 2)
        assert await stage.pool.release()
        assert not stage.a.up
        assert stage.user.engine is None
        assert stage.phase() == "unloaded"


# Switching


@virtual_time
async def test_a_switch_releases_the_old_model_first():
    async with staged() as stage:
        await stage.pool.load()
        await stage.pool.leases.room_for("b")
        with stage.lease("b"):
            await asyncio.sleep(STOP_S + LOAD_S + 1)
            assert stage.user.engine is stage.b
            with pytest.raises(Refused):
                stage.lease("a")
        with stage.lease("a"):
            await asyncio.sleep(STOP_S + LOAD_S + 1)
            assert stage.user.engine is stage.a


@pytest.mark.parametrize(("held_s", "served"), [(0, True), (29, True), (31, False)])
@virtual_time
async def test_a_switch_waits_for_leases_but_not_for_ever(held_s, served):
    async with staged() as stage:
        await stage.pool.load()
        held = stage.lease()
        asyncio.get_running_loop().call_later(held_s, held.close)
        began = clock()
        with nullcontext() if served else pytest.raises(Refused):
            await stage.pool.leases.room_for("b")
        assert clock() - began == pytest.approx(min(held_s, 30))
        assert stage.user.engine is stage.a
        await asyncio.sleep(5)


@virtual_time
async def test_those_who_wait_for_different_models_get_them_in_turn():
    async with staged() as stage:
        await stage.pool.load()
        order = []

        async def session(model):
            await stage.pool.leases.room_for(model)
            with stage.lease(model):
                order.append(model)
                await asyncio.sleep(1)

        async with asyncio.TaskGroup() as group:
            for model in "abba":
                group.create_task(session(model))
        assert order == ["a", "a", "b", "b"]


@virtual_time
async def test_only_so_many_wait_for_a_switch():
    async with staged() as stage:
        with stage.lease("a"):
            waiting = [asyncio.create_task(stage.pool.leases.room_for("b")) for _ in range(65)]
            await settle()
            assert [task.done() for task in waiting] == [False] * 64 + [True]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [type(None)] * 64 + [Refused]


@virtual_time
async def test_a_switch_in_mid_load_gives_the_load_up():
    async with staged() as stage:
        with stage.lease("a"):
            await asyncio.sleep(LOAD_S / 2)
        with stage.lease("b"):
            await asyncio.sleep(STOP_S + LOAD_S + 1)
            assert stage.user.engine is stage.b


@virtual_time
async def test_an_engine_that_calls_its_end_a_failure_changes_no_wish():
    class Talkative(MortalEngine):
        async def start(self):
            try:
                await super().start()
            except asyncio.CancelledError:
                raise EngineNotReady("it was cancelled") from None

    async with staged() as stage:
        stage.pool._engines["a"] = Talkative(start_s=LOAD_S)
        with stage.lease("a"):
            await asyncio.sleep(LOAD_S / 2)
        with stage.lease("b"):
            await asyncio.sleep(STOP_S + LOAD_S + 1)
            assert stage.user.engine is stage.b
        assert stage.pool.status().last_error is None


@virtual_time
async def test_a_model_that_cannot_be_loaded_leaves_the_other_to_the_next():
    async with staged() as stage:
        await stage.pool.load()
        stage.b.start_failures.append(EngineNotReady("no weights"))
        with stage.lease("b"):
            await asyncio.sleep(2 * STOP_S + LOAD_S + 1)
            assert stage.phase() == "failed"
            assert stage.user.failure is not None
        with stage.lease("a"):
            await asyncio.sleep(LOAD_S + STOP_S + 1)
            assert stage.user.engine is stage.a


@virtual_time
async def test_a_crash_before_a_switch_is_no_restart_of_the_other():
    async with staged() as stage:
        await stage.pool.load()
        stage.a.dead = True
        stage.pool.look()
        stage.b.start_failures.append(EngineNotReady("no weights"))
        with stage.lease("b"):
            await asyncio.sleep(STOP_S + 1)
            assert (stage.phase(), stage.pool.status().attempt) == ("loading", 1)
            await asyncio.sleep(STOP_S + LOAD_S)
            assert stage.phase() == "failed", "it is for the next client to try again"
        assert (stage.a.starts, stage.b.starts) == (1, 1)


# The end


@pytest.mark.parametrize("after_s", [0, 1, LOAD_S / 2, LOAD_S + 1])
@virtual_time
async def test_it_stops_at_any_moment(after_s):
    async with staged() as stage:
        stack = stage.lease()
        await asyncio.sleep(after_s)
        waiting = asyncio.create_task(stage.pool.leases.room_for("b"))
        await asyncio.sleep(0)
        stage.stopping = True
        await stage.pool.stop()
        with pytest.raises(ShuttingDown):
            await waiting
        stack.close()
        with stage.pool.lease("a"):
            await asyncio.sleep(10)
        assert not stage.a.running


@virtual_time
async def test_an_engine_that_fails_to_stop_holds_nobody_up(caplog):
    async with staged(stop_timeout_s=60) as stage:
        await stage.pool.load()
        stage.a.stop_s = 1e9
        assert await stage.pool.release()
        assert "did not stop" in caplog.text
        stage.a.up, stage.a.stop_s = False, 0
        with stage.lease("b"):
            await asyncio.sleep(LOAD_S + 1)
            assert stage.user.engine is stage.b


@virtual_time
async def test_a_fault_of_its_own_is_told(caplog):
    stage = Stage()
    stage.pool.start(stage.user)
    stage.pool._watch = None
    await stage.pool.load()
    await settle()
    assert stage.died
    assert "pool has failed" in caplog.text
    stage.stopping, stage.user.engine = True, None
    await stage.pool.stop()
    assert not stage.a.up


# Everything together

ACTIONS = st.one_of(
    st.tuples(st.just("lease"), st.sampled_from("ab")),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("release"), st.none()),
    st.tuples(st.just("die"), st.booleans()),
    st.tuples(st.just("fail"), st.sampled_from("ab")),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.5, 2.0, 4.9, 7.0, 30.0, 100.0, 700.0])),
)


@settings(max_examples=150)
@given(st.lists(ACTIONS, max_size=25), st.sampled_from([0.0, 10.0, 600.0]))
def test_whatever_happens_no_session_loses_its_model_and_all_are_served_in_the_end(actions, idle_unload_s):
    """`Stage` checks that engines never overlap and that none is stopped while it is leased and lives."""

    @virtual_time
    async def run():
        async with staged(idle_unload_s=idle_unload_s) as stage:
            held, releases = [], []
            for action, value in actions:
                match action:
                    case "lease" if stage.pool.leases.possible(value):
                        held.append(stage.lease(value))
                    case "end" if held:
                        held.pop(value % len(held)).close()
                    case "release":
                        releases.append(asyncio.create_task(stage.pool.release()))
                    case "die":
                        for engine in stage.engines.values():
                            engine.dead = engine.running
                        if value:
                            stage.pool.look()
                    case "fail":
                        stage.engines[value].start_failures.append(EngineNotReady("no"))
                    case "wait":
                        await asyncio.sleep(value)
                await asyncio.sleep(0)
            for engine in stage.engines.values():
                engine.start_failures.clear()
            model = next((name for name, count in stage.leases.items() if count), "a")
            held.append(stage.lease(model))
            await asyncio.sleep(200)
            assert stage.phase() == "ready"
            assert stage.user.engine is stage.engines[model]
            for lease in held:
                lease.close()
            await asyncio.sleep(idle_unload_s + 10)
            assert (stage.phase() == "unloaded") == bool(idle_unload_s)
            assert all(task.done() for task in releases)
            await asyncio.gather(*releases, return_exceptions=True)

    run()
