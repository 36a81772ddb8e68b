"""protocol.md's sections on the connection and `session.update`: the session object and what may be changed."""

import base64
from typing import Any

import pytest

from qwen3_asr_server.domain import AudioEncoding, AudioFormat, SessionConfig, TurnDetection
from support.conversation import VENDOR_MODEL, Conversation

AUDIO = base64.b64encode(bytes(3200)).decode()
DEFAULT_DETECTION = {"type": "server_vad", "threshold": 0.2, "silence_duration_ms": 800}


class TestConnect:
    def test_session_created_is_the_first_message_with_its_documented_fields(self) -> None:
        talk = Conversation(greeted=False)
        assert talk.hears_next() == {
            "event_id": "event_000000000000000000001",
            "type": "session.created",
            "session": {
                "id": "sess_000000000000000000001",
                "object": "realtime.session",
                "model": VENDOR_MODEL,
                "modalities": ["text"],
                "input_audio_format": "pcm",
                "sample_rate": 16000,
                "input_audio_transcription": None,
                "turn_detection": DEFAULT_DETECTION,
            },
        }
        talk.is_silent()
        assert talk.close is None

    def test_the_config_begins_with_the_vendors_defaults(self) -> None:
        assert Conversation().protocol.config == SessionConfig(
            audio=AudioFormat(AudioEncoding.PCM, 16000),
            language=None,
            context="",
            turn_detection=TurnDetection(threshold=0.5, silence_ms=800, prefix_padding_ms=300),
            words=False,
        )

    @pytest.mark.parametrize(
        ("asked", "named"),
        [
            (VENDOR_MODEL, VENDOR_MODEL),
            ("qwen3-asr-flash-realtime-2026-02-10", "qwen3-asr-flash-realtime-2026-02-10"),
            ("qwen3-asr-flash-realtime-2025-10-27", "qwen3-asr-flash-realtime-2025-10-27"),
            ("tiny", "tiny"),
            ("qwen3-asr-0.6b", "qwen3-asr-0.6b"),
            ("", VENDOR_MODEL),
            (None, VENDOR_MODEL),
        ],
    )
    def test_known_models_are_named_as_asked(self, asked: str | None, named: str) -> None:
        talk = Conversation(asked, greeted=False, models=frozenset({"qwen3-asr-0.6b"}))
        assert talk.hears("session.created")["session"]["model"] == named
        talk.is_alive()

    @pytest.mark.parametrize("model", ["gpt-4o", "qwen3-asr-flash-realtime-x", "Tiny", "x" * 10_000])
    def test_an_unknown_model_ends_the_connection(self, model: str) -> None:
        talk = Conversation(model, greeted=False)
        error = talk.hears_error("Model.NotExist", param="model")
        assert VENDOR_MODEL in error["message"]
        assert len(error["message"]) < 300
        assert talk.close is not None
        assert (talk.close.code, talk.close.reason, talk.close.grace_s) == (1008, "Model.NotExist", 0)
        talk.says("session.finish")
        talk.is_silent()

    def test_sessions_begin_in_manual_mode_where_vad_is_off(self) -> None:
        talk = Conversation(greeted=False, turn_detection=None)
        assert talk.hears("session.created")["session"]["turn_detection"] is None
        assert talk.protocol.config.turn_detection is None

    def test_a_client_may_ask_for_vad_where_it_is_off(self) -> None:
        talk = Conversation(turn_detection=None)
        talk.updates(turn_detection={})
        talk.hears_session()
        assert talk.protocol.config.turn_detection == TurnDetection(0.5, 800, 300)

    def test_the_servers_own_silence_is_announced(self) -> None:
        talk = Conversation(greeted=False, turn_detection=TurnDetection(silence_ms=400, prefix_padding_ms=100))
        session = talk.hears("session.created")["session"]
        assert session["turn_detection"] == DEFAULT_DETECTION | {"silence_duration_ms": 400}
        assert talk.protocol.config.turn_detection == TurnDetection(0.5, 400, 100)


