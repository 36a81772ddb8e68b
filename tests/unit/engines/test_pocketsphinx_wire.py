"""Messages between the embedded engine and its decoder processes."""

from hypothesis import given
from hypothesis import strategies as st

from qwen3_asr_server.engines._pocketsphinx_wire import HEADER, Ask, Report, Told, message

words = st.tuples(st.text(), st.integers(0, 10_000), st.integers(0, 10_000), st.none() | st.floats(0, 1))


@given(st.text(), st.lists(words))
def test_a_report_survives_the_way(text: str, words: list[tuple[str, int, int, float | None]]) -> None:
    report = Report(text, words)
    assert Report.from_body(report.to_body()) == report


@given(st.integers(0, 2**32 - 1), st.sampled_from([*Ask, *Told]), st.binary(max_size=100))
def test_a_message_says_how_long_it_is(number: int, code: int, body: bytes) -> None:
    data = message(number, code, body)
    assert HEADER.unpack_from(data) == (number, code, len(body))
    assert data[HEADER.size :] == body
