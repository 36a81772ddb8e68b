"""What a run-task client may ask of its task, and how each wrong value is refused."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from qwen3_asr_server.domain import AudioEncoding, AudioFormat, SessionConfig, TurnDetection
from qwen3_asr_server.messages import Configure, Final, Finish, Finished, SpeechStarted
from qwen3_asr_server.text.hotwords import MAX_HOTWORDS
from support.conversation import capabilities
from support.task_conversation import TASK_MODEL, TaskConversation, running

DEFAULTS = SessionConfig(turn_detection=TurnDetection(0.5, 1300, 300), words=True)


def said(*texts: str, role: str = "user", type: str = "input_text") -> dict[str, Any]:
    """Return a message of context, as the SDK's users write it."""
    return {"role": role, "content": [{"type": type, "text": text} for text in texts]}


def started(**changes: Any) -> SessionConfig:
    """Return how the session of a task begins."""
    talk = TaskConversation()
    config = talk.starts(**changes)
    talk.is_silent()
    return config


def refused(code: str, **changes: Any) -> str:
    """A task does not begin; return why."""
    talk = TaskConversation()
    talk.runs(**changes)
    said = talk.hears_failure(code)
    assert talk.close is not None
    assert (talk.close.code, talk.close.reason) == (1008, code)
    talk.is_silent()
    return said


class TestDefaults:
    @pytest.mark.parametrize(
        "parameters",
        [
            {},
            None,
            [],
            {"format": "pcm", "sample_rate": 16000},
            {"format": None, "sample_rate": None, "language_hints": None, "max_sentence_silence": None},
            {"format": "", "sample_rate": 0, "language_hints": [], "max_sentence_silence": 0, "vocabulary_id": ""},
            {"speech_noise_threshold": 0, "vocabulary": None, "special_word_filter": "", "heartbeat": False},
            {"custom_vocabulary_word": "", "corpus": "", "vocabulary": ""},
        ],
        ids=str,
    )
    def test_what_is_missing_null_or_zero_has_the_vendors_default(self, parameters: object) -> None:
        assert started(parameters=parameters) == DEFAULTS

    def test_parameters_and_input_may_be_missing(self) -> None:
        assert started(parameters={}, input=None) == DEFAULTS
        talk = TaskConversation()
        talk.says("run-task", {"model": TASK_MODEL})
        talk.hears("task-started")
        assert talk.asks_for_session().config == DEFAULTS

    @pytest.mark.parametrize(
        "changes",
        [
            {"resources": [{"resource_id": "vocab-1", "resource_type": "asr_phrase"}]},
            {"resources": None},
            {"resources": []},
            {"resources": 7},
            {"parameters": {"vocabulary_id": "vocab-1", "phrase_id": "phrase-1"}},
            {
                "parameters": {
                    "stream": True,
                    "semantic_punctuation_enabled": True,
                    "multi_threshold_mode_enabled": True,
                }
            },
            {"parameters": {"disfluency_removal_enabled": True, "punctuation_prediction_enabled": False}},
            {"parameters": {"diarization_enabled": True, "speaker_count": 2, "timestamp_alignment_enabled": True}},
            {"parameters": {"heartbeat": True, "audio_event_detection_enabled": True, "unknown": {"a": [1]}}},
            {"input": {"unknown": 1}},
            {"unknown": [{}], "task_group": None, "task": None, "function": None},
        ],
        ids=str,
    )
    def test_what_has_no_meaning_here_is_passed_over(self, changes: dict[str, Any]) -> None:
        assert started(**changes) == DEFAULTS


