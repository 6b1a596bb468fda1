"""The MQTT transport: paho-mqtt with QoS 1, reconnects and TLS. MQTT 3.1.1 features only."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from edge_runtime.network.cause import closed
from edge_runtime.network.causes import CUT, cause_of_error, denied, given_up, loss_cause, refusal_cause, silent
from edge_runtime.network.diagnose import exact
from edge_runtime.network.message_size import largest_packet_bytes
from edge_runtime.network.mqtt_client import KEEP_ALIVE_TIMEOUT, make_client
from edge_runtime.network.quick_losses import SOON_S, QuickLosses
from edge_runtime.network.reconnect_pauses import ReconnectPauses
from edge_runtime.network.stuck_message import PATIENCE, StuckMessage
from edge_runtime.network.transport import Connected, Event, GivenUp, Message, Will

if TYPE_CHECKING:
    from collections.abc import Callable

    import paho.mqtt.client as mqtt

    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.cause import Cause, Place

_LOG = logging.getLogger(__name__)
_QOS = 1
_KEEP_ALIVE_S = 20
_ATTEMPT_S = 5.0
_GOODBYE_S = 10.0
_NO_MEMBER = "no-member"
CONNECT_S = 60.0
"""Seconds that a member's first connection may take."""
NO_MEMBER_PAUSE_S = 1800.0
"""Seconds between two attempts of a device that was told that it is no member."""
ThingT = TypeVar("ThingT")


