"""An Ogg stream of Opus or Speex to mono float32 at 16 kHz, as its bytes arrive.

The header on a stream's first page says what is in it, whatever a client announced. A stream may follow another one,
also of the other codec.

It knows no session. Called by the decoder; heavy enough that the driver does that on a worker thread.
"""

from collections.abc import Iterator
from contextlib import suppress

from qwen3_asr_server.audio.ogg import OggPage, OggReader
from qwen3_asr_server.audio.opus import OPUS_HEAD, OpusPages
from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.audio.resample import AnyRateResampler
from qwen3_asr_server.audio.speex import SPEEX_HEAD, SpeexPages
from qwen3_asr_server.domain import Samples
from qwen3_asr_server.errors import InvalidAudio


class OggAudio:
    """Decode an Ogg stream; the audio of a page comes when the page is complete.

    Args:
        max_append_s: longest audio in one message, in seconds. Decoding stops at the page that passes it.
    """

    def __init__(self, max_append_s: float) -> None:
        self._max_append_s = max_append_s
        self._reader = OggReader()
        self._resampler = AnyRateResampler()
        self._content: OpusPages | SpeexPages | None = None
        self._foreign = False
        self._ended = False

    @property
    def broken(self) -> bool:
        """It is no Ogg stream that can be read (any more); every `decode` raises."""
        return self._foreign or self._reader.broken

    @property
    def all_came(self) -> bool:
        """The last page of the stream has been read."""
        return self._ended

    @property
    def ended(self) -> bool:
        """The last page of the stream has been read."""
        return self._ended

    def decode(self, data: bytes) -> Samples:
        """Decode the pages that these bytes complete.

        Raises:
            InvalidAudio: a packet cannot be read, or there is too much audio: the audio of this message and
                what was held back before it are dropped, and the stream goes on. Or the stream is `broken`.
        """
        if self.broken:
            raise InvalidAudio("the Ogg stream could not be read before")
        pages = self._reader.feed(data)
        try:
            return self._resampler.take(self._decode_pages(pages), self._max_append_s)
        except InvalidAudio:
            self._resampler.flush()
            with suppress(InvalidAudio):
                for page in pages:
                    self._ended = page.last
            raise

    def flush(self) -> Samples:
        """Return what the resampler holds back. An incomplete page waits for its other bytes."""
        return self._resampler.flush()

    def _decode_pages(self, pages: Iterator[OggPage]) -> Iterator[tuple[int, Waveform]]:
        """Yield page by page: at 48 kHz, a long message would take three times the memory."""
        for page in pages:
            self._ended = page.last
            if page.first:
                self._content = self._begin(page)
            elif self._content is not None:
                yield self._content.sample_rate, self._content.decode(page)

    def _begin(self, page: OggPage) -> OpusPages | SpeexPages:
        """Read the header, which fills the first page of a stream."""
        head = page.packets[0] if page.packets else b""
        try:
            if head.startswith(OPUS_HEAD):
                return OpusPages(head)
            if head.startswith(SPEEX_HEAD):
                return SpeexPages(head)
            raise InvalidAudio("the Ogg stream is not Opus or Speex")
        except InvalidAudio:
            self._foreign = True
            raise
