"""Clients that speak at real time and note when what they hear comes back.

`VadClient` talks to this server in VAD mode. `RealtimeClient` talks to vLLM's own `/v1/realtime`, which finds no
endpoints and keeps old text in a connection: it gets a connection for each utterance, opened beforehand, and is told
where speech begins and, after the same silence, that it has ended. Both turn into `Utterance`s, with the same clock and
the same meaning of every time. Used by `streaming.py`.
"""

import asyncio
import base64
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np
from _load import COMPLETED, OPEN_TIMEOUT_S, PARTIAL, STARTED, STOPPED, Session, Transcript
from _speech import PACKET_SAMPLES, masked_frame
from _tiny_speech import RATE, Spoken, Talk

LEAD_SAMPLES = 3 * RATE // 10
"""Audio sent before the speech of an utterance to a server that cannot look back."""


@dataclass(slots=True)
class Utterance:
    """One utterance, all times in seconds on `time.perf_counter`; None where something never came."""

    spoken_begin: float
    """When the packet with its first audible sample was sent."""
    spoken_end: float
    """When the packet with its last audible sample was sent."""
    partials: list[float] = field(default_factory=list)
    endpoint: float | None = None
    """When the end of speech was certain: `speech_stopped` came, or the client said so."""
    final: float | None = None
    text: str = ""


class Client(Protocol):
    """A session that is played packet by packet."""

    async def open(self) -> None:
        """Connect and configure."""
        ...

    def send(self, packet: int) -> None:
        """Send the next packet of 100 ms."""
        ...

    async def finish(self) -> None:
        """Wait for what is still to come, and end."""
        ...

    @property
    def dropped(self) -> bool:
        """The server ended a connection too early, or never answered."""
        ...

    def utterances(self) -> list[Utterance]:
        """Return what was heard."""
        ...


class VadSession(Session):
    """Keeps every event with the time of its arrival."""

    def __init__(self) -> None:
        super().__init__()
        self.arrived: list[tuple[float, dict]] = []

    def receive(self, event: dict, now: float) -> None:
        """Take an event in."""
        super().receive(event, now)
        self.arrived.append((now, event))


class VadClient:
    """A session with this server."""

    def __init__(self, port: int, talk: Talk, silence_ms: int) -> None:
        self._port = port
        self._talk = talk
        self._silence_ms = silence_ms
        self._frames = append_frames(talk)
        self._session: VadSession
        self.transcript = Transcript()

    async def open(self) -> None:
        """Connect and configure."""
        loop = asyncio.get_running_loop()
        _, self._session = await loop.create_connection(VadSession, "127.0.0.1", self._port)
        await self._session.open(self._silence_ms)

    def send(self, packet: int) -> None:
        """Send the next packet."""
        self._session.append(self._frames[packet])

    async def finish(self) -> None:
        """Have the server finish."""
        self.transcript = await self._session.finish()

    @property
    def dropped(self) -> bool:
        """The server ended the connection too early, or never answered."""
        return self.transcript.dropped

    def utterances(self) -> list[Utterance]:
        """Return what was said, with the events of the items that overlap it."""
        return match(self._talk.utterances, self._session.arrived, self.transcript.sent_at)


class RealtimeSession(Session):
    """One utterance by vLLM's realtime protocol."""

    path = "/v1/realtime"
    last_event = "transcription.done"

    def __init__(self) -> None:
        super().__init__()
        self.partials: list[float] = []
        self.endpoint: float | None = None
        self.final: float | None = None
        self.text = ""

    async def begin(self) -> None:
        """Wait for the greeting and name the model."""
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            await self._seen["session.created"]
        self.say({"type": "session.update", "model": "tiny"})

    def commit(self, *, final: bool) -> None:
        """Have the transcription begin, or say that there is no more audio."""
        self.say({"type": "input_audio_buffer.commit", "final": final})
        if final:
            self.endpoint = time.perf_counter()

    def receive(self, event: dict, now: float) -> None:
        """Take an event in."""
        super().receive(event, now)
        if event["type"] == "transcription.delta" and event["delta"]:
            self.partials.append(now)
        elif event["type"] == self.last_event:
            self.final, self.text = now, event["text"]

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the end of the transcription and hang up; tells whether it came."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._seen[self.last_event]
        except (ConnectionError, TimeoutError):
            return False
        finally:
            self.transport.abort()
        return True