ACCEPTED: list[tuple[str, object, dict[str, Any]]] = [
    ("format", "pcm", {"audio": AudioFormat(AudioEncoding.PCM)}),
    ("format", "PCM", {"audio": AudioFormat(AudioEncoding.PCM)}),
    ("format", "Wav", {"audio": AudioFormat(AudioEncoding.PCM)}),
    ("sample_rate", "8000", {"audio": AudioFormat(AudioEncoding.PCM, 8000)}),
    ("language_hints", "zh", {"language": "zh"}),
    ("format", "wav", {"audio": AudioFormat(AudioEncoding.PCM)}),
    ("format", "mp3", {"audio": AudioFormat(AudioEncoding.MP3)}),
    ("format", "opus", {"audio": AudioFormat(AudioEncoding.OPUS)}),
    ("format", "speex", {"audio": AudioFormat(AudioEncoding.SPEEX)}),
    ("format", "aac", {"audio": AudioFormat(AudioEncoding.AAC)}),
    ("format", "amr", {"audio": AudioFormat(AudioEncoding.AMR)}),
    *(
        ("sample_rate", rate, {"audio": AudioFormat(AudioEncoding.PCM, int(rate))})
        for rate in (8000, 11025, 16000, 16000.0, 22050, 44100, 48000)
    ),
    ("language_hints", ["zh"], {"language": "zh"}),
    ("language_hints", ["en"], {"language": "en"}),
    ("language_hints", [" EN "], {"language": "en"}),
    ("language_hints", ["English"], {"language": "en"}),
    ("language_hints", ["zh-HK"], {"language": "yue"}),
    ("language_hints", ["zh", ""], {"language": "zh"}),
    ("language_hints", [" ", "zh"], {"language": "zh"}),
    ("language_hints", ["zh", "en"], {"language": None}),
    ("language_hints", ["zh", "xx"], {"language": None}),
    ("language_hints", ["auto"], {"language": None}),
    ("language_hints", [""], {"language": None}),
    *(
        ("max_sentence_silence", ms, {"turn_detection": TurnDetection(0.5, int(ms), 300)})
        for ms in (200, 400, 800.0, 1300, 6000)
    ),
    *(
        ("speech_noise_threshold", noise, {"turn_detection": TurnDetection(probability, 1300, 300)})
        for noise, probability in ((-1, 0.05), (-0.5, 0.275), (0, 0.5), (0.0, 0.5), (0.5, 0.725), (1, 0.95))
    ),
    ("vocabulary", [{"text": "Qwen", "weight": 4, "lang": "zh"}, {"text": "SQL"}], {"context": "Qwen, SQL"}),
    ("vocabulary", {"Qwen": 1, "SQL": 4}, {"context": "SQL, Qwen"}),
    ("vocabulary", '["Qwen"]', {"context": "Qwen"}),
    ("vocabulary", [{"text": "Qwen", "weight": -1}], {"context": ""}),
    ("custom_vocabulary_word", ["Qwen", {"word": "SQL", "sounds_like": ["sequel"]}], {"context": "Qwen, SQL (sequel)"}),
    ("corpus", {"text": "All about trees."}, {"context": "All about trees."}),
    ("corpus", "{}", {"context": ""}),
]
"""A parameter's wire value, and what it makes different from `DEFAULTS`."""

NUMBER = "A number from"
TOO_MANY = ["word"] * (MAX_HOTWORDS + 1)
REFUSED: list[tuple[str, Iterable[object], str]] = [
    ("format", ["flac", "pcm16", 7, True, ["pcm"], {}], "Supported values are: 'pcm', 'wav', 'mp3', 'opus', 'speex', "),
    (
        "sample_rate",
        [7999, 48001, -16000, 10**400, "fast", "-8000", [], {}, True],
        f"{NUMBER} 8000 to 48000 is expected.",
    ),
    ("sample_rate", [16000.5], "A whole number is expected."),
    ("language_hints", [7, {}, [7], [None], [["zh"]], True], "An array of strings is expected."),
    ("language_hints", [["xx"], ["de"], ["x" * 500], ["\ud800"]], "Supported values are: 'en', 'yue', 'zh'."),
    ("max_sentence_silence", [199, 6001, -1, "800", [], True], f"{NUMBER} 200 to 6000 is expected."),
    ("max_sentence_silence", [800.5], "A whole number is expected."),
    ("speech_noise_threshold", [-1.01, 1.01, 2, "0.5", [], True, 10**400], f"{NUMBER} -1 to 1 is expected."),
]
"""A parameter, wrong values of it, and what the refusal says besides its name and the value."""

