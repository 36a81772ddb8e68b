"""Opus to mono float32 at 16 kHz: bare packets, or a stream in Ogg (RFC 7845).

libopus (in PyAV's wheel) decodes at 48 kHz whatever the encoder was fed with and mixes stereo down, then
`resample` brings it to 16 kHz. In Ogg the pre-skip, the output gain and the end position are honoured,
page by page, so that the audio does not depend on how the bytes arrive.

Called by the decoder; heavy enough that the driver does that on a worker thread.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import av
import numpy as np
from av.error import FFmpegError

from qwen3_asr_server.audio.ogg import OggPage, OggReader
from qwen3_asr_server.audio.pcm import Waveform
from qwen3_asr_server.audio.resample import Resampler
from qwen3_asr_server.domain import Samples
from qwen3_asr_server.errors import InvalidAudio

OPUS_RATE: Final = 48_000
"""Hz. The rate of the decoder and of every position in an Ogg Opus stream."""

_HEAD: Final = struct.Struct("<8sBBHIhB")
_TAGS: Final = b"OpusTags"  # no audio packet begins so: "Op" would claim 48 frames of 20 ms, the limit is 120 ms


class OpusPackets:
    """Decode bare packets, one a message; each holds at most 120 ms."""

    broken: Final = False
    all_came: Final = False
    ended: Final = False

    def __init__(self) -> None:
        self._codec = _OpusCodec()
        self._resampler = Resampler(OPUS_RATE)

    def decode(self, data: bytes) -> Samples:
        """Decode one packet.

        Raises:
            InvalidAudio: these bytes are no opus packet; the next one is read as usual.
        """
        return self._resampler.process(self._codec.decode([data]))

    def flush(self) -> Samples:
        """Return what the resampler holds back. The next packet is decoded as the follower of the last."""
        return self._resampler.flush()


class OggOpus:
    """Decode an Ogg stream as its bytes arrive; the audio of a page comes when the page is complete.

    Args:
        max_append_s: longest audio in one message, in seconds. Decoding stops at the page that passes it.
    """

    def __init__(self, max_append_s: float) -> None:
        self._max_append_s = max_append_s
        self._reader = OggReader()
        self._codec = _OpusCodec()
        self._resampler = Resampler(OPUS_RATE)
        self._foreign = False
        self._ended = False
        self._gain = 1.0
        self._to_skip = 0
        self._granule = 0

    @property
    def broken(self) -> bool:
        """It is no Ogg Opus stream (any more); every `decode` raises."""
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
            return self._decode_pages(pages)
        except InvalidAudio:
            self._resampler.flush()
            with suppress(InvalidAudio):
                for page in pages:
                    self._ended = page.last
            raise

    def flush(self) -> Samples:
        """Return what the resampler holds back. An incomplete page waits for its other bytes."""
        return self._resampler.flush()

    def _decode_pages(self, pages: Iterator[OggPage]) -> Samples:
        """Resample page by page: at 48 kHz, a long message would take three times the memory."""
        parts, decoded = [np.empty(0, np.float32)], 0
        for page in pages:
            self._ended = page.last
            if page.first:
                self._begin(page)
                continue
            samples = self._decode_page(page)
            decoded += len(samples)
            if decoded > self._max_append_s * OPUS_RATE:
                raise InvalidAudio(f"more than {self._max_append_s:g} s of audio in one message")
            parts.append(self._resampler.process(samples))
        return np.concatenate(parts)

    def _begin(self, page: OggPage) -> None:
        """Read the identification header, which fills the first page of a stream."""
        head = page.packets[0] if page.packets else b""
        if len(head) < _HEAD.size or not head.startswith(b"OpusHead"):
            self._foreign = True
            raise InvalidAudio("the Ogg stream is not Opus")
        _, version, channels, self._to_skip, _, gain_q8_db, mapping = _HEAD.unpack_from(head)
        if version >= 16 or not 1 <= channels <= 2 or mapping != 0:
            self._foreign = True
            raise InvalidAudio("unsupported Ogg Opus stream: only mono and stereo can be read")
        self._gain = 10 ** (gain_q8_db / 256 / 20)
        self._granule = 0
        self._codec.reset()

    def _decode_page(self, page: OggPage) -> Waveform:
        samples = self._codec.decode([packet for packet in page.packets if packet and not packet.startswith(_TAGS)])
        if page.last and self._granule <= page.granule:
            samples = samples[: page.granule - self._granule]
        self._granule = max(self._granule, page.granule)
        skipped = min(self._to_skip, len(samples))
        self._to_skip -= skipped
        louder: Waveform = samples[skipped:] * np.float32(self._gain)
        return louder.clip(-1, 1)


class _OpusCodec:
    """libopus: packets in, mono at 48 kHz out."""

    def __init__(self) -> None:
        self._context = av.CodecContext.create("libopus", "r")
        self._context.layout = "mono"

    def decode(self, packets: Iterable[bytes]) -> Waveform:
        """Decode packets that follow one another; none may be empty."""
        parts = [np.empty(0, np.int16)]
        try:
            for packet in packets:
                parts += [frame.to_ndarray()[0] for frame in self._context.decode(av.Packet(packet))]
        except FFmpegError as error:
            raise InvalidAudio("an opus packet that cannot be decoded") from error
        samples: Waveform = np.concatenate(parts).astype(np.float32) / np.float32(2**15)
        return samples

    def reset(self) -> None:
        """Forget the stream so far."""
        self._context.flush_buffers()
