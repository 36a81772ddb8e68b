"""What a realtime session does, for every protocol: commands and outcomes in, events and jobs out.

Theory of operation
-------------------
Audio is appended to a timeline. VAD jobs score it frame by frame; the scored *frontier* is the only clock
of the session, so that nothing depends on packet sizes, pacing or scheduling. Frames go through the
segmenter, whose marks open, pause and end items and pieces.

Commands that belong to a place in the audio (commit, clear, finish, a new configuration) wait as
*markers* until the frontier reaches the place where they came. A marker that ends audio also ends the
*track*: the last frame is filled up with silence and the VAD starts afresh, so items cannot influence
one another.

What is decoded, and what the client is told of it, is the business of `recognition.py`.

No transition asks a worker for anything: what is to be done next is worked out in one place, `_settle`, after
each input. So an input that sets off several transitions cannot ask twice.
It knows no sockets, threads, clocks, wire formats or models. `runtime/live.py` drives it.
"""

from collections.abc import Iterable
from typing import assert_never

from qwen3_asr_server.domain import SessionConfig, samples_of_ms
from qwen3_asr_server.errors import AsrServerError, EmptyCommit, EngineTimeout, IdleTimeout, InvalidAudio
from qwen3_asr_server.messages import (
    Aligned,
    AppendAudio,
    AppendBytes,
    Clear,
    Cleared,
    Closing,
    Command,
    Commit,
    Configure,
    Decode,
    DecodeFailed,
    Disconnect,
    Event,
    Finish,
    Finished,
    Heard,
    Job,
    Lost,
    Outcome,
    Rejected,
    Scored,
    Skipped,
    SpeechStarted,
    SpeechStopped,
)
from qwen3_asr_server.session.options import SessionOptions
from qwen3_asr_server.session.recognition import Offer, Recognition
from qwen3_asr_server.session.segmenter import ItemBegan, ItemEnded, Mark, Paused, PieceBegan, PieceEnded
from qwen3_asr_server.session.track import Marker, Track


