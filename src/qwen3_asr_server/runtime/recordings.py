"""The recordings that are transcribed now: how many may be, and their end when the server ends.

Knows nothing of engines and files; the services own one.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from qwen3_asr_server.domain import SAMPLE_RATE
from qwen3_asr_server.errors import AsrServerError
from qwen3_asr_server.metrics import Metrics
from qwen3_asr_server.runtime.admission import Admission
from qwen3_asr_server.runtime.in_flight import InFlight
from qwen3_asr_server.runtime.offline import Recording


class Recordings:
    """Bound and watch recordings.

    Args:
        most: how many may be transcribed at once.
        metrics: where they are counted.
    """

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._admission = Admission(most, what="recordings")
        self._metrics = metrics
        self._open = InFlight[Recording]()
        metrics.recordings_open.set_function(lambda: len(self._open))

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place for one recording.

        Raises:
            Refused: over the limit.
            ShuttingDown: after `close`.
        """
        with self._admission.admit():
            yield

    @contextmanager
    def watch(self, recording: Recording) -> Iterator[Recording]:
        """Keep account of a recording for the length of the `with` block; then it holds nothing any more."""
        with self._open.hold(recording):
            try:
                yield recording
            finally:
                recording.close()
                self._metrics.recordings.labels("finished" if recording.finished else "aborted").inc()
                self._metrics.recorded_seconds.inc(recording.received / SAMPLE_RATE)

    def close(self) -> None:
        """Admit nobody any more."""
        self._admission.close()

    def end_all(self, error: AsrServerError) -> None:
        """End what still runs; whoever waits for a transcript gets the error."""
        for recording in self._open:
            recording.end(error)

    async def all_over(self) -> None:
        """Wait until none is left."""
        await self._open.all_over()