class RealtimeClient:
    """A session with vLLM's own server."""

    def __init__(self, port: int, talk: Talk, silence_ms: int) -> None:
        self._port = port
        self._talk = talk
        self._frames = append_frames(talk)
        after = silence_ms * RATE // 1000
        self._spans = [
            (max(0, spoken.begin - LEAD_SAMPLES) // PACKET_SAMPLES, (spoken.end + after) // PACKET_SAMPLES)
            for spoken in talk.utterances
        ]
        """First and last packet of each utterance."""
        self._sessions: list[RealtimeSession] = []
        self._sent_at: list[float] = []
        self.dropped = False

    async def open(self) -> None:
        """Connect once for each utterance."""
        loop = asyncio.get_running_loop()
        for _ in self._spans:
            _, session = await loop.create_connection(RealtimeSession, "127.0.0.1", self._port)
            await session.begin()
            self._sessions.append(session)

    def send(self, packet: int) -> None:
        """Send the next packet to whoever hears the utterance that it belongs to."""
        self._sent_at.append(time.perf_counter())
        for session, (first, last) in zip(self._sessions, self._spans, strict=True):
            if first <= packet <= last:
                session.append(self._frames[packet])
            if packet == first:
                session.commit(final=False)
            if packet == last:
                session.commit(final=True)

    async def finish(self) -> None:
        """Wait for every transcription."""
        waits = [session.wait(60) for session, (_, last) in zip(self._sessions, self._spans, strict=True)]
        self.dropped = not all(await asyncio.gather(*waits))

    def utterances(self) -> list[Utterance]:
        """Return what was said and what came of it."""
        return [
            Utterance(
                *_spoken_at(spoken, self._sent_at), session.partials, session.endpoint, session.final, session.text
            )
            for spoken, session in zip(self._talk.utterances, self._sessions, strict=True)
        ]


def append_frames(talk: Talk) -> list[bytes]:
    """Return the talk as masked frames of 100 ms."""
    pcm = (talk.samples * 32767).astype("<i2")
    pcm = np.pad(pcm, (0, -len(pcm) % PACKET_SAMPLES))
    return [
        masked_frame(
            json.dumps(
                {
                    "event_id": f"event_{at}",
                    "type": "input_audio_buffer.append",
                    "audio": base64.b64encode(pcm[at : at + PACKET_SAMPLES].tobytes()).decode(),
                }
            )
        )
        for at in range(0, len(pcm), PACKET_SAMPLES)
    ]


def match(spoken: Sequence[Spoken], arrived: Sequence[tuple[float, dict]], sent_at: Sequence[float]) -> list[Utterance]:
    """Give each spoken utterance the events of the items that began in it.

    An utterance that the server heard as several items ends with the last of them.

    Args:
        spoken: where the speech is.
        arrived: events of this server with the times of their arrival.
        sent_at: when each packet was sent.
    """
    found = [Utterance(*_spoken_at(one, sent_at)) for one in spoken]
    owners: dict[str, Utterance] = {}
    for at, event in arrived:
        kind = event["type"]
        item = cast(str, event.get("item_id"))
        if kind == STARTED:
            begin = event["audio_start_ms"] * RATE // 1000
            owners[item] = found[max(0, sum(one.begin <= begin + LEAD_SAMPLES for one in spoken) - 1)]
        owner = owners.get(item)
        if owner is None:
            continue
        if kind == PARTIAL:
            owner.partials.append(at)
        elif kind == STOPPED:
            owner.endpoint = at
        elif kind == COMPLETED:
            owner.final = at
            owner.text = f"{owner.text} {event['transcript']}".strip()
    return found


def _spoken_at(spoken: Spoken, sent_at: Sequence[float]) -> tuple[float, float]:
    return sent_at[spoken.begin // PACKET_SAMPLES], sent_at[(spoken.end - 1) // PACKET_SAMPLES]
