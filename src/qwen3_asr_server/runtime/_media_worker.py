"""The process that decodes one file: `python -m qwen3_asr_server.runtime._media_worker`.

Decoders of media formats are large, written in C and fed by strangers, so they run here and not in the server. The file
is standard input; nothing else can be opened once it is: no file, no socket, not even by a playlist. Audio goes to
standard output as it is decoded, and waits when nobody reads. Processor time is granted as audio comes, memory is
limited, and on Linux the kernel ends this process with its parent.

It knows neither where the file came from nor what the audio is for. Started by `media`, the other end of `_media_wire`.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from io import BytesIO
from math import ceil
from typing import BinaryIO, Final

import av
import av.subtitles.stream
import numpy as np

from qwen3_asr_server.runtime._media_track import FaultError, Mixer, Track, planes_of
from qwen3_asr_server.runtime._media_wire import Ended, Fault, Message, Task, packed

OPEN_FILES: Final = 5
"""The three standard ones, the one for answers, and FFmpeg's own handle on standard input."""

NICENESS: Final = 10
"""A recording is decoded far faster than it is recognised, and live sessions should not feel it."""


def main() -> None:
    """Decode standard input to standard output."""
    task = Task(**json.loads(sys.argv[1]))
    answers = _take_over_output()
    try:
        _die_with_parent()
        _rehearse()
        _lock_in(task)
        _serve(task, answers)
    except BrokenPipeError:
        os._exit(0)
    # Not the interpreter's own way out: after a hostile file the libraries' clean-up is not to be trusted.
    os._exit(0)


def _serve(task: Task, answers: BinaryIO) -> None:
    try:
        track = Track(task)
        _send(answers, track.opened)
        for block in track.blocks():
            _grant_time(task, track.heard_s)
            _send(answers, block.tobytes())
        _send(answers, Ended(track.cut_short))
    except FaultError as given_up:
        _send(answers, given_up.fault)
    except MemoryError:
        _send(answers, Fault.MEMORY)


def _rehearse() -> None:
    """Decode a moment of silence: it loads what the libraries would load later, when nothing can be opened."""
    file = BytesIO()
    with av.open(file, "w", format="wav") as written:
        stream = written.add_stream("pcm_s16le", rate=8_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8_000
        written.mux(stream.encode(frame))
        written.mux(stream.encode(None))
    file.seek(0)
    mixer = Mixer(1)
    with av.open(file, "r") as container:
        blocks = [block for frame in container.decode(audio=0) for block in mixer.take(planes_of(frame), 8_000)]
    assert sum(block.shape[1] for block in [*blocks, *mixer.end()]) == 1_600


def _lock_in(task: Task) -> None:
    """Give up everything that decoding does not need, and the precedence of the server's own work."""
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    # On Linux the share that the libraries have mapped already does not count.
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as sizes:  # noqa: PTH123
            mapped = int(sizes.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + task.memory_bytes,) * 2)
    spent_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    first_s, all_s = spent_s + task.cpu_s, spent_s + task.cpu_s + task.max_audio_s / task.speed
    resource.setrlimit(resource.RLIMIT_CPU, (ceil(first_s), ceil(all_s) + 1))


def _grant_time(task: Task, heard_s: float) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    earned = ceil(task.cpu_s + heard_s / task.speed)
    if earned > soft:
        resource.setrlimit(resource.RLIMIT_CPU, (min(earned, hard), hard))


def _die_with_parent() -> None:
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _take_over_output() -> BinaryIO:
    """Keep standard output for answers: whatever a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return answers


def _send(answers: BinaryIO, message: Message) -> None:
    data = memoryview(packed(message))
    while data:
        data = data[answers.write(data) :]


if __name__ == "__main__":
    main()
