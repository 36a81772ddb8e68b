"""What the OpenAPI document says against what the server does: requests made from it, right ones and wrong ones.

Every door with a schema is asked, so a new one is too. A server error is a failure, unless it is a 503 that the door
documents; so is an answer with a status, a type or a form that the document does not have.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from qwen3_asr_server.frontends._app import create_app
from qwen3_asr_server.runtime.services import Services
from support.doors import assert_nothing_left
from support.energy_vad import EnergyVad
from support.fake_engine import FakeEngine
from support.server import RunningServer, make_settings, running_server

EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "40"))
DOCUMENT = create_app(make_settings(), Services(make_settings(), engine=FakeEngine(), vad=EnergyVad())).openapi()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server({"max_upload_bytes": 100_000}, engine=FakeEngine(), vad=EnergyVad()) as running:
        yield running
        assert_nothing_left(running)


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_document_is_true(case: Any, server: RunningServer) -> None:
    answer = case.call(base_url=server.http_url)
    expected_503 = answer.status_code == 503 and "503" in case.operation.definition.raw["responses"]
    case.validate_response(
        answer,
        checks=(
            status_code_conformance,
            content_type_conformance,
            response_headers_conformance,
            response_schema_conformance,
        )
        + (() if expected_503 else (not_a_server_error,)),
    )


def test_every_door_is_in_the_document() -> None:
    assert {"/api/transcribe", "/v1/audio/transcriptions", "/api/status", "/metrics"} <= set(DOCUMENT["paths"])
