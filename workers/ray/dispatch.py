"""One call of a model on Ray workers: micro-batches go out, answers come in, and what goes wrong is made good.

At most `Limits.in_flight` micro-batches are with a worker, so that the driver holds little and a query stops at once.
The first answer to a micro-batch counts; whatever else was spent on it is recorded as wasted. A micro-batch that its
worker died of is asked elsewhere, then split, so that in the end the row that kills workers fails alone.

Whether a model is given up on its first rows is judged in the order of the micro-batches, not of their answers.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sqluice.errors import BrokenModelError
from sqluice.workers.batching import Growing
from sqluice.workers.pool import GIVE_UP_AFTER, NOT_ASKED, Work, count, hand_over
from sqluice.workers.protocol import WASTED, Batch
from sqluice.workers.ray.group import WAIT
from sqluice.workers.ray.peers import Peer, is_hung, is_slow, predicted, wants_copy
from sqluice.workers.ray.wire import Broken, Reply, to_table, unpack_values, why
from sqluice.workers.ray.worker import State, Terms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqluice.workers.pool import Question
    from sqluice.workers.ray.peers import Limits

LOOK = 0.25
"""Seconds between looks at how the workers do."""

_NUMBERS = itertools.count(1)


@dataclass(eq=False, slots=True)
class Piece:
    """A micro-batch or a part of one. `place` is that of the micro-batch it comes from."""

    place: int
    rows: np.ndarray
    attempt: int = 1
    kills: int = 0
    flights: list[Flight] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Flight:
    """One copy of a piece at one worker; `sent` is also moved to when its turn came there."""

    piece: Piece
    peer: Peer
    ref: Any
    number: str
    life: int
    sent: float
    attempts: int
    suspected: bool = False
    state: Any = None
    asked_state: float = 0.0


@dataclass(slots=True)
class _Place:
    """What is known of one micro-batch: rows, rows without an answer, pieces that are out, and why it was given up."""

    rows: int = 0
    failed: dict[int, str] = field(default_factory=dict)
    open: int = 1
    given_up: str = ""
    left: list[int] = field(default_factory=list)


class Workers(Protocol):
    """The workers of a model, as a call needs them."""

    def peers(self) -> list[Peer]:
        """Those there are now."""
        ...

    def up(self) -> list[Peer]:
        """Those that can be asked. `BrokenModelError` when the last one had to be given up."""
        ...

    def failed(self, peer: Peer, life: int, said: str, *, fatal: bool = False, blamed: bool = True) -> None:
        """One died in its `life`, or could not do what it was asked."""
        ...

    def demand(self, seconds: float) -> None:
        """So many seconds of one worker are queued."""
        ...


class Dispatch:
    """One call."""

    def __init__(
        self,
        work: Work,
        question: Question,
        items: Sequence[Any],
        batches: Sequence[np.ndarray] | Growing,
        workers: Workers,
        limits: Limits,
    ) -> None:
        import ray

        self._ray = ray
        self._work = work
        self._told = work.told
        self._question = question
        self._items = items
        self._growing = batches if isinstance(batches, Growing) else None
        self._fresh = deque() if isinstance(batches, Growing) else deque(batches)
        self._again: deque[Piece] = deque()
        self._workers = workers
        self._limits = limits
        self._flights: dict[Any, Flight] = {}
        self._places: list[_Place] = []
        self._judged = 0
        self._looked = time.monotonic()

    def run(self) -> None:
        """Ask about everything; answers are in `work.told`. Raises what `Pool.ask` raises, and `BrokenModelError` when
        no worker is left."""
        try:
            while self._waiting() or self._flights or self._judged < len(self._places):
                self._work.control.check()
                self._send_out()
                self._collect()
                self._judge()
                if time.monotonic() - self._looked >= LOOK:
                    self._looked = time.monotonic()
                    self._look()
        finally:
            for flight in list(self._flights.values()):
                self._drop(flight)

    # ---- out

    def _waiting(self) -> int:
        """Rows that are with no worker."""
        rows = sum(len(piece.rows) for piece in self._again) + sum(map(len, self._fresh))
        return rows + (0 if self._growing is None else len(self._growing))

    def _send_out(self) -> None:
        """Give every worker something to do, the least busy first."""
        peers = self._workers.up()
        busy = dict.fromkeys(peers, 0)
        for flight in self._flights.values():
            alone = self._limits.in_flight if flight.piece.kills else 1
            busy[flight.peer] = busy.get(flight.peer, 0) + alone
        for level in range(self._limits.in_flight):
            for peer in peers:
                if busy[peer] > level or not self._waiting() or (level and self._slow(peer, peers)):
                    continue
                if not self._late_there(peer, peers):
                    busy[peer] += self._send_next(peer, len(peers), busy=busy[peer] > 0)

    def _late_there(self, peer: Peer, peers: Sequence[Peer]) -> bool:
        """Whether the other workers would be done with everything before a slow one is with its next micro-batch."""
        if not self._slow(peer, peers):
            return False
        own = peer.pace(self._question.operation) or 0.0
        fair = predicted(peers, self._question.operation, 1.0, beside=peer) or 0.0
        sizes = [self._units(piece.rows) for piece in self._again] + [self._units(rows) for rows in self._fresh]
        if self._growing is not None and len(self._growing):
            sizes += [float(min(self._growing.size, len(self._growing)))]
        left = sum(sizes) if self._growing is None else float(self._waiting())
        return own * sizes[0] > fair * left / max(len(peers) - 1, 1)

    def _slow(self, peer: Peer, peers: Sequence[Peer]) -> bool:
        return is_slow(peer, peers, self._question.operation, self._limits)

    def _send_next(self, peer: Peer, peers: int, *, busy: bool) -> int:
        """Send the next piece to a worker, as far as the budget allows; what that adds to what it has to do. A piece
        that a worker died of goes to one that has nothing else, so that it is known what the next one dies of."""
        most = self._allowed()
        piece = None if most is not None and most < 1 else self._next(peers, alone=not busy)
        if piece is None:
            return 0
        if most is not None and len(piece.rows) > most:
            rest = replace(piece, rows=piece.rows[most:], flights=[])
            self._places[piece.place].open += 1
            self._again.appendleft(rest)
            piece.rows = piece.rows[:most]
        spare = None if most is None else len(piece.rows) + (most - len(piece.rows)) // (2 * peers)
        self._send(piece, peer, spare)
        return self._limits.in_flight if piece.kills else 1

    def _allowed(self) -> int | None:
        """Rows that may still be asked, of a control that has a limit of attempts."""
        limit = getattr(self._work.control, "limit", None)
        return None if limit is None else limit - sum(flight.attempts for flight in self._flights.values())

    def _next(self, peers: int, *, alone: bool) -> Piece | None:
        for piece in self._again:
            if alone or not piece.kills:
                self._again.remove(piece)
                return piece
        if self._growing is not None and len(self._growing):
            rows = self._growing.take(max(1, -(-len(self._growing) // (2 * peers))))
        elif self._fresh:
            rows = self._fresh.popleft()
        else:
            return None
        self._places.append(_Place(len(rows)))
        return Piece(len(self._places) - 1, rows)

    def _send(self, piece: Piece, peer: Peer, attempts: int | None = None) -> None:
        work, rows = self._work, piece.rows
        number = str(next(_NUMBERS))
        terms = Terms(
            number,
            None if work.lengths is None else work.lengths[rows],
            self._told.tokens_in[rows],
            work.ceiling,
            work.succeeded,
            attempts,
        )
        table = to_table([self._items[row] for row in rows.tolist()])
        method = peer.actor.answer.options(concurrency_group="work")
        ref = method.remote(self._question, table, terms)
        flight = Flight(piece, peer, ref, number, peer.life, time.monotonic(), attempts or 0)
        piece.flights.append(flight)
        self._flights[ref] = flight

    # ---- in

    def _collect(self) -> None:
        """Take what has come in, after waiting a moment for something."""
        if not self._flights:
            if self._waiting():
                time.sleep(WAIT / 10)
            return
        refs = list(self._flights)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=WAIT, fetch_local=True)
        if ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        for ref in ready:
            flight = self._flights.get(ref)
            if flight is not None:  # else another copy was first
                self._land(flight)

    def _land(self, flight: Flight) -> None:
        try:
            reply = self._ray.get(flight.ref)
        except self._ray.exceptions.RayTaskError as error:
            self._failed(flight, why(error))
        except self._ray.exceptions.RayError as error:
            self._died(flight, error)
        else:
            if isinstance(reply, Broken):
                self._failed(flight, reply.said)
            else:
                self._answered(flight, reply)

    def _answered(self, flight: Flight, reply: Reply) -> None:
        piece, told, work = flight.piece, self._told, self._work
        self._forget(flight)
        for loser in list(piece.flights):
            self._waste(loser, "another worker was first")
        rows = piece.rows
        for one in reply.batches:
            one.attempt += piece.attempt - 1
            told.batches.append(one)
        flight.peer.took(self._question.operation, self._units(rows), reply.seconds)
        self._next_turn(flight.peer)
        if self._growing is not None:
            self._growing.took(len(rows), reply.seconds)
        if reply.ceiling:
            work.ceiling = min(work.ceiling or reply.ceiling, reply.ceiling)
        told.store(rows, unpack_values(reply.values), reply.tokens_in, reply.tokens_out)
        failed = {int(rows[at]): said for at, said in reply.errors.items() if said != NOT_ASKED}
        left = [int(rows[at]) for at, said in reply.errors.items() if said == NOT_ASKED]
        told.errors.update(failed)
        place = self._places[piece.place]
        place.failed.update(failed)
        place.open -= 1
        for one in reply.batches:
            work.control.done(one)
        hand_over(work, [row for row in rows.tolist() if row not in failed and row not in set(left)])
        if reply.given_up:
            place.given_up, place.left = reply.given_up, left
        elif left:
            self._put_back(piece.place, left, piece.attempt + 1)

    def _put_back(self, place: int, left: list[int], attempt: int) -> None:
        self._places[place].open += 1
        self._again.append(Piece(place, np.array(left, np.int64), attempt))

    def _judge(self) -> None:
        """Count failures of micro-batches that are over, in their order."""
        work = self._work
        while self._judged < len(self._places) and not self._places[self._judged].open:
            place = self._places[self._judged]
            if place.given_up and not work.succeeded:
                raise BrokenModelError(place.given_up)
            if place.given_up and place.left:
                place.given_up = ""
                self._put_back(self._judged, place.left, 2)
                return
            self._judged += 1
            count(work, place.rows, place.failed)
            if work.failed >= GIVE_UP_AFTER and not work.succeeded:
                last = list(place.failed.values())[GIVE_UP_AFTER - work.failed - 1]
                raise BrokenModelError(
                    f"{work.name} answered none of its first {GIVE_UP_AFTER} rows; the last one: {last}"
                )

    # ---- what goes wrong

    def _forget(self, flight: Flight) -> None:
        self._flights.pop(flight.ref, None)
        if flight in flight.piece.flights:
            flight.piece.flights.remove(flight)

    def _drop(self, flight: Flight) -> None:
        """Take a flight back: a worker that has not begun with it never does. (`ray.cancel` would leave a gap in the
        order of calls, for which an actor waits half a minute.)"""
        self._forget(flight)
        flight.peer.actor.forget.options(concurrency_group="control").remote(flight.number)

    def _waste(self, flight: Flight, why: str) -> None:
        """Record a flight whose answer nobody waits for."""
        self._drop(flight)
        self._record(flight, why)

    def _record(self, flight: Flight, why: str, outcome: str = WASTED) -> None:
        piece = flight.piece
        now, spent = time.time(), time.monotonic() - flight.sent
        batch = Batch(len(piece.rows), now - spent, now, attempt=piece.attempt, outcome=outcome)
        batch.worker, batch.error = flight.peer.name, why
        batch.tokens_in = int(self._told.tokens_in[piece.rows].sum())
        self._told.batches.append(batch)
        self._work.control.done(batch)

    def _redo(self, piece: Piece) -> None:
        """Ask a piece again, unless a copy of it is out or it has been answered."""
        if not piece.flights and piece not in self._again:
            self._again.append(piece)

    def _failed(self, flight: Flight, said: str) -> None:
        """A worker that could not do what it was asked, though it lives."""
        self._forget(flight)
        self._redo(flight.piece)
        self._workers.failed(flight.peer, flight.life, said)

    def _died(self, flight: Flight, error: Exception) -> None:
        """A worker died. The piece that it was at is suspected, what waited behind it is not."""
        peer, piece = flight.peer, flight.piece
        if flight.life == peer.life:
            next(one for one in self._flights.values() if one.peer is peer).suspected = True
        self._forget(flight)
        suspect = piece.kills > 0
        piece.kills += flight.suspected
        again = piece.kills < self._limits.kills or bool(piece.flights)
        outcome = WASTED if again or len(piece.rows) > 1 else "error"
        self._record(flight, f"worker lost: {why(error)}", outcome)
        piece.attempt += 1
        if again:
            self._redo(piece)
        else:
            self._split(piece, why(error))
        fatal = isinstance(error, self._ray.exceptions.ActorDiedError)
        self._workers.failed(peer, flight.life, why(error), fatal=fatal, blamed=not suspect)

    def _split(self, piece: Piece, said: str) -> None:
        """A piece that workers die of: its halves, or the error of its one row."""
        place = self._places[piece.place]
        if len(piece.rows) == 1:
            row = int(piece.rows[0])
            place.failed[row] = self._told.errors[row] = f"its worker died {piece.kills} times: {said}"
            place.open -= 1
            return
        middle = len(piece.rows) // 2
        place.open += 1
        for rows in (piece.rows[:middle], piece.rows[middle:]):
            self._again.append(Piece(piece.place, rows, piece.attempt, piece.kills - 1))

    # ---- slow and stuck workers

    def _units(self, rows: np.ndarray) -> float:
        """What the time of a micro-batch goes with: padded tokens, answers included, or rows."""
        lengths = self._work.lengths
        longest = 1 if lengths is None else int(lengths[rows].max()) + self._question.max_tokens
        return float(len(rows) * max(longest, 1))

    def _queued(self) -> float:
        """Units that nobody has answered yet."""
        out = [flight.piece.rows for flight in self._flights.values()]
        again = [piece.rows for piece in self._again]
        more = 0 if self._growing is None else len(self._growing)
        return more + sum(map(self._units, [*out, *again, *self._fresh]))

    def _next_turn(self, peer: Peer) -> None:
        """The oldest flight at a worker is what it is at from now on."""
        for flight in self._flights.values():
            if flight.peer is peer:
                flight.sent = max(flight.sent, time.monotonic())
                return

    def _fair(self, flight: Flight) -> float | None:
        units = self._units(flight.piece.rows)
        return predicted(self._workers.peers(), self._question.operation, units, beside=flight.peer)

    def _look(self) -> None:
        """Find workers that are stuck; where some are idle, give them copies of what is late elsewhere."""
        peers = self._workers.peers()
        heads: dict[Peer, Flight] = {}
        for flight in self._flights.values():
            heads.setdefault(flight.peer, flight)
        now = time.monotonic()
        self._workers.demand(predicted(peers, self._question.operation, self._queued()) or 0.0)
        for peer, flight in heads.items():
            if is_hung(now - flight.sent, self._fair(flight), self._limits):
                self._question_worker(peer, flight)
        idle = [peer for peer in peers if peer not in heads and not self._slow(peer, peers)]
        if not idle or self._waiting():
            return
        late = [flight for flight in self._flights.values() if flight is not heads[flight.peer]]  # not begun
        late += [
            flight
            for peer, flight in heads.items()
            if wants_copy(now - flight.sent, self._fair(flight), slow=self._slow(peer, peers), limits=self._limits)
        ]
        single = [flight for flight in late if len(flight.piece.flights) == 1 and flight.attempts == 0]
        for peer, flight in zip(idle, single, strict=False):
            if flight is not heads[flight.peer]:
                self._drop(flight)
            self._send(flight.piece, peer)

    def _question_worker(self, peer: Peer, flight: Flight) -> None:
        """Ask a worker that seems stuck what it is at; kill it when it is at this micro-batch, or does not tell."""
        now = time.monotonic()
        if flight.state is None:
            flight.state = peer.actor.state.options(concurrency_group="control").remote()
            flight.asked_state = now
            return
        ready, _ = self._ray.wait([flight.state], timeout=0)
        if not ready:
            if now - flight.asked_state > self._limits.silent:
                self._kill(peer)
            return
        try:
            state = self._ray.get(flight.state)
        except self._ray.exceptions.RayError:
            return  # the flight itself will tell
        flight.state = None
        if isinstance(state, State) and state.doing == "load" and state.seconds < self._limits.load:
            flight.sent = now
        elif state.doing not in (flight.number, "load"):
            flight.sent = now  # it is at somebody else's
        elif is_hung(state.seconds, self._fair(flight), self._limits):
            self._kill(peer)

    def _kill(self, peer: Peer) -> None:
        """End a stuck worker; Ray starts it anew, and its flights fail."""
        self._ray.kill(peer.actor, no_restart=False)