class SessionMachine:
    """One realtime session. Synchronous: every method returns at once, nothing is awaited.

    Times (`now`) are seconds on any clock that never goes back.

    Attributes:
        done: nothing follows: after `Finished`, `Closing` or `Disconnect`.
    """

    def __init__(self, config: SessionConfig, options: SessionOptions, now: float) -> None:
        self._options = options
        self._config = config
        self._asked = config
        self._track = Track(config.turn_detection, options)
        self._speech = Recognition(options, self._track.read)
        self._heard_from_client = now
        self._progress = now
        self._finish_asked = False
        self._finish_reached = False
        self._full = False
        self._stale_scores = 0
        self.done = False

    # What the driver calls

    def handle(self, command: Command, now: float) -> None:
        """Take in a command; `AppendBytes` must have been decoded before. Ignored after `Finish`."""
        self.touch(now)
        if isinstance(command, Disconnect):
            self._end()
        if self.done or self._finish_asked:
            return
        self._command(command, now)
        self._settle(now)

    def outcome(self, outcome: Outcome, now: float) -> None:
        """Take in a worker's answer."""
        if self.done:
            self._stale_scores += 1
            return
        self._progress = now
        match outcome:
            case Scored():
                marks = self._track.scored(outcome)
                self._stale_scores += marks is None
                self._apply(marks or (), now)
            case Heard():
                self._speech.heard(outcome)
            case Skipped(piece=piece, kind=kind):
                self._speech.answered(piece, kind)
            case DecodeFailed():
                self._speech.failed(outcome)
            case Lost():
                self._speech.lost(outcome)
            case Aligned():
                self._speech.aligned(outcome)
            case _:
                assert_never(outcome)
        self._settle(now)

    def touch(self, now: float) -> None:
        """Note that the client was heard from, or that it was we who did not read."""
        self._heard_from_client = now

    def tick(self, now: float) -> None:
        """Look at the clock: a final that has waited for its words, the idle limit, or the finish deadline."""
        if self.done:
            return
        if self._speech.words.due is not None and now >= self._speech.words.due:
            self._settle(now)
        timeout = self._session_timeout()
        if self.done or now < timeout:
            return
        if not self._finish_asked:
            error = IdleTimeout("The session was closed because nothing was received for too long.")
            self._end(error)
            return
        self._give_up(EngineTimeout("Recognition did not finish in time."))

    def next_timeout(self) -> float | None:
        """Return when `tick` will have something to do; None when nothing is awaited."""
        if self.done:
            return None
        due = self._speech.words.due
        return self._session_timeout() if due is None else min(due, self._session_timeout())

    def _session_timeout(self) -> float:
        if self._finish_asked:
            return self._progress + self._options.finish_timeout_s
        return self._heard_from_client + self._options.idle_timeout_s

    def events_to_send(self) -> list[Event]:
        """Return the events since the last call, in order."""
        events, self._speech.events = self._speech.events, []
        return events

    def jobs_to_run(self) -> list[Job]:
        """Return the jobs since the last call; partials are not among them, they are pulled."""
        jobs, self._speech.jobs = self._speech.jobs, []
        return jobs

    def offer(self) -> Offer | None:
        """Return the partial that is worth its cost, if there is one."""
        return None if self.done else self._speech.offer(self._track.segmenter.partial_upto)

    def pull(self, now: float) -> Decode | None:
        """Take the offered partial; its answer goes to `outcome`."""
        return None if self.done else self._speech.pull(self._track.segmenter.partial_upto, now)

    @property
    def buffered_samples(self) -> int:
        """Audio received and not heard yet: what back-pressure is judged by."""
        return self._track.unscored + self._speech.unheard_samples(self._track.segmenter.frontier)

    @property
    def received_samples(self) -> int:
        """All audio received so far: the session clock."""
        return self._track.received

    @property
    def scored_samples(self) -> int:
        """How much of it the VAD has judged."""
        return min(self._track.segmenter.frontier, self._track.received)

    @property
    def stale_outcomes(self) -> int:
        """Answers that came for a piece or track that was gone."""
        return self._stale_scores + self._speech.stale_outcomes

    @property
    def words_missed(self) -> int:
        """Finals told without the word times that were asked for, though there is an aligner."""
        return self._speech.words.missed

    @property
    def waiting_commands(self) -> int:
        """Commands that wait for the audio before them to be judged; the driver should let them drain."""
        return self._track.waiting_commands

    # Commands

    def _command(self, command: Command, now: float) -> None:
        match command:
            case AppendAudio():
                self._append(command)
            case Commit(event_id=event_id):
                if self._asked.turn_detection is not None:
                    self._reject(EmptyCommit("With server VAD there is nothing left to commit."), event_id)
                elif not self._uncommitted():
                    self._reject(EmptyCommit("There is no audio to commit."), event_id)
                else:
                    self._wait(command)
            case Clear():
                self._wait(command)
            case Finish():
                self._finish_asked = True
                self._progress = now
                self._wait(command)
            case Configure(config=config):
                other_mode = (config.turn_detection is None) != (self._asked.turn_detection is None)
                self._asked = config
                self._track.wait(command, hard=other_mode)
            case AppendBytes() | Disconnect():
                raise AssertionError("the driver decodes bytes; a disconnect was handled before")
            case _:
                assert_never(command)

    def _append(self, append: AppendAudio) -> None:
        """Take in audio; a Manual item that is full says so once and takes no more until it is committed."""
        room = samples_of_ms(self._options.manual_max_s * 1000) - self._uncommitted()
        if self._asked.turn_detection is not None or (len(append.samples) <= room and not self._full):
            self._track.append(append.samples)
        elif not self._full:
            self._full = True
            message = "The item is as long as it may be: commit it. Audio is ignored until then."
            self._reject(InvalidAudio(message), append.event_id)

    def _wait(self, command: Commit | Clear | Finish | Configure) -> None:
        """Let a command that ends audio wait for its place."""
        self._full = False
        self._track.wait(command, hard=True)

    def _reject(self, error: AsrServerError, event_id: str | None) -> None:
        self._speech.events.append(Rejected(error, event_id))

    def _uncommitted(self) -> int:
        return self._track.received - self._track.last_hard

    def _reach(self, marker: Marker, now: float) -> None:
        """Obey a command now that all audio before it has been judged."""
        match marker.command:
            case Commit():
                self._end_manual_item(marker.position, now, even_if_silent=True)
            case Clear():
                self._speech.drop(marker.position)
                self._speech.events.append(Cleared())
            case Finish():
                self._end_open_item(marker.position, now)
                self._finish_reached = True
            case Configure():
                if marker.hard:
                    self._end_open_item(marker.position, now)
                self._config = marker.command.config
            case _:
                assert_never(marker.command)
        if marker.hard:
            self._track.restart(self._config.turn_detection, marker.position)
        self._retune()

    def _end_open_item(self, position: int, now: float) -> None:
        if self._config.turn_detection is None:
            self._end_manual_item(position, now, even_if_silent=False)
        else:
            self._apply(self._track.segmenter.close(position), now)

    def _end_manual_item(self, position: int, now: float, *, even_if_silent: bool) -> None:
        self._apply(self._track.segmenter.close(position), now)
        if self._speech.open is None and even_if_silent:
            self._speech.begin_item(self._config, visible=True)
        if self._speech.open is not None:
            self._speech.commit()

    def _retune(self) -> None:
        """Bring new endpointing rules into force, unless an utterance still runs by the old ones."""
        turn = self._config.turn_detection
        if turn is not None and self._track.segmenter.idle:
            self._track.segmenter.retune(turn)

    def _apply(self, marks: Iterable[Mark], now: float) -> None:
        """Obey the segmenter."""
        for mark in marks:
            match mark:
                case ItemBegan(at=at):
                    item = self._speech.begin_item(self._config, visible=True)
                    self._speech.events.append(SpeechStarted(item.number, at))
                case PieceBegan(start=start, overlaps=overlaps):
                    if self._speech.open is None:
                        self._speech.begin_item(self._config, visible=False)
                    self._speech.begin_piece(start, now, overlaps=overlaps)
                case Paused(upto=upto):
                    self._speech.pause(upto)
                case PieceEnded(end=end, limit=limit):
                    self._speech.end_piece(end, limit)
                case ItemEnded(at=at):
                    assert self._speech.open is not None
                    self._speech.events.append(SpeechStopped(self._speech.open.number, at))
                    self._speech.commit()
                    self._retune()
                case _:
                    assert_never(mark)

    # The end of every input, and of the session

    def _settle(self, now: float) -> None:
        """Derive what follows from the new state: markers reached, items told, jobs queued."""
        if self._track.ends_at is not None:
            self._speech.bound(self._track.ends_at)
        while (marker := self._track.reached()) is not None:
            self._reach(marker, now)
        self._speech.tell(now)
        if self._finish_reached and self._speech.empty:
            self._finish()
            return
        frames = self._track.next_frames()
        if frames is not None:
            self._speech.jobs.append(frames)
        self._speech.queue(self._track.received, paused=self._track.segmenter.partial_upto is None)
        self._track.trim(self._speech.first_needed(self._track.received))

    def _give_up(self, error: AsrServerError) -> None:
        """Fail all that is open or waits to be committed, then finish."""
        self._speech.fail_all(error, self._track.received)
        for command in self._track.drop_waiting():
            if isinstance(command, Commit):
                self._speech.begin_item(self._config, visible=False)
                self._speech.fail_all(error, self._track.received)
        self._finish()

    def _finish(self) -> None:
        self._speech.events.append(Finished(self._speech.transcript))
        self.done = True

    def _end(self, error: AsrServerError | None = None) -> None:
        """End the session at once; with an error if the client is still there to read it."""
        if self.done:
            return
        self._speech.release_all()
        if error is not None:
            self._speech.events.append(Closing(error))
        self.done = True
