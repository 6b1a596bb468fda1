"""Decides whether a message is believed: its speaker's signature, meant for this process, and never said before."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.signed import Envelope, Route, UnsignedError, decode_envelope, route_of, signed_bytes
from edge_runtime.protocol.topics import hello_topic
from edge_runtime.signing.marks import Mark
from edge_runtime.signing.signer import ALGORITHM, der_signature

if TYPE_CHECKING:
    from edge_runtime.signing.keys import Keys
    from edge_runtime.signing.marks import HelloFile


class Reason(str, enum.Enum):
    """Why a message was refused."""

    MALFORMED = "malformed"
    """It is no envelope: damaged, too large, of another version, or not in the canonical encoding."""
    UNSIGNED = "unsigned"
    """It is a message without an envelope."""
    MISPLACED = "misplaced"
    """Its topic is none of this fleet's, or not one for a message of its role."""
    FOREIGN = "foreign"
    """Its key is none of those that the topic's speaker may sign with."""
    ALTERED = "altered"
    """Its signature does not fit: it was changed, or moved here from another topic or fleet."""
    STALE = "stale"
    """It answers another session than this process's: it is old, or its speaker has not heard of this one."""
    DUPLICATE = "duplicate"
    """It is the last accepted message once more, which QoS 1 allows."""
    REPLAYED = "replayed"
    """It was accepted before, and others after it."""
    REORDERED = "reordered"
    """It was not accepted before, and one that was signed after it was."""


@dataclass(frozen=True)
class Accepted:
    """A message that is believed.

    Attributes:
        route: its speaker, listener and kind.
        body: the message.
    """

    route: Route
    body: bytes


@dataclass(frozen=True)
class Refused:
    """A message that changes nothing.

    Attributes:
        reason: why.
        detail: the particulars, in a few words.
        route: the topic's speaker, listener and kind; None: the topic has none. That the speaker has signed it is
            certain only for the reasons stale, duplicate, replayed and reordered.
        role: of its envelope, where it is certain.
        body: the message, where its speaker has signed it for this session, and another one was signed after it.
    """

    reason: Reason
    detail: str
    route: Route | None
    role: str | None = None
    body: bytes | None = None