class MqttTransport:
    """A connection to a real broker; see Transport.

    Args:
        address: the broker, or the nodes of a cluster: one that is lost, or lets nobody in, is followed by the next.
        identity: client id; a broker lets in one member of each.
        will: published by the broker when this member vanishes.
        tls: files for TLS.
        connect_timeout_s: seconds that the first connection may take; later reconnects are tried without limit.
        keep_session: whether the broker keeps messages for this member while it is away.
        rng: draws the pauses before attempts to connect (reconnect_pauses.py, quick_losses.py); None: a new generator.
        ask_why: gets the cause of an attempt that failed, in paho's thread, and returns one that is known from
            elsewhere: that this is no member any more. It is believed, and the next attempt comes late; None: nothing
            is known.
        hand_to: gets each event in place of ``receive``, in paho's thread; None: ``receive`` returns them.

    Raises:
        EnrolmentError: ``ask_why`` says that this is no member.
        NetworkError: no connection in time, or the broker refused it; says the cause (causes.py).
        ConfigError: the TLS files cannot be used.
    """

    def __init__(  # wide: members differ in all of it
        self,
        address: BrokerAddress,
        identity: str,
        *,
        will: Will | None = None,
        tls: TlsFiles | None = None,
        connect_timeout_s: float = CONNECT_S,
        keep_session: bool = True,
        rng: random.Random | None = None,
        ask_why: Callable[[Cause], Cause | None] = lambda _cause: None,
        hand_to: Callable[[Event], None] | None = None,
    ) -> None:
        self._address, self._identity, self._tls = address, identity, tls
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._hand_on = self._inbox.put if hand_to is None else hand_to
        self._filters: list[str] = []
        self._ask_why = ask_why
        self._decided = threading.Event()  # logged in, or no member
        self._cause: Cause | None = None  # of the last attempt to connect
        self._logged: dict[Place, Cause] = {}  # since the last login
        self._refused = False  # whether the broker has refused the login that is at work
        self._unconfirmed: _Sent[int] = _Sent()  # bytes of the messages
        self._asked: _Sent[str] = _Sent()  # filters of the subscriptions
        self._up_since: float | None = None  # monotonic seconds; None: not logged in
        rng = rng or random.Random()  # noqa: S311 pauses are no secret
        self._losses, self._pauses = QuickLosses(rng), ReconnectPauses(rng)
        self._stuck = StuckMessage()
        self._client = make_client(address, identity, tls, keep_session=keep_session, rng=rng)
        self._client.draw_pause_s = self._pauses.draw
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=_QOS, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe
        self._client.on_publish = self._on_publish
        self._client.on_no_connection = self._on_no_connection
        self._client.connect_timeout = min(_ATTEMPT_S, connect_timeout_s)
        self._is_leaving = False
        self._connect(connect_timeout_s)

    def _connect(self, timeout_s: float) -> None:
        self._client.connect_async(self._address.host, self._address.port, keepalive=_KEEP_ALIVE_S)
        self._client.loop_start()
        is_decided = self._decided.wait(timeout_s)
        if is_decided and (self._cause is None or self._cause.kind != _NO_MEMBER):
            return
        self._leave()
        if is_decided and self._cause is not None:
            raise self._cause.error()
        places = " or ".join(str(node.place(self._tls)) for node in self._address.nodes())
        prefix = f"no connection to the broker at {places} in {timeout_s:g} s: "
        cause = self._cause or exact(silent(self._place), self._node, self._tls)
        raise cause.error(prefix)

    @property
    def _node(self) -> BrokerAddress:
        return self._client.nodes.now

    @property
    def _place(self) -> Place:
        return self._node.place(self._tls)

    # -- what paho reports, in its thread -----------------------------------------------------------------------

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            user = self._address.username
            self._refused = True
            cause = refusal_cause(reason.value, str(reason), self._place, user=user, identity=self._identity)
            if not self._is_no_member(cause):
                self._note(cause)
            return
        self._up_since, self._logged, self._cause = time.monotonic(), {}, None
        for topic_filter in self._filters:
            self._ask_for(topic_filter)
        self._hand_on(Connected())
        self._decided.set()

    def _on_no_connection(self, error: BaseException) -> None:
        self._look_and_note(cause_of_error(error, self._place))

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        error, self._client.transport_error = self._client.transport_error, None
        was_refused, self._refused = self._refused, False
        if not reason.is_failure:
            return
        if self._up_since is not None:
            self._note_loss(error, is_silent=reason.value == KEEP_ALIVE_TIMEOUT)
        elif not was_refused:
            self._look_and_note(closed(None, self._place) if error is None else cause_of_error(error, self._place))
        self._client.nodes.go_on()

    def _look_and_note(self, cause: Cause) -> None:
        if not self._is_leaving and not self._is_no_member(cause):
            self._note(exact(cause, self._node, self._tls))

    def _is_no_member(self, cause: Cause) -> bool:
        """Ask whether that is why an attempt failed; if so, say it, and wait long before the next one."""
        known = self._ask_why(cause)
        if known is None:
            return False
        self._pauses.lost(NO_MEMBER_PAUSE_S)
        self._note(known)
        self._decided.set()
        return True

    def _leave(self) -> None:
        self._is_leaving = True
        self._client.disconnect()
        self._client.loop_stop()

    def _note(self, cause: Cause) -> None:
        """Keep and log why there is no connection; the same cause is logged once for each node."""
        self._cause = cause
        if cause != self._logged.get(self._place):
            self._logged[self._place] = cause
            _LOG.warning("no connection to the broker yet: %s; trying again", cause)

    def _note_loss(self, error: BaseException | None, *, is_silent: bool) -> None:
        up_s = time.monotonic() - (self._up_since or 0.0)
        self._up_since = None
        self._pauses.lost(self._losses.lost(up_s))
        cause = loss_cause(
            TimeoutError("operation timed out") if is_silent else error,
            self._place,
            identity=self._identity,
            waiting_bytes=max(self._unconfirmed.all(), default=0),
            closed_soon=self._losses.count,
        )
        _LOG.warning("connection to the broker lost: %s; trying again", cause)
        is_cut = not is_silent and (error is None or isinstance(error, CUT))
        self._give_up_what_is_stuck(is_closed_soon=is_cut and up_s < SOON_S)

    def _give_up_what_is_stuck(self, *, is_closed_soon: bool) -> None:
        """Drop the message at which the broker closes the connection again and again, and say so."""
        head = self._client.head()
        is_stuck = self._stuck.lost(None if head is None else head.mid, is_closed_soon=is_closed_soon)
        self._client.is_one_by_one = self._stuck.is_one_by_one
        if not is_stuck or head is None:
            return
        self._client.forget(head.mid)
        self._unconfirmed.answer(head.mid)
        limit_bytes = largest_packet_bytes(self._node, f"{self._identity}-check", self._tls)
        cause = given_up(self._place, len(head.payload), PATIENCE, limit_bytes)
        _LOG.error("gave up a message on %s: %s", head.topic, cause)
        self._hand_on(GivenUp(head.topic, bytes(head.payload), cause.finding, cause.remedy))

    def _on_subscribe(self, _client: Any, _data: Any, number: int, reasons: Any, _properties: Any) -> None:  # noqa: ANN401
        is_refused = any(reason.is_failure for reason in reasons)
        topic_filter = self._asked.answer(number, is_refused=is_refused)
        if topic_filter is not None and is_refused:
            self._log_denied(topic_filter)

    def _log_denied(self, topic_filter: str) -> None:
        _LOG.error("%s", denied(self._place, "read", topic_filter, self._address.username))

    def _on_publish(self, _client: Any, _data: Any, number: int, _reason: Any, _properties: Any) -> None:  # noqa: ANN401
        self._unconfirmed.answer(number)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:  # noqa: ANN401
        try:
            topic = message.topic
        except UnicodeDecodeError:  # an error here would end paho's thread, or this connection again and again
            _LOG.warning("the broker sent a message on a topic that is no UTF-8; it is dropped")
            return
        self._hand_on(Message(topic, bytes(message.payload)))

    # -- Transport ----------------------------------------------------------------------------------------------

    @property
    def broker_host(self) -> str:
        """See Transport."""
        return self._node.host

    @property
    def local_address(self) -> str | None:
        """See Transport."""
        return self._client.local_address()

    def subscribe(self, topic_filter: str) -> None:
        """See Transport."""
        self._filters.append(topic_filter)
        self._ask_for(topic_filter)

    def unsubscribe(self, topic_filter: str) -> None:
        """End a subscription, also for later connections; what the broker has sent already still arrives."""
        self._filters.remove(topic_filter)
        self._client.unsubscribe(topic_filter)

    def _ask_for(self, topic_filter: str) -> None:
        if self._asked.enter(self._client.subscribe(topic_filter, qos=_QOS)[1], topic_filter):
            self._log_denied(topic_filter)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See Transport."""
        self._publish(topic, payload, retain=retain)

    def _publish(self, topic: str, payload: bytes, *, retain: bool) -> mqtt.MQTTMessageInfo:
        info = self._client.publish(topic, payload, qos=_QOS, retain=retain)
        self._unconfirmed.enter(info.mid, len(payload))
        return info

    def receive(self, timeout_s: float | None) -> Event | None:
        """See Transport."""
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def deliver(self, topic: str, payload: bytes) -> bool:
        """Publish a retained message and wait briefly; return whether the broker has acknowledged it."""
        info = self._publish(topic, payload, retain=True)
        try:
            info.wait_for_publish(_GOODBYE_S)
            return info.is_published()
        except RuntimeError as error:
            _LOG.debug("could not publish on %s: %s", topic, error)
            return False

    def close(self, last: tuple[str, bytes] | None = None) -> None:
        """Send what waits (and ``last``, retained), then leave; the broker does not publish the will."""
        if last is not None and not self.deliver(*last):  # not connected: the will speaks for us
            _LOG.info("could not say goodbye")
        self._leave()


class _Sent(Generic[ThingT]):
    """What was sent and waits for the broker's answer, by the number of its packet. Safe to use from two threads.

    The answer may come before the sender has learned the number. The lock is never held while paho is called: paho
    holds locks of its own while it reports answers.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, ThingT] = {}
        self._early: dict[int, bool] = {}  # answers that came before their packet was entered
        self._lock = threading.Lock()

    def enter(self, number: int | None, thing: ThingT) -> bool:
        """Enter what was sent (number None: it was not); return whether the broker has refused it already."""
        with self._lock:
            if number is not None and number not in self._early:
                self._waiting[number] = thing
            return number is not None and self._early.pop(number, False)

    def answer(self, number: int, *, is_refused: bool = False) -> ThingT | None:
        """Take out what the broker has answered; None where it is not entered yet."""
        with self._lock:
            if number not in self._waiting:
                self._early[number] = is_refused
                return None
            return self._waiting.pop(number)

    def all(self) -> list[ThingT]:
        """Return what waits."""
        with self._lock:
            return list(self._waiting.values())