class TestUpdate:
    def test_an_empty_update_echoes_the_whole_session(self) -> None:
        talk = Conversation(greeted=False)
        created = talk.hears("session.created")["session"]
        talk.updates()
        detection = created["turn_detection"] | {"create_response": True, "interrupt_response": True}
        assert talk.hears_session() == created | {"turn_detection": detection}
        talk.is_silent()

    def test_a_missing_key_keeps_its_value(self) -> None:
        talk = Conversation()
        talk.updates(
            input_audio_format="opus",
            sample_rate=8000,
            input_audio_transcription={"language": "zh", "corpus": {"text": "不二家"}},
            turn_detection={"threshold": 0.0, "silence_duration_ms": 400},
            words=True,
        )
        first = talk.hears_session()
        talk.updates(input_audio_transcription={}, turn_detection={"type": "server_vad"})
        assert talk.hears_session() == first
        assert talk.protocol.config.language == "zh"
        assert talk.protocol.config.words is True

    @pytest.mark.parametrize(
        ("null", "defaults"),
        [
            ({"modalities": None}, {}),
            ({"input_audio_format": None}, {"input_audio_format": "pcm"}),
            ({"sample_rate": None}, {"sample_rate": 16000}),
            ({"audio": {"input": {"format": {"type": None}}}}, {"input_audio_format": "pcm"}),
            ({"audio": {"input": {"format": {"sample_rate": None}}}}, {"sample_rate": 16000}),
            ({"audio": None}, {}),
            ({"audio": {"input": {"format": None}}}, {}),
            ({"input_audio_transcription": None}, {"input_audio_transcription": None}),
            (
                {"input_audio_transcription": {"language": None}},
                {"input_audio_transcription": {"corpus": {"text": "words"}}},
            ),
            ({"input_audio_transcription": {"corpus": None}}, {"input_audio_transcription": {"language": "zh"}}),
            (
                {"input_audio_transcription": {"corpus": {"text": None}}},
                {"input_audio_transcription": {"language": "zh"}},
            ),
            ({"input_audio_transcription": {"corpus_text": None}}, {"input_audio_transcription": {"language": "zh"}}),
            ({"turn_detection": {"type": None}}, {}),
            ({"turn_detection": {"threshold": None}}, {"threshold": 0.2}),
            ({"turn_detection": {"silence_duration_ms": None}}, {"silence_duration_ms": 1200}),
            ({"turn_detection": {"prefix_padding_ms": None}}, {"prefix_padding_ms": None}),
            ({"turn_detection": None}, {"turn_detection": None}),
            ({"words": None}, {"words": None}),
        ],
    )
    def test_null_gives_the_default_back_and_leaves_the_rest(
        self, null: dict[str, Any], defaults: dict[str, Any]
    ) -> None:
        talk = Conversation(turn_detection=TurnDetection(silence_ms=1200, prefix_padding_ms=100))
        talk.updates(
            input_audio_format="opus",
            sample_rate=8000,
            input_audio_transcription={"language": "zh", "corpus": {"text": "words"}},
            turn_detection={"threshold": 0.0, "silence_duration_ms": 400, "prefix_padding_ms": 50},
            words=True,
        )
        before = talk.hears_session()
        talk.updates(**null)
        after = talk.hears_session()
        changed = {name: after.get(name) for name in before if before[name] != after.get(name)}
        detection = changed.pop("turn_detection", None) if "turn_detection" not in defaults else None
        if detection is not None:
            changed |= {
                name: detection.get(name)
                for name, value in before["turn_detection"].items()
                if value != detection.get(name)
            }
        assert changed == defaults
        if "prefix_padding_ms" in defaults:
            assert talk.protocol.config.turn_detection == TurnDetection(pytest.approx(0.425), 400, 100)

    @pytest.mark.parametrize(
        ("session", "param"),
        [
            ({"sample_rate": 8000, "turn_detection": {"threshold": 2}}, "session.turn_detection.threshold"),
            ({"turn_detection": None, "words": "yes"}, "session.words"),
            (
                {"input_audio_transcription": {"language": "en"}, "input_audio_format": "mp3"},
                "session.input_audio_format",
            ),
        ],
    )
    def test_a_failed_update_changes_nothing(self, session: dict[str, Any], param: str) -> None:
        talk = Conversation()
        before = talk.protocol.config
        talk.says("session.update", event_id="event_7", session=session)
        talk.hears_error("invalid_value", param=param, event_id="event_7")
        talk.is_silent()
        assert talk.protocol.config == before
        talk.is_alive()

    @pytest.mark.parametrize("session", [None, "pcm", 7, [], True])
    def test_session_must_be_an_object(self, session: object) -> None:
        talk = Conversation()
        talk.says("session.update", session=session)
        talk.hears_error("invalid_value", param="session")
        talk.is_silent()

    def test_session_must_be_there(self) -> None:
        talk = Conversation()
        talk.says("session.update")
        talk.hears_error("invalid_value", param="session")

    def test_unknown_keys_are_echoed_as_they_came_and_not_kept(self) -> None:
        talk = Conversation()
        plain = {"enable_magic": True, "nested": {"a": [1, None, "ü"]}}
        talk.updates(
            **plain,
            turn_detection={"turn_detection_param": {"x": 1}},
            input_audio_transcription={"model": None},
        )
        session = talk.hears_session()
        assert {name: session[name] for name in plain} == plain
        assert session["turn_detection"]["turn_detection_param"] == {"x": 1}
        assert session["input_audio_transcription"] == {"model": None}
        talk.updates()
        session = talk.hears_session()
        assert not {"enable_magic", "nested"} & session.keys()
        assert "turn_detection_param" not in session["turn_detection"]
        assert session["input_audio_transcription"] == {}

    def test_fields_of_other_models_are_ignored(self) -> None:
        talk = Conversation()
        talk.updates(voice=None, output_audio_format="pcm16", instructions="x", translation={}, smooth_output=True)
        session = talk.hears_session()
        assert not {"voice", "output_audio_format", "instructions", "translation", "smooth_output"} & session.keys()

    def test_a_client_cannot_rename_the_session(self) -> None:
        talk = Conversation()
        talk.updates(id="sess_mine", object="thing", model="other")
        session = talk.hears_session()
        assert session["id"] == "sess_000000000000000000001"
        assert session["object"] == "realtime.session"
        assert session["model"] == VENDOR_MODEL

    @pytest.mark.parametrize("modalities", [["text"], ["text", "audio"], [], None])
    def test_modalities_are_always_text(self, modalities: object) -> None:
        talk = Conversation()
        talk.updates(modalities=modalities)
        assert talk.hears_session()["modalities"] == ["text"]

    @pytest.mark.parametrize("modalities", ["text", [1], {}])
    def test_modalities_must_be_an_array_of_strings(self, modalities: object) -> None:
        talk = Conversation()
        talk.updates(modalities=modalities)
        talk.hears_error("invalid_value", param="session.modalities")

    @pytest.mark.parametrize("asked", [True, False])
    def test_words_switches_our_extra_fields(self, asked: bool) -> None:
        talk = Conversation()
        talk.updates(words=asked)
        assert ("words" in talk.hears_session()) is asked
        assert talk.protocol.config.words is asked


