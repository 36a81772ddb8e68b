"""Leave to store a file: only as it was signed, and only for its time."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.errors import Forbidden
from qwen3_asr_server.frontends._upload_policy import POLICY_TTL_S, UploadPolicies


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_a_policy_is_what_was_signed() -> None:
    policies = UploadPolicies()
    policy, text, signature = policies.issue(1_000)
    assert policies.check(text, signature) == policy
    assert policy.max_bytes == 1_000
    assert policies.issue(1_000)[0].folder != policy.folder


def test_a_policy_ends() -> None:
    clock = Clock()
    policies = UploadPolicies(clock)
    policy, text, signature = policies.issue(1_000)
    clock.now += POLICY_TTL_S - 0.001
    assert policies.check(text, signature) == policy
    clock.now += 0.001
    with pytest.raises(Forbidden, match="expired"):
        policies.check(text, signature)


@pytest.mark.parametrize("field", ["folder", "max_bytes", "expires"])
def test_no_field_can_be_changed(field: str) -> None:
    policies = UploadPolicies()
    _, text, signature = policies.issue(1_000)
    values = json.loads(base64.urlsafe_b64decode(text))
    forged = base64.urlsafe_b64encode(json.dumps(values | {field: 10**10}).encode()).decode()
    with pytest.raises(Forbidden):
        policies.check(forged, signature)


def test_another_server_has_another_secret() -> None:
    _, text, signature = UploadPolicies().issue(1_000)
    with pytest.raises(Forbidden):
        UploadPolicies().check(text, signature)


@given(st.text(), st.text())
def test_anything_else_is_refused(text: str, signature: str) -> None:
    with pytest.raises(Forbidden):
        UploadPolicies().check(text, signature)
