"""A task from `run-task` to `task-finished`, and what comes too late for it."""

import json

import pytest

from qwen3_asr_server.domain import Word
from qwen3_asr_server.errors import Overloaded
from qwen3_asr_server.messages import (
    Closing,
    Committed,
    Configure,
    Final,
    Finish,
    Finished,
    SpeechStarted,
    SpeechStopped,
)
from qwen3_asr_server.protocols._base import Close
from qwen3_asr_server.protocols._dashscope_instructions import MAX_TASK_ID_CHARS
from support.task_conversation import (
    AUDIO,
    NEVER_NAMED,
    OTHER,
    TASK,
    TASK_MODEL,
    TaskConversation,
    partial,
    run_payload,
    running,
    sentence,
)


class TestBegin:
    def test_nothing_is_sent_on_connect(self) -> None:
        talk = TaskConversation()
        talk.is_silent()
        assert talk.close is None

    def test_the_start_is_told_and_the_session_asked_for_once(self) -> None:
        talk = TaskConversation()
        talk.runs()
        assert talk.hears_next() == {
            "header": {"task_id": TASK, "event": "task-started", "attributes": {}},
            "payload": {},
        }
        assert talk.asks_for_session().model == TASK_MODEL
        talk.is_silent()
        assert talk.protocol.session_to_open() is None

    @pytest.mark.parametrize("task_id", ["a", "任务", "x" * MAX_TASK_ID_CHARS, OTHER, '"\\\n'])
    def test_a_task_may_have_any_name(self, task_id: str) -> None:
        talk = TaskConversation()
        talk.starts(task_id)
        talk.finishes(task_id)
        talk.is_over(task_id)

    def test_the_rest_of_the_header_does_not_matter(self) -> None:
        talk = TaskConversation()
        header = {"action": "run-task", "task_id": TASK, "streaming": "out", "event": "", "attributes": None}
        talk.says_raw(json.dumps({"header": header, "payload": run_payload()}))
        talk.hears("task-started")

    def test_a_session_that_cannot_be_opened_fails_the_task(self) -> None:
        """The driver drops what is pending and says why."""
        talk = TaskConversation()
        talk.runs()
        talk.protocol.session_to_open()
        talk.protocol.messages_to_send()
        talk.tells(Closing(Overloaded("The server is full.")))
        talk.hears_failure("Throttling", "The server is full.")
        assert talk.close == Close(1013, "Throttling")
        talk.is_silent()


class TestAudio:
    @pytest.mark.parametrize("length", [1, 3, 1024, 12_800])
    def test_audio_of_any_length_becomes_a_command_without_an_answer(self, length: int) -> None:
        talk = running()
        talk.speaks(bytes(length))
        talk.speaks(bytes(length))
        talk.is_silent()

    def test_no_audio_is_no_command(self) -> None:
        talk = running()
        talk.says_raw(b"")
        talk.is_silent()

    def test_the_limit_is_inclusive(self) -> None:
        talk = running(max_append_bytes=100)
        talk.speaks(bytes(100))
        talk.says_raw(bytes(101))
        talk.orders(Finish())
        talk.tells(Finished(""))
        talk.hears_failure("InvalidParameter", "One message holds at most 100 bytes of audio.")
        assert talk.close == Close(1008, "InvalidParameter")

    @pytest.mark.parametrize("audio", [b"", AUDIO])
    def test_audio_before_any_task_is_refused(self, audio: bytes) -> None:
        talk = TaskConversation()
        talk.says_raw(audio)
        message = "There is no task for this audio: send run-task first."
        talk.hears_failure("InvalidParameter", message, NEVER_NAMED)
        assert talk.close == Close(1008, "InvalidParameter")
        talk.is_silent()