class Verifier:
    """Checks messages for one listener. It uses no clock, and is used by one thread; see session_of.

    A message is believed if all of this holds, checked in this order:

    - the topic is one of the fleet's, and its payload is an envelope;
    - a key of the topic's speaker has signed fleet, topic, session, answers, number and body;
    - it answers this listener's session. A hello answers none: it is for all, and retained;
    - its number is higher than that of the last accepted message on this topic; or its kind is in ``overtaken``, and it
      is of the same start of its speaker and was not accepted before.

    A last will is signed before the connection and sent by the broker at any time: its number is low, and it answers
    nobody. It is believed if it belongs to the session of the speaker's last accepted state, once after each state.

    Args:
        listener: the member: a device's name, or signed.SERVER.
        fleet: name of the fleet.
        session: this process's; see signer.Signer.
        keys: who may sign with which key.
        hello_file: keeps the last hello's number over restarts; None: it is not kept (the server hears no hello).

    Attributes:
        overtaken: kinds of messages that come over several connections, so that one may overtake another.
    """

    def __init__(
        self, listener: str, fleet: str, session: str, keys: Keys, hello_file: HelloFile | None = None
    ) -> None:
        self.listener, self.fleet, self.session = listener, fleet, session
        self._keys, self._hello_file = keys, hello_file
        self._marks: dict[str, Mark] = {}  # by topic: each has one speaker
        self._sessions: dict[str, Mark] = {}  # by speaker: its newest message on any topic
        self._forgotten: set[str] = set()  # speakers of whom more was accepted than their marks know
        self.overtaken: frozenset[str] = frozenset()
        if hello_file is not None and hello_file.heard is not None:
            heard = hello_file.heard
            # One below: the same hello is accepted once more, since this process has not heard it yet.
            self._marks[hello_topic(fleet)] = Mark(heard.key_id, heard.sequence - 1, None)

    def session_of(self, speaker: str) -> str | None:
        """Return the session of a speaker's last accepted message; None: none was. Safe to call from other threads."""
        found = self._sessions.get(speaker)
        return None if found is None else found.session

    def forget(self, speaker: str) -> None:
        """Forget how far a speaker was heard: another of its machines is to be heard. For the checking thread."""
        self._sessions.pop(speaker, None)
        self._forgotten.add(speaker)
        for topic in [topic for topic in self._marks if self._speaker_of(topic) == speaker]:
            del self._marks[topic]

    def _speaker_of(self, topic: str) -> str | None:
        route = route_of(self.fleet, topic)
        return None if route is None else route.speaker

    def check(self, topic: str, payload: bytes) -> Accepted | Refused:
        """Decide about a message; only one that is accepted changes what is decided about later ones.

        Raises:
            ValueError: messages on this topic are not signed (signed.route_of).
        """
        try:
            route = route_of(self.fleet, topic)
        except ProtocolError as error:
            return Refused(Reason.MISPLACED, error.what, None)
        if route is None:
            raise ValueError(f"messages on {topic} are not signed")
        try:
            envelope = decode_envelope(payload)
        except UnsignedError as error:
            return Refused(Reason.UNSIGNED, error.what, route)
        except ProtocolError as error:
            return Refused(Reason.MALFORMED, error.what, route)
        if route.listener not in (None, self.listener):
            return Refused(Reason.MISPLACED, f"{topic} is for {route.listener}", route)
        refused = self._check_signature(topic, route, envelope)
        if refused is None:
            check = self._check_will if envelope.role == "will" else self._check_new
            refused = check(topic, route, envelope)
        if refused is not None:
            return refused
        self._enter(topic, route, envelope)
        return Accepted(route, envelope.body)

    def _check_signature(self, topic: str, route: Route, envelope: Envelope) -> Refused | None:
        key = self._keys.of(route.speaker).get(envelope.key_id)
        if key is None:
            return Refused(Reason.FOREIGN, f"the key {envelope.key_id.hex()} is none of {route.speaker}'s", route)
        try:
            key.verify(der_signature(envelope.signature), signed_bytes(self.fleet, topic, envelope), ALGORITHM)
        except InvalidSignature:
            return Refused(Reason.ALTERED, f"the signature of key {envelope.key_id.hex()} does not fit", route)
        return None

    def _check_new(self, topic: str, route: Route, envelope: Envelope) -> Refused | None:
        if route.listener is not None and envelope.answers != self.session:
            detail = f"it answers the session {envelope.answers}, and this one is {self.session}"
            return Refused(Reason.STALE, detail, route, envelope.role)
        mark = self._valid(route, self._marks.get(topic))
        if mark is None or envelope.sequence > mark.sequence or self._was_overtaken(route, envelope, mark):
            return None
        detail = f"its number is {envelope.sequence}, and {mark.sequence} was accepted"
        if mark.recent and envelope.sequence == mark.sequence:
            return Refused(Reason.DUPLICATE, detail, route, envelope.role)
        reason = Reason.REPLAYED if mark.is_repeated(envelope.sequence) else Reason.REORDERED
        return Refused(reason, detail, route, envelope.role, envelope.body)

    def _was_overtaken(self, route: Route, envelope: Envelope, mark: Mark) -> bool:
        """Whether a message is late because another connection brought a later one first."""
        is_of_this_start = envelope.session == mark.session
        return route.kind in self.overtaken and is_of_this_start and mark.is_unheard(envelope.sequence)

    def _check_will(self, topic: str, route: Route, envelope: Envelope) -> Refused | None:
        if route.kind != "state":
            return Refused(Reason.MISPLACED, f"a last will on {route.kind}", route, envelope.role)
        mark = self._valid(route, self._marks.get(topic))
        if mark is None:
            return Refused(Reason.STALE, "nothing was heard before this last will", route, envelope.role)
        if mark.session != envelope.session or envelope.sequence > mark.sequence:
            detail = f"the last will of session {envelope.session}, and the last state is of {mark.session}"
            return Refused(Reason.REPLAYED, detail, route, envelope.role)
        if mark.will_taken:
            return Refused(Reason.DUPLICATE, "this last will was accepted already", route, envelope.role)
        return None

    def _valid(self, route: Route, mark: Mark | None) -> Mark | None:
        """Return a mark unless its key is valid no more: then it says nothing about the numbers of another key."""
        return mark if mark is not None and mark.key_id in self._keys.of(route.speaker) else None

    def _enter(self, topic: str, route: Route, envelope: Envelope) -> None:
        mark = self._valid(route, self._marks.get(topic))
        if envelope.role == "will" and mark is not None:
            mark.will_taken = True
            return
        if mark is None:
            mark = self._marks[topic] = Mark(envelope.key_id, envelope.sequence, envelope.session)
            mark.floor = envelope.sequence if route.speaker in self._forgotten else mark.floor
        if envelope.sequence >= mark.sequence:  # else it was overtaken
            mark.key_id, mark.sequence, mark.session = envelope.key_id, envelope.sequence, envelope.session
            mark.will_taken = False
        mark.remember(envelope.sequence)
        newest = self._valid(route, self._sessions.get(route.speaker))
        if newest is None or envelope.sequence > newest.sequence:
            self._sessions[route.speaker] = Mark(envelope.key_id, envelope.sequence, envelope.session)
        if route.listener is None and self._hello_file is not None:
            self._hello_file.keep(envelope.key_id, envelope.sequence, envelope.body)
