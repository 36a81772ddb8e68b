"""What cannot be read, and what a client is told about it.

Called by the decoder.
"""

from typing import Final, NoReturn, assert_never

import numpy as np

from qwen3_asr_server.audio.containers import Container
from qwen3_asr_server.domain import AudioEncoding, Samples
from qwen3_asr_server.errors import InvalidAudio

_BEGINNINGS: Final = {
    Container.MP3: (AudioEncoding.MP3, AudioEncoding.AAC),
    Container.AMR: (AudioEncoding.AMR,),
}


class Refused:
    """A stream that cannot be read.

    Args:
        message: says why, and what may be sent.
    """

    broken: Final = True
    all_came: Final = True
    ended: Final = True

    def __init__(self, message: str) -> None:
        self._message = message

    def decode(self, data: bytes) -> NoReturn:
        """Refuse these bytes.

        Raises:
            InvalidAudio: always.
        """
        raise InvalidAudio(self._message, param="audio")

    def flush(self) -> Samples:
        """Return no audio."""
        return np.empty(0, np.float32)


def begins_as(container: Container, announced: AudioEncoding) -> bool:
    """Tell whether what was announced may begin so: with the tag of an MP3 file, also AAC may."""
    return announced in _BEGINNINGS.get(container, ())


def refusal(container: Container, announced: AudioEncoding) -> str:
    """Tell what may be sent instead."""
    match announced:
        case AudioEncoding.PCM | AudioEncoding.OPUS:
            send = "16-bit pcm, a WAV file, opus packets or Ogg Opus"
        case AudioEncoding.MP3 | AudioEncoding.AMR:
            send = f"{announced.name} as announced, a WAV file or Ogg Opus"
        case AudioEncoding.AAC:
            send = "AAC as ADTS frames, a WAV file or Ogg Opus"
        case AudioEncoding.SPEEX:
            send = "Speex in Ogg, a WAV file or Ogg Opus"
        case _:
            assert_never(announced)
    match container:
        case Container.MP3 | Container.AMR:
            hint = f" Where the protocol has a format {container.name.lower()}, announce that."
        case Container.MP4:
            hint = " MP4 and M4A files can be sent as recordings only."
        case _:
            hint = ""
    return f"The audio looks like {container.value}. Send {send}.{hint}"