class TestResults:
    def test_an_interim_result_has_exactly_these_fields(self) -> None:
        talk = running()
        talk.tells(SpeechStarted(1, 2720))
        talk.is_silent()
        talk.tells(partial(1, "Hello", " wor"))
        assert talk.hears("result-generated") == {
            "output": {
                "sentence": {
                    "sentence_id": 1,
                    "begin_time": 170,
                    "end_time": None,
                    "sentence_begin": True,
                    "heartbeat": False,
                    "text": "Hello wor",
                    "words": [],
                    "sentence_end": False,
                }
            },
            "usage": None,
        }
        talk.tells(partial(1, "Hello world"))
        talk.hears_sentence(sentence_id=1, begin_time=170, end_time=None, sentence_begin=False, text="Hello world")
        talk.is_silent()

    def test_a_final_result_has_exactly_these_fields(self) -> None:
        talk = running()
        words = [Word("Hello", 2720, 4720, 0.9), Word("world", 4800, 14_720)]
        talk.tells(SpeechStarted(1, 2720), partial(1, "Hello"), SpeechStopped(1, 14_720), Committed(1, None))
        talk.hears_sentence(sentence_end=False)
        talk.is_silent()
        talk.tells(Final(1, "Hello, world.", "en", words, 0.9))
        assert talk.hears("result-generated") == {
            "output": {
                "sentence": {
                    "sentence_id": 1,
                    "begin_time": 170,
                    "end_time": 920,
                    "sentence_begin": False,
                    "heartbeat": False,
                    "text": "Hello, world.",
                    "words": [
                        {"begin_time": 170, "end_time": 295, "text": "Hello", "punctuation": ","},
                        {"begin_time": 300, "end_time": 920, "text": "world", "punctuation": "."},
                    ],
                    "sentence_end": True,
                }
            },
            "usage": {"duration": 1},
        }
        talk.is_silent()

    def test_words_stay_within_their_sentence(self) -> None:
        """Its begin was told before they were known, and it is heard from a little earlier on."""
        talk = running()
        words = [Word("Hello", 0, 1_600), Word("big", 1_600, 8_000), Word("world", 8_000, 20_000)]
        talk.tells(SpeechStarted(1, 3_200), SpeechStopped(1, 16_000), Final(1, "Hello big world.", "en", words))
        sentence = talk.hears("result-generated")["output"]["sentence"]
        times = [(word["begin_time"], word["end_time"]) for word in sentence["words"]]
        assert times == [(200, 200), (200, 500), (500, 1000)]
        assert (sentence["begin_time"], sentence["end_time"]) == (200, 1000)

    @pytest.mark.parametrize("words", [None, []])
    def test_an_engine_without_word_times_has_none(self, words: list[Word] | None) -> None:
        talk = running()
        talk.tells(SpeechStarted(1, 0), SpeechStopped(1, 16_000), Final(1, "Hello.", "en", words))
        talk.hears_sentence(text="Hello.", words=[], sentence_begin=True, sentence_end=True)

    @pytest.mark.parametrize(("stop", "seconds"), [(1, 0), (16, 1), (16_000, 1), (16_016, 2), (57_600_000, 3600)])
    def test_the_duration_is_what_was_heard_until_the_end_of_the_sentence(self, stop: int, seconds: int) -> None:
        talk = running()
        talk.tells(*sentence(1, "one", 0, stop))
        assert talk.hears("result-generated")["usage"] == {"duration": seconds}

    def test_sentences_are_counted_from_one(self) -> None:
        talk = running()
        for number in range(1, 5):
            talk.tells(*sentence(number + 6, f"number {number}", number * 16_000, number * 16_000 + 8000))
            begin = number * 1000
            talk.hears_sentence(sentence_id=number, begin_time=begin, end_time=begin + 500, text=f"number {number}")
        talk.is_silent()

    def test_a_noise_is_no_sentence(self) -> None:
        talk = running()
        talk.tells(SpeechStarted(1, 0), partial(1, ""), *sentence(1, ""), *sentence(2, "real"))
        talk.hears_sentence(sentence_id=1, text="real")
        talk.is_silent()

    def test_what_was_announced_also_ends(self) -> None:
        talk = running()
        talk.tells(SpeechStarted(1, 0), partial(1, "hm"), partial(1, ""), SpeechStopped(1, 8000), Final(1, "", "en"))
        talk.hears_sentence(sentence_id=1, text="hm")
        talk.hears_sentence(sentence_id=1, text="", words=[], end_time=500, sentence_end=True)
        talk.tells(*sentence(2, "next"))
        talk.hears_sentence(sentence_id=2, text="next")

    def test_an_end_that_nobody_heard_is_the_beginning(self) -> None:
        talk = running()
        talk.tells(SpeechStarted(1, 8000), Final(1, "one", "en"))
        talk.hears_sentence(begin_time=500, end_time=500)

    def test_a_later_sentence_waits_for_the_one_before_and_only_its_newest_text_is_told(self) -> None:
        talk = running()
        talk.tells(SpeechStarted(1, 0), partial(1, "one"), SpeechStopped(1, 8000), SpeechStarted(2, 16_000))
        talk.hears_sentence(sentence_id=1, text="one")
        talk.tells(partial(2, "t"), partial(2, "tw"), SpeechStarted(3, 32_000), partial(3, "thr"), partial(2, "two"))
        talk.is_silent()
        talk.tells(Final(1, "One.", "en"))
        talk.hears_sentence(sentence_id=1, text="One.", sentence_end=True)
        talk.hears_sentence(sentence_id=2, begin_time=1000, end_time=None, text="two", sentence_begin=True)
        talk.is_silent()
        talk.tells(partial(2, "two!"), SpeechStopped(2, 24_000), Final(2, "Two.", "en"))
        talk.hears_sentence(sentence_id=2, text="two!", sentence_begin=False)
        talk.hears_sentence(sentence_id=2, text="Two.")
        talk.hears_sentence(sentence_id=3, text="thr", sentence_begin=True)
        talk.tells(SpeechStopped(3, 48_000), Final(3, "Three.", "en"))
        talk.hears_sentence(sentence_id=3, text="Three.", sentence_begin=False)
        talk.is_silent()

    def test_a_later_sentence_has_its_turn_after_a_noise(self) -> None:
        talk = running()
        talk.tells(SpeechStarted(1, 0), SpeechStarted(2, 16_000), partial(2, "two"))
        talk.is_silent()
        talk.tells(Final(1, "", "en"))
        talk.hears_sentence(sentence_id=1, text="two")

    def test_no_interim_result_follows_the_final_one(self) -> None:
        talk = running()
        talk.tells(*sentence(1, "one"), partial(1, "on"))
        talk.hears_sentence(text="one", sentence_end=True)
        talk.is_silent()

    def test_what_does_not_concern_this_protocol_is_not_told(self) -> None:
        talk = running()
        talk.tells(Committed(1, None))
        talk.is_silent()

    def test_a_finished_task_has_exactly_these_fields(self) -> None:
        talk = running()
        talk.finishes()
        talk.tells(*sentence(1, "late"))
        talk.hears_sentence(text="late")
        talk.tells(Finished("late"))
        assert talk.hears_next() == {
            "header": {"task_id": TASK, "event": "task-finished", "attributes": {}},
            "payload": {"output": {}, "usage": None},
        }
        talk.is_silent()
        assert talk.close is None


