"""What the OpenAPI document says against what the server does: requests made from it, right ones and wrong ones.

Every door with a schema is asked, so a new one is too. A server error is a failure, unless it is a 503 that the door
documents; so is an answer with a status, a type or a form that the document does not have.
"""

import base64
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, note, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from qwen3_asr_server.frontends._app import create_app
from qwen3_asr_server.runtime.services import Services
from support.doors import SPEECH, assert_nothing_left
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.server import RunningServer, make_settings, running_server

DOCUMENT = create_app(make_settings(), Services(make_settings(), engine=FakeEngine(), vad=EnergyVad())).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
SPOKEN = schemathesis.openapi.from_dict(DOCUMENT)
SPOKEN.config.generation.update(modes=[schemathesis.GenerationMode.POSITIVE])
DATA_URL = f"data:audio/wav;base64,{base64.b64encode(SPEECH).decode()}"

COMMON = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
FORM = (
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server({"max_upload_bytes": 200_000}, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running
        assert_nothing_left(running)


def asked(case: Any, server: RunningServer) -> Any:
    """Send a request and judge the answer."""
    answer = case.call(base_url=server.http_url)
    told = answer.status_code == 503 and "503" in case.operation.definition.raw["responses"]
    case.validate_response(answer, checks=FORM if told else (*FORM, not_a_server_error))
    return answer


@SCHEMA.parametrize()
@settings(COMMON, max_examples=40)
def test_the_document_is_true(case: Any, server: RunningServer) -> None:
    asked(case, server)


def spoken(value: Any, name: str = "") -> Any:
    """Return a body with something to hear wherever it may hold audio, and a model and language that are there."""
    match name, value:
        case "file", _:
            return SPEECH
        case (("url" | "audio" | "data"), str()):
            return DATA_URL
        case "model", _:
            return "none"
        case "language", _:
            return "en"
        case _, dict():
            return {key: spoken(each, key) for key, each in value.items() if not (key == "url" and "file" in value)}
        case _, list():
            return [spoken(each, name) for each in value]
        case _:
            return value


@SPOKEN.include(method="POST").parametrize()
@settings(COMMON, max_examples=4)
def test_the_document_is_true_of_what_can_be_heard(case: Any, server: RunningServer) -> None:
    case.body = spoken(case.body)
    note(f"{case.method} {case.path}: {asked(case, server).status_code}")


def test_every_door_is_in_the_document() -> None:
    assert {"/api/transcribe", "/v1/audio/transcriptions", "/api/status", "/metrics"} <= set(DOCUMENT["paths"])
