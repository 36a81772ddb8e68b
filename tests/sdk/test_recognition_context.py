"""`Recognition.update_context`, in newer SDKs: the context of what is still to be said."""

from typing import Any

import pytest
from dashscope.common.error import InvalidParameter

from support import speech
from support.recognition_sdk import CONTEXT, assert_sentences, recognition, send, text_of
from support.recorded_sdk import SAMPLES

pytestmark = [pytest.mark.sdk, pytest.mark.usefixtures("pointed_at_tasks")]


def test_a_context_while_it_runs() -> None:
    """It is taken, and the embedded engine makes nothing of it."""
    pcm = speech.pcm16(SAMPLES)
    heard = []
    for contexts in ([], [CONTEXT, {"context": []}, CONTEXT, {"unknown": 1}]):
        with recognition() as (client, listener):
            client.start()
            for number, context in enumerate(contexts):
                client.update_context(context)
                send(client, pcm[3_200 * number :][:3_200])
            send(client, pcm[3_200 * len(contexts) :])
            client.stop()
        assert_sentences(listener.finals)
        heard.append(text_of(listener.finals))
    assert heard[0] == heard[1]


@pytest.mark.parametrize(
    ("context", "word"),
    [
        ({"context": "Conferences"}, "payload.input.context"),
        ({"context": [1]}, "payload.input.context[0]"),
        ({"context": [{"role": "user", "content": "x" * 50_000}]}, "payload.input.context"),
    ],
    ids=["no list", "no message", "too long"],
)
def test_a_context_that_is_none_fails_the_task(context: dict[str, Any], word: str) -> None:
    with recognition() as (client, listener):
        client.start()
        client.update_context(context)
        listener.wait_for("close")
        with pytest.raises(InvalidParameter):
            client.update_context(CONTEXT)
    (failure,) = listener.failures
    assert (failure.status_code, failure.code) == (44, "InvalidParameter")
    assert word in failure.message
    assert listener.calls == ["open", "error", "close"]