class TestAudioFormat:
    @pytest.mark.parametrize(
        ("session", "expected"),
        [
            ({"input_audio_format": "pcm"}, AudioFormat(AudioEncoding.PCM, 16000)),
            ({"input_audio_format": "pcm16"}, AudioFormat(AudioEncoding.PCM, 16000)),
            ({"input_audio_format": "wav"}, AudioFormat(AudioEncoding.PCM, 16000)),
            ({"input_audio_format": "opus"}, AudioFormat(AudioEncoding.OPUS, 16000)),
            ({"input_audio_format": "opus", "sample_rate": 8000}, AudioFormat(AudioEncoding.OPUS, 8000)),
            ({"sample_rate": 8000}, AudioFormat(AudioEncoding.PCM, 8000)),
            ({"sample_rate": 16000.0}, AudioFormat(AudioEncoding.PCM, 16000)),
            ({"sample_rate": None, "input_audio_format": None}, AudioFormat(AudioEncoding.PCM, 16000)),
            ({"audio": {"input": {"format": {"type": "pcm", "sample_rate": 8000}}}}, AudioFormat(sample_rate=8000)),
            ({"audio": {"input": {"format": {"type": "wav", "sample_rate": 48000}}}}, AudioFormat(sample_rate=48000)),
            ({"audio": {"input": {"format": {"sample_rate": 24000}}}}, AudioFormat(sample_rate=24000)),
            ({"audio": {"input": {"format": {"type": "opus"}}}}, AudioFormat(AudioEncoding.OPUS, 16000)),
            ({"audio": {"input": {}}}, AudioFormat()),
            ({"audio": None}, AudioFormat()),
            (
                {"sample_rate": 16000, "audio": {"input": {"format": {"sample_rate": 8000}}}},
                AudioFormat(sample_rate=8000),
            ),
        ],
    )
    def test_every_spelling_is_understood(self, session: dict[str, Any], expected: AudioFormat) -> None:
        talk = Conversation()
        talk.updates(**session)
        echo = talk.hears_session()
        assert talk.protocol.config.audio == expected
        assert (echo["input_audio_format"], echo["sample_rate"]) == (expected.encoding.value, expected.sample_rate)

    @pytest.mark.parametrize(
        ("session", "param", "message"),
        [
            (
                {"input_audio_format": "mp3"},
                "session.input_audio_format",
                "Invalid value: 'mp3'. Supported values are: 'pcm', 'pcm16', 'wav', 'opus'.",
            ),
            (
                {"input_audio_format": ["pcm"]},
                "session.input_audio_format",
                "Invalid value: an array. Supported values are: 'pcm', 'pcm16', 'wav', 'opus'.",
            ),
            (
                {"sample_rate": 11025},
                "session.sample_rate",
                "Invalid value: 11025. Supported values are: 8000, 16000, 24000, 48000.",
            ),
            (
                {"sample_rate": "16000"},
                "session.sample_rate",
                "Invalid value: '16000'. Supported values are: 8000, 16000, 24000, 48000.",
            ),
            (
                {"sample_rate": True},
                "session.sample_rate",
                "Invalid value: true. Supported values are: 8000, 16000, 24000, 48000.",
            ),
            ({"audio": 1}, "session.audio", "Invalid value: 1. An object is expected."),
            ({"audio": {"input": []}}, "session.audio.input", "Invalid value: an array. An object is expected."),
            (
                {"audio": {"input": {"format": {"type": "aac"}}}},
                "session.audio.input.format.type",
                "Invalid value: 'aac'. Supported values are: 'pcm', 'pcm16', 'wav', 'opus'.",
            ),
            (
                {"audio": {"input": {"format": {"sample_rate": 0}}}},
                "session.audio.input.format.sample_rate",
                "Invalid value: 0. Supported values are: 8000, 16000, 24000, 48000.",
            ),
        ],
    )
    def test_others_are_refused(self, session: dict[str, Any], param: str, message: str) -> None:
        talk = Conversation()
        talk.updates(**session)
        assert talk.hears_error("invalid_value", param=param)["message"] == message
        talk.is_alive()

    @pytest.mark.parametrize(
        ("change", "param"),
        [
            ({"input_audio_format": "opus"}, "session.input_audio_format"),
            ({"sample_rate": 8000}, "session.sample_rate"),
            ({"audio": {"input": {"format": {"sample_rate": 8000}}}}, "session.sample_rate"),
        ],
    )
    def test_it_cannot_change_after_the_first_append(self, change: dict[str, Any], param: str) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append", audio=AUDIO)
        talk.protocol.commands_received()
        talk.updates(**change, input_audio_transcription={"language": "zh"})
        talk.hears_error("invalid_value", param=param)
        talk.is_silent()
        assert talk.protocol.config.language is None

    def test_the_same_format_may_be_repeated_after_the_first_append(self) -> None:
        talk = Conversation()
        talk.says("input_audio_buffer.append", audio=AUDIO)
        talk.protocol.commands_received()
        talk.updates(input_audio_format="pcm16", sample_rate=16000, input_audio_transcription={"language": "zh"})
        assert talk.hears_session()["input_audio_transcription"] == {"language": "zh"}