REFUSED_WORDS: list[tuple[str, object, str]] = [
    ("vocabulary", 7, "payload.parameters.vocabulary is a list of words."),
    ("vocabulary", "[", "payload.parameters.vocabulary is not valid JSON."),
    ("vocabulary", [7], "payload.parameters.vocabulary[0] is neither a word nor an object with one."),
    ("vocabulary", [{"text": "a"}, {"text": "x" * 101}], "payload.parameters.vocabulary[1].text is a string of at "),
    ("vocabulary", [{"text": "a", "weight": "4"}], "payload.parameters.vocabulary[0].weight is a number."),
    ("vocabulary", TOO_MANY, f"payload.parameters.vocabulary has at most {MAX_HOTWORDS} words."),
    ("custom_vocabulary_word", [{}], "payload.parameters.custom_vocabulary_word[0].word is a string of at most"),
    ("corpus", {"text": 7}, "payload.parameters.corpus.text is a string."),
    ("special_word_filter", "{", "payload.parameters.special_word_filter is not valid JSON."),
    ("special_word_filter", [], "payload.parameters.special_word_filter is not an object."),
    (
        "special_word_filter",
        {"filter_with_signed": {"word_list": [7]}},
        "payload.parameters.special_word_filter: filter_with_signed.word_list is a list of at most 1000 words.",
    ),
]


class TestParameters:
    @pytest.mark.parametrize(("name", "value", "changes"), ACCEPTED)
    def test_what_a_value_means(self, name: str, value: object, changes: dict[str, Any]) -> None:
        config = started(parameters={name: value})
        detection = config.turn_detection
        assert detection is not None
        rounded = replace(detection, threshold=round(detection.threshold, 9))
        assert replace(config, turn_detection=rounded) == replace(DEFAULTS, **changes)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [(name, value, expected) for name, values, expected in REFUSED for value in values],
    )
    def test_a_wrong_value_is_refused_by_name(self, name: str, value: object, expected: str) -> None:
        said = refused("InvalidParameter", parameters={name: value})
        assert said.startswith(f"payload.parameters.{name}: Invalid value: ")
        assert expected in said

    @pytest.mark.parametrize(("name", "value", "message"), REFUSED_WORDS)
    def test_wrong_words_are_refused_by_their_place(self, name: str, value: object, message: str) -> None:
        assert refused("InvalidParameter", parameters={name: value}).startswith(message)

    @pytest.mark.parametrize("value", [7, "x", True, [1]])
    @pytest.mark.parametrize("name", ["parameters", "input"])
    def test_an_object_is_expected(self, name: str, value: object) -> None:
        said = refused("InvalidParameter", **{name: value})
        assert said.startswith(f"payload.{name}: Invalid value: ")
        assert said.endswith("An object is expected.")

    @pytest.mark.parametrize(("noise", "probability"), [(-1, 0.05), (0, 0.3), (0.5, 0.625), (1, 0.95)])
    def test_the_noise_threshold_is_about_the_servers_own(self, noise: float, probability: float) -> None:
        talk = TaskConversation(default_threshold=0.3)
        detection = talk.starts(parameters={"speech_noise_threshold": noise}).turn_detection
        assert detection is not None
        assert detection.threshold == pytest.approx(probability)

    @pytest.mark.parametrize("rate", [8000, 96_000])
    @pytest.mark.parametrize("encoding", ["mp3", "opus", "speex", "aac", "amr"])
    def test_audio_that_says_its_rate_itself_is_not_asked_for_it(self, encoding: str, rate: int) -> None:
        config = started(parameters={"format": encoding, "sample_rate": rate})
        assert config == replace(DEFAULTS, audio=AudioFormat(AudioEncoding(encoding)))

    @pytest.mark.parametrize("as_text", [False, True])
    def test_special_words_are_no_part_of_the_session(self, as_text: bool) -> None:
        words: object = {"filter_with_signed": {"word_list": ["darn"]}, "filter_with_empty": {"word_list": ["um"]}}
        if as_text:
            words = '{"filter_with_signed": {"word_list": ["darn"]}, "filter_with_empty": {"word_list": ["um"]}}'
        talk = TaskConversation()
        assert talk.starts(parameters={"special_word_filter": words}) == DEFAULTS
        talk.tells(SpeechStarted(1, 0), Final(1, "um darn it", "en"))
        talk.hears_sentence(text="**** it")


