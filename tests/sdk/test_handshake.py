"""The opening request: which headers, keys, origins and addresses open a session, and how a refusal looks."""

import json

import pytest
from websockets.exceptions import InvalidStatus

from support.process import ServerProcess
from support.raw_client import raw_client
from support.sdk_client import MODEL

API_KEY = "sk-0123456789"


async def opens(url: str, **options: object) -> bool:
    async with raw_client(url, **options) as client:
        return (await client.read_until("session.created"))["session"]["model"] is not None


async def refusal(url: str, **options: object) -> tuple[int, dict[str, str]]:
    """Connect, expect to be refused, and return the status and the JSON body."""
    with pytest.raises(InvalidStatus) as caught:
        await opens(url, **options)
    response = caught.value.response
    assert response.headers["Content-Type"].startswith("application/json")
    body: dict[str, str] = json.loads(response.body)
    assert body.keys() == {"code", "message", "request_id"}
    return response.status_code, body


@pytest.mark.parametrize("scheme", ["bearer", "Bearer", "BEARER"])
async def test_the_key_opens_whatever_the_case_of_bearer(guarded_server: ServerProcess, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {API_KEY}"}
    assert await opens(f"{guarded_server.url}?model={MODEL}", additional_headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer sk-wrong"},
        {"Authorization": f"Basic {API_KEY}"},
        {"Authorization": API_KEY},
        {"Authorization": f"Bearer {API_KEY}x"},
    ],
    ids=["missing", "empty", "no key", "wrong key", "other scheme", "no scheme", "longer key"],
)
async def test_without_the_key_the_upgrade_is_refused(guarded_server: ServerProcess, headers: dict[str, str]) -> None:
    status, body = await refusal(f"{guarded_server.url}?model={MODEL}", additional_headers=headers)
    assert (status, body["code"]) == (401, "InvalidApiKey")
    assert API_KEY not in body["message"]


async def test_without_keys_everyone_may_come_in(server: ServerProcess) -> None:
    assert await opens(f"{server.url}?model={MODEL}")
    assert await opens(f"{server.url}?model={MODEL}", additional_headers={"Authorization": "bearer any"})


async def test_the_origin_of_this_host_is_welcome(server: ServerProcess) -> None:
    """The SDK sends one, made of the address it was given."""
    assert await opens(f"{server.url}?model={MODEL}", origin=f"http://127.0.0.1:{server.port}")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1"])
async def test_other_origins_are_refused(server: ServerProcess, origin: str) -> None:
    status, body = await refusal(f"{server.url}?model={MODEL}", origin=origin)
    assert (status, body["code"]) == (403, "AccessDenied")


@pytest.mark.parametrize(
    "tail",
    [
        f"?model={MODEL}",
        f"/?model={MODEL}",
        f"?model={MODEL}-2026-02-10",
        f"?model={MODEL}&user=me&x=",
        f"?a=b&model={MODEL}",
        f"?a=b?model={MODEL}",
        "?model=",
        "",
    ],
)
async def test_addresses_that_open(server: ServerProcess, tail: str) -> None:
    assert await opens(server.url + tail)


async def test_headers_of_other_clients_are_ignored(server: ServerProcess) -> None:
    headers = {
        "OpenAI-Beta": "realtime=v1",
        "X-DashScope-WorkSpace": "ws-1",
        "X-DashScope-DataInspection": "enable",
        "x-dashscope-sdk-client": "python-sdk/2.0.2/audio",
    }
    assert await opens(f"{server.url}?model={MODEL}", additional_headers=headers)


async def test_a_model_nobody_has_is_told_and_closed(server: ServerProcess) -> None:
    async with raw_client(f"{server.url}?model=gpt-unknown") as client:
        error = (await client.read_until("error"))["error"]
        await client.socket.wait_closed()
    assert error["code"] == "Model.NotExist"
    assert client.socket.close_code == 1008