class TestSpecialWords:
    def talk(self) -> TaskConversation:
        words = {"filter_with_signed": {"word_list": ["darn"]}, "filter_with_empty": {"word_list": ["um"]}}
        return running({"special_word_filter": words})

    def test_they_are_hidden_in_interim_and_final_results_and_in_words(self) -> None:
        talk = self.talk()
        talk.tells(SpeechStarted(1, 0), partial(1, "um da", "rn"), SpeechStopped(1, 16_000))
        talk.hears_sentence(text="****")
        words = [Word("um", 0, 160), Word("darn", 160, 320), Word("it", 320, 480)]
        talk.tells(Final(1, "um darn, it.", "en", words))
        final = talk.hears_sentence(text="****, it.")
        assert [(word["text"], word["punctuation"]) for word in final["words"]] == [("****", ","), ("it", ".")]

    def test_a_sentence_of_nothing_else_is_none(self) -> None:
        talk = self.talk()
        talk.tells(SpeechStarted(1, 0), partial(1, "um"), *sentence(1, "um"), *sentence(2, "yes"))
        talk.hears_sentence(sentence_id=1, text="yes")
        talk.is_silent()


class TestReuse:
    @pytest.mark.parametrize("second", [OTHER, TASK])
    def test_a_connection_takes_one_task_after_the_other(self, second: str) -> None:
        talk = running()
        talk.tells(*sentence(1, "one"))
        talk.hears_sentence(sentence_id=1)
        talk.finishes()
        talk.is_over()
        config = talk.starts(second, parameters={"language_hints": ["zh"]})
        assert config.language == "zh"
        talk.speaks()
        talk.tells(*sentence(1, "another"))
        sent = talk.hears_next()
        assert sent["header"]["task_id"] == second
        assert sent["payload"]["output"]["sentence"]["sentence_id"] == 1
        talk.finishes(second)
        talk.is_over(second)

    def test_nothing_of_the_first_task_is_left_in_the_second(self) -> None:
        talk = TaskConversation()
        filtered = {"filter_with_signed": {"word_list": ["darn"]}}
        talk.starts(parameters={"special_word_filter": filtered, "vocabulary": ["Qwen"]})
        talk.tells(SpeechStarted(1, 0), partial(1, "dar"))
        talk.hears_sentence()
        talk.finishes()
        talk.is_over()
        assert talk.starts(OTHER).context == ""
        talk.tells(SpeechStarted(1, 0), partial(1, "darn"))
        assert talk.hears_next()["payload"]["output"]["sentence"]["text"] == "darn"


class TestTooLate:
    def late(self, talk: TaskConversation) -> None:
        talk.says_raw(AUDIO)
        talk.says_raw(b"")
        talk.says_raw(bytes(200))
        talk.says("finish-task")
        talk.says("finish-task", {"input": {"directive": "cancel"}})
        talk.continues([{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}])
        talk.continues("not a context")
        talk.says("continue-task", {"input": "not an object"})
        talk.is_silent()

    def test_after_finish_task(self) -> None:
        talk = running(max_append_bytes=100)
        talk.finishes()
        self.late(talk)
        talk.is_over()

    def test_after_the_end(self) -> None:
        talk = running(max_append_bytes=100)
        talk.finishes()
        talk.is_over()
        self.late(talk)
        talk.starts(OTHER)

    def test_a_session_that_is_over_says_nothing(self) -> None:
        talk = running()
        talk.finishes()
        talk.is_over()
        talk.tells(*sentence(1, "one"), Finished(""))
        talk.is_silent()


def test_a_context_is_for_the_task_that_runs() -> None:
    talk = running()
    talk.continues([{"role": "user", "content": "hi"}], OTHER)
    talk.hears_failure("InvalidParameter", task_id=OTHER)
    talk.continues([{"role": "user", "content": "hi"}])
    (command,) = talk.protocol.commands_received()
    assert isinstance(command, Configure)
    assert command.config.context == "hi"