class TestModels:
    @pytest.mark.parametrize(
        "model",
        [
            "fun-asr-realtime",
            "fun-asr-realtime-2025-11-07",
            "fun-asr-flash-8k-realtime",
            "fun-asr-flash-8k-realtime-2026-01-28",
            "paraformer-realtime-v2",
            "paraformer-realtime-8k-v2",
            "qwen-audio-3.0-asr-flash-streaming",
            "qwen-audio-3.1-asr-flash-message",
            "qwen3-asr-flash-realtime",
            "qwen3-asr-flash-realtime-2026-02-10",
            "tiny",
            "qwen3-asr-0.6b",
        ],
    )
    def test_known_models_are_asked_for_by_name(self, model: str) -> None:
        talk = TaskConversation(models=frozenset({"qwen3-asr-0.6b"}))
        talk.starts(model=model)
        talk.is_silent()

    @pytest.mark.parametrize(
        "model",
        [
            "whisper-1",
            "fun-asr",
            "fun-asr-flash-2025-10-01",
            "paraformer-v2",
            "sambert-zhichu-v1",
            "gummy-realtime-v1",
            "TINY",
            "x" * 500,
        ],
    )
    def test_unknown_models_are_refused_with_those_that_are_known(self, model: str) -> None:
        said = refused("Model.NotExist", model=model)
        assert said.startswith(f"payload.model: Model '{model[:63]}")
        assert said.endswith("' does not exist. Models here: tiny.")

    @pytest.mark.parametrize("model", [None, ""])
    def test_there_must_be_a_model(self, model: object) -> None:
        assert refused("InvalidParameter", model=model) == "payload.model: There is no model."

    @pytest.mark.parametrize("model", [7, True, [], {}])
    def test_a_model_is_a_string(self, model: object) -> None:
        assert refused("InvalidParameter", model=model).startswith("payload.model: Invalid value: ")

    def test_what_may_be_asked_for_depends_on_the_model(self) -> None:
        other = capabilities(model="other", languages=frozenset({"de"}), models=frozenset({"tiny", "other"}))

        def offers(model: str | None) -> Any:
            return other if model == "other" else capabilities(models=other.models)

        hints = {"language_hints": ["de"]}
        assert TaskConversation(offers).starts(model="other", parameters=hints).language == "de"
        talk = TaskConversation(offers)
        talk.runs(model="tiny", parameters=hints)
        talk.hears_failure("InvalidParameter")

    @pytest.mark.parametrize(
        ("name", "value", "only"),
        [
            ("task_group", "aigc", "audio"),
            ("task_group", 7, "audio"),
            ("task", "tts", "asr"),
            ("task", "multimodal-generation", "asr"),
            ("task", [], "asr"),
            ("function", "SpeechSynthesizer", "recognition"),
            ("function", "generation", "recognition"),
        ],
    )
    def test_other_services_are_refused(self, name: str, value: object, only: str) -> None:
        said = refused("InvalidParameter", **{name: value})
        assert said.startswith(f"payload.{name}: Invalid value: ")
        assert said.endswith(f"Supported values are: '{only}'.")


CONTEXTS: list[tuple[object, str]] = [
    (None, ""),
    ([], ""),
    ([said("hi")], "hi"),
    ([said("Who?"), said("A bot.", role="assistant", type="output_text")], "Who?\nA bot."),
    ([said("one", "two")], "one\ntwo"),
    ([said("one", "")], "one"),
    ([{"role": "user", "content": "plain"}], "plain"),
    ([{"content": ["plain", {"text": "other"}]}], "plain\nother"),
    ([said("很好"), {"role": "user", "content": []}], "很好"),
    ([said("x")] * 100, "\n".join(["x"] * 100)),
    ([said(*["x"] * 100)], "\n".join(["x"] * 100)),
]
WRONG_CONTEXTS: list[tuple[object, str]] = [
    ("hi", "payload.input.context: The context is a list of at most 100 messages."),
    ({}, "payload.input.context: The context is a list of at most 100 messages."),
    ([said("x")] * 101, "payload.input.context: The context is a list of at most 100 messages."),
    (["hi"], "payload.input.context[0]: Invalid value: 'hi'. An object is expected."),
    ([said("x"), 7], "payload.input.context[1]: Invalid value: 7. An object is expected."),
    ([said(*["x"] * 101)], "payload.input.context[0]: A message has at most 100 parts."),
    ([{"role": "user"}], "payload.input.context[0].content: Invalid value: null. An object is expected."),
    ([{"content": [7]}], "payload.input.context[0].content: Invalid value: 7. An object is expected."),
    ([{"content": {"text": 7}}], "payload.input.context[0].content.text: Invalid value: 7. A string is expected."),
]