class TestTranscription:
    @pytest.mark.parametrize("options", [None, {}, {"model": None}, {"language": None}, {"language": ""}])
    def test_no_options_detect_the_language(self, options: object) -> None:
        talk = Conversation()
        talk.updates(input_audio_transcription=options)
        talk.hears_session()
        assert (talk.protocol.config.language, talk.protocol.config.context) == (None, "")

    @pytest.mark.parametrize(
        ("asked", "code"),
        [
            ("zh", "zh"),
            ("EN", "en"),
            ("en-US", "en"),
            ("zh_Hans_CN", "zh"),
            ("zh-HK", "yue"),
            ("Cantonese", "yue"),
            ("Sichuan", "zh"),
            ("auto", None),
        ],
    )
    def test_language_is_taken_as_a_code_or_name(self, asked: str, code: str | None) -> None:
        talk = Conversation()
        talk.updates(input_audio_transcription={"language": asked})
        assert talk.hears_session()["input_audio_transcription"].get("language") == code
        assert talk.protocol.config.language == code

    @pytest.mark.parametrize("language", ["de", "klingon", "xx-YY", "z" * 5000])
    def test_a_language_that_is_not_offered_is_refused_with_those_that_are(self, language: str) -> None:
        talk = Conversation()
        talk.updates(input_audio_transcription={"language": language})
        error = talk.hears_error("invalid_value", param="session.input_audio_transcription.language")
        assert error["message"].endswith("Supported values are: 'en', 'yue', 'zh'.")
        assert len(error["message"]) < 160

    @pytest.mark.parametrize(
        ("options", "param"),
        [
            ("whisper-1", ""),
            ({"language": 1}, ".language"),
            ({"corpus": "words"}, ".corpus"),
            ({"corpus": {"text": ["a"]}}, ".corpus.text"),
            ({"corpus_text": 1}, ".corpus_text"),
            ({"corpus_text": "x" * 11}, ".corpus_text"),
            ({"corpus": {"text": "x" * 11}}, ".corpus.text"),
        ],
    )
    def test_wrong_options_are_refused(self, options: object, param: str) -> None:
        talk = Conversation(max_context_chars=10)
        talk.updates(input_audio_transcription=options)
        talk.hears_error("invalid_value", param=f"session.input_audio_transcription{param}")
        talk.is_alive()

    @pytest.mark.parametrize(
        ("options", "context"),
        [
            ({"corpus": {"text": "Bulge Bracket"}}, "Bulge Bracket"),
            ({"corpus_text": "Bulge Bracket"}, "Bulge Bracket"),
            ({"corpus": {"text": "a"}, "corpus_text": "b"}, "a"),
            ({"corpus": {}, "corpus_text": "b"}, "b"),
            ({"corpus": {"text": "half \ud800 pair"}}, "half ? pair"),
        ],
    )
    def test_context_is_taken_from_either_key(self, options: dict[str, Any], context: str) -> None:
        talk = Conversation()
        talk.updates(input_audio_transcription=options)
        assert talk.hears_session()["input_audio_transcription"]["corpus"] == {"text": context}
        assert talk.protocol.config.context == context

    @pytest.mark.parametrize(
        ("change", "language", "context"),
        [
            ({"language": "en"}, "en", "words"),
            ({"language": None}, None, "words"),
            ({"corpus": None}, "zh", ""),
            ({"corpus": {}}, "zh", "words"),
            ({"corpus": {"text": None}}, "zh", ""),
            ({"corpus_text": ""}, "zh", ""),
            (None, None, ""),
        ],
    )
    def test_options_merge_and_null_resets(self, change: object, language: str | None, context: str) -> None:
        talk = Conversation()
        talk.updates(input_audio_transcription={"language": "zh", "corpus": {"text": "words"}})
        talk.hears_session()
        talk.updates(input_audio_transcription=change)
        echo = talk.hears_session()["input_audio_transcription"]
        assert (talk.protocol.config.language, talk.protocol.config.context) == (language, context)
        assert (echo is None) == (change is None)


