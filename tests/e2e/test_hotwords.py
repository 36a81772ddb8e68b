"""What clients say beforehand reaches the model from every door, and never the text, though the model recites it."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from support.doors import CHAT, COMPATIBLE, OPENAI, REST, SPEECH, chat, data_url
from support.energy_vad import EnergyVad
from support.reciter import SAID, Reciter, reciting_engine
from support.server import RunningServer, running_server

FRUIT = {
    "durian": "doo ree an",
    "rambutan": "ram boo tan",
    "longan": "long an",
    "salak": "sa lak",
    "pomelo": "po me lo",
    "yuzu": "you zoo",
}
SOUNDING = [{"word": word, "sounds_like": [sounds]} for word, sounds in FRUIT.items()]
WEIGHTED = [{"text": word, "weight": 4, "lang": "en"} for word in FRUIT]
WITH_SOUNDS = ", ".join(f"{word} ({sounds})" for word, sounds in FRUIT.items())
WORDS = ", ".join(FRUIT)
AUDIO_URL = {"type": "audio_url", "audio_url": {"url": data_url(SPEECH)}}
INPUT_AUDIO = {"type": "input_audio", "input_audio": {"data": data_url(SPEECH)}}


def form(**fields: Any) -> dict[str, Any]:
    return {"files": {"file": SPEECH}, "data": fields}


def document(**fields: Any) -> dict[str, Any]:
    return {"json": {"url": data_url(SPEECH), **fields}}


def message(part: Any = INPUT_AUDIO, *system: Any, **fields: Any) -> dict[str, Any]:
    body = chat(part, **fields)
    return {"json": body | {"messages": [*({"role": "system", "content": text} for text in system), *body["messages"]]}}


SENT: dict[str, tuple[str, dict[str, Any], str]] = {
    "form": (REST, form(custom_vocabulary_word=json.dumps(SOUNDING)), WITH_SOUNDS),
    "JSON": (REST, document(custom_vocabulary_word=SOUNDING), WITH_SOUNDS),
    "JSON in JSON": (REST, document(custom_vocabulary_word=json.dumps(SOUNDING)), WITH_SOUNDS),
    "weights in a form": (REST, form(vocabulary=json.dumps(WEIGHTED)), WORDS),
    "weights": (REST, document(vocabulary=WEIGHTED), WORDS),
    "weights by word": (REST, document(vocabulary=dict.fromkeys(FRUIT, 3)), WORDS),
    "corpus": (REST, document(corpus={"text": WORDS}), WORDS),
    "corpus in a form": (REST, form(corpus=json.dumps({"text": WORDS})), WORDS),
    "context": (REST, form(context=WORDS), WORDS),
    "events": (REST, form(stream="true", vocabulary=json.dumps(WEIGHTED)), WORDS),
    "initial context": (REST, form(initial_context=WORDS), WORDS),
    "prompt": (OPENAI, form(prompt=WORDS), WORDS),
    "keywords": (OPENAI, form(**{"keywords[]": [*FRUIT]}), WORDS),
    "keywords without brackets": (OPENAI, form(keywords=[*FRUIT]), WORDS),
    "at OpenAI's door": (OPENAI, form(custom_vocabulary_word=json.dumps(SOUNDING), stream="true"), WITH_SOUNDS),
    "chat": (CHAT, message(AUDIO_URL, asr_options={"custom_vocabulary_word": SOUNDING}), WITH_SOUNDS),
    "chat stream": (CHAT, message(stream=True, asr_options={"vocabulary": WEIGHTED}), WORDS),
    "system message": (COMPATIBLE, message(INPUT_AUDIO, WORDS), WORDS),
    "chat corpus": (COMPATIBLE, message(asr_options={"corpus": {"text": WORDS}}), WORDS),
    "extra_body": (COMPATIBLE, message(extra_body={"asr_options": {"vocabulary": WEIGHTED}}), WORDS),
}


@pytest.fixture(scope="module")
def model() -> Reciter:
    return Reciter()


@pytest.fixture(scope="module")
def server(model: Reciter) -> Iterator[RunningServer]:
    with running_server(engine=reciting_engine(model), vad=EnergyVad()) as running:
        yield running


@pytest.mark.parametrize("name", SENT)
def test_hotwords_reach_the_engine(server: RunningServer, model: Reciter, name: str) -> None:
    door, sent, context = SENT[name]
    model.contexts.clear()
    answer = httpx.post(server.http_url + door, trust_env=False, timeout=60, **sent)
    assert answer.status_code == 200, answer.text
    assert context in model.contexts
    assert SAID in answer.text
    assert not [word for word in FRUIT if word in answer.text]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (REST, form(custom_vocabulary_word="durian"), "custom_vocabulary_word is not valid JSON."),
    (REST, document(vocabulary=[{"text": "durian", "weight": "much"}]), "vocabulary[0].weight is a number."),
    (REST, document(corpus={"text": ["durian"]}), "corpus.text is a string."),
    (OPENAI, form(vocabulary="5"), "vocabulary is a list of words."),
    (
        CHAT,
        message(asr_options={"custom_vocabulary_word": 5}),
        "asr_options.custom_vocabulary_word is a list of words.",
    ),
]


@pytest.mark.parametrize(("door", "sent", "said"), WRONG)
def test_what_is_wrong_with_hotwords_is_said(server: RunningServer, door: str, sent: Any, said: str) -> None:
    answer = httpx.post(server.http_url + door, trust_env=False, timeout=60, **sent)
    assert answer.status_code == 400
    assert answer.json().get("error", answer.json())["message"] == said