class TestContext:
    @pytest.mark.parametrize(("messages", "context"), CONTEXTS)
    def test_a_task_begins_with_what_its_messages_say(self, messages: object, context: str) -> None:
        assert started(input={"context": messages}) == replace(DEFAULTS, context=context)

    @pytest.mark.parametrize(("messages", "context"), CONTEXTS)
    def test_another_context_takes_the_place_of_the_first(self, messages: object, context: str) -> None:
        talk = TaskConversation()
        talk.starts(input={"context": [said("before")]})
        talk.continues(messages)
        talk.orders(Configure(replace(DEFAULTS, context=context)))
        talk.is_silent()

    @pytest.mark.parametrize(("messages", "message"), WRONG_CONTEXTS)
    def test_a_wrong_context_is_refused_by_its_place(self, messages: object, message: str) -> None:
        assert refused("InvalidParameter", input={"context": messages}) == message

    @pytest.mark.parametrize(("messages", "message"), WRONG_CONTEXTS)
    def test_a_wrong_context_ends_the_task_that_runs(self, messages: object, message: str) -> None:
        talk = running()
        talk.continues(messages)
        talk.orders(Finish())
        talk.is_silent()
        talk.tells(Finished(""))
        talk.hears_failure("InvalidParameter", message)

    def test_hotwords_stay_and_texts_come_first(self) -> None:
        talk = TaskConversation()
        words = {"custom_vocabulary_word": ["Qwen"], "vocabulary": {"SQL": 5}, "corpus": {"text": "About trees."}}
        config = talk.starts(parameters=words, input={"context": [said("before")]})
        assert config.context == "before\nAbout trees.\nSQL, Qwen"
        for text in ("then", "now"):
            talk.continues([said(text)])
            talk.orders(Configure(replace(config, context=f"{text}\nAbout trees.\nSQL, Qwen")))
        talk.continues([])
        talk.orders(Configure(replace(config, context="About trees.\nSQL, Qwen")))

    def test_everything_else_stays(self) -> None:
        talk = TaskConversation()
        asked = {"format": "mp3", "sample_rate": 8000, "language_hints": ["zh"], "max_sentence_silence": 500}
        config = talk.starts(parameters=asked)
        talk.continues([said("now")])
        talk.orders(Configure(replace(config, context="now")))

    def test_the_limit_is_inclusive(self) -> None:
        talk = TaskConversation(max_context_chars=10)
        assert talk.starts(input={"context": [said("12345"), said("67890")]}).context == "12345\n67890"
        talk.continues([said("1234567890")])
        talk.orders(Configure(replace(DEFAULTS, context="1234567890")))
        talk.continues([said("12345678901")])
        talk.orders(Finish())

    def test_over_the_limit_it_is_refused(self) -> None:
        talk = TaskConversation(max_context_chars=10)
        talk.runs(input={"context": [said("12345"), said("678901")]})
        too_long = "payload.input.context: The context is too long. At most 10 characters are supported."
        talk.hears_failure("InvalidParameter", too_long)

    @pytest.mark.parametrize("payload", [{}, {"input": {}}, {"input": []}, {"input": {"other": 1}}, {"input": None}])
    def test_continue_task_without_a_context_changes_nothing(self, payload: dict[str, Any]) -> None:
        talk = TaskConversation()
        talk.starts()
        talk.says("continue-task", payload)
        talk.is_silent()
        assert talk.close is None

    def test_an_empty_array_stands_for_an_empty_object(self) -> None:
        assert started(input=[], parameters=[]) == DEFAULTS