class TestTurnDetection:
    def test_null_means_manual_mode(self) -> None:
        talk = Conversation()
        talk.updates(turn_detection=None)
        assert talk.hears_session()["turn_detection"] is None
        assert talk.protocol.config.turn_detection is None

    def test_it_comes_back_with_the_vendors_defaults(self) -> None:
        talk = Conversation()
        talk.updates(turn_detection={"silence_duration_ms": 400})
        talk.hears_session()
        talk.updates(turn_detection=None)
        talk.hears_session()
        talk.updates(turn_detection={"type": "server_vad"})
        shown = talk.hears_session()["turn_detection"]
        assert shown == DEFAULT_DETECTION | {"create_response": True, "interrupt_response": True}

    def test_the_answer_is_the_vendors(self) -> None:
        talk = Conversation()
        talk.updates(turn_detection={"type": "server_vad", "threshold": 0.2, "silence_duration_ms": 700})
        assert talk.hears_session()["turn_detection"] == {
            "type": "server_vad",
            "threshold": 0.2,
            "silence_duration_ms": 700,
            "create_response": True,
            "interrupt_response": True,
        }

    def test_padding_acts_and_is_shown_once_it_was_set(self) -> None:
        talk = Conversation()
        talk.updates(turn_detection={"prefix_padding_ms": 500})
        assert talk.hears_session()["turn_detection"]["prefix_padding_ms"] == 500
        assert talk.protocol.config.turn_detection == TurnDetection(0.5, 800, 500)
        talk.updates(turn_detection={"threshold": -1})
        assert talk.hears_session()["turn_detection"]["prefix_padding_ms"] == 500

    def test_null_inside_the_object_keeps_the_value(self) -> None:
        talk = Conversation()
        nothing = {"type": None, "threshold": None, "silence_duration_ms": None, "prefix_padding_ms": None}
        talk.updates(turn_detection=nothing)
        talk.hears_session()
        assert talk.protocol.config.turn_detection == TurnDetection(0.5, 800, 300)

    @pytest.mark.parametrize(
        ("wire", "probability"), [(-1, 0.05), (-0.4, 0.225), (0.0, 0.3417), (0.2, 0.4), (0.6, 0.675), (1, 0.95)]
    )
    def test_sensitivity_maps_to_a_probability(self, wire: float, probability: float) -> None:
        talk = Conversation(default_threshold=0.4)
        talk.updates(turn_detection={"threshold": wire})
        assert talk.hears_session()["turn_detection"]["threshold"] == wire
        detection = talk.protocol.config.turn_detection
        assert detection is not None
        assert detection.threshold == pytest.approx(probability, abs=1e-3)

    @pytest.mark.parametrize(
        ("field", "low", "high"),
        [("threshold", -1, 1), ("silence_duration_ms", 200, 6000), ("prefix_padding_ms", 0, 2000)],
    )
    def test_limits_are_inclusive(self, field: str, low: int, high: int) -> None:
        talk = Conversation()
        for good in (low, high, float(high)):
            talk.updates(turn_detection={field: good})
            assert talk.hears_session()["turn_detection"][field] == good
        for bad in (low - 1, high + 0.5, high + 1, 10**400, "1", True, [], {}):
            talk.updates(turn_detection={field: bad})
            error = talk.hears_error("invalid_value", param=f"session.turn_detection.{field}")
            assert f"A number from {low} to {high} is expected." in error["message"]
        talk.is_alive()

    def test_half_a_millisecond_is_refused(self) -> None:
        talk = Conversation()
        talk.updates(turn_detection={"silence_duration_ms": 400.5})
        error = talk.hears_error("invalid_value", param="session.turn_detection.silence_duration_ms")
        assert error["message"] == "Invalid value: 400.5. A whole number is expected."

    @pytest.mark.parametrize("type", ["semantic_vad", "none", 1])
    def test_only_server_vad_exists(self, type: object) -> None:
        talk = Conversation()
        talk.updates(turn_detection={"type": type})
        error = talk.hears_error("invalid_value", param="session.turn_detection.type")
        assert error["message"].endswith("Supported values are: 'server_vad'.")

    @pytest.mark.parametrize("detection", ["server_vad", False, []])
    def test_it_must_be_an_object_or_null(self, detection: object) -> None:
        talk = Conversation()
        talk.updates(turn_detection=detection)
        talk.hears_error("invalid_value", param="session.turn_detection")
