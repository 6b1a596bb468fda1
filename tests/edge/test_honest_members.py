"""Whatever restarts and is repeated: what honest members say is believed, and what was recorded of them is not."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from signing import FLEET, Fleet, book_of, reason_of

from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import hello_topic, topic_for
from edge_runtime.signing.sequence import SequenceStore
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.verifier import Reason, Verifier

STATE = topic_for(FLEET, "pi", "state")
HELLO = hello_topic(FLEET)
FROM_DEVICE: Any = st.sampled_from(["birth", "state", "profile", "report", "log", "released", "predicted"])
FROM_SERVER: Any = st.sampled_from(["plan", "report/ack", "log/get", "release", "predict"])
REFUSED = {Reason.STALE, Reason.REPLAYED}


class Members(RuleBasedStateMachine):
    """A server and a device whose files are real; the network delivers at once, and somebody records everything."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="covey-members-"))
        self.fleet, self.starts, self.hellos = Fleet(book_of(SERVER, "pi")), 0, 0
        self.recorded: list[tuple[str, bytes]] = []  # what nobody may repeat with success
        self.last: dict[str, bytes] = {}  # of each topic: QoS 1 may repeat it
        self.retained: bytes | None = None
        self.device: tuple[Signer, Verifier]
        self.server = self.member(SERVER)
        self.restart_device()
        self.say_hello()

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def member(self, name: str) -> tuple[Signer, Verifier]:
        self.starts += 1
        session = f"session-{self.starts}"
        signer = self.fleet.signer(name, session)
        signer._take_number = SequenceStore(self.folder / f"{name}.json", lambda: 0).take
        return signer, self.fleet.verifier(name, session, self.folder if name != SERVER else None)

    def listener(self, topic: str) -> Verifier:
        is_server_s = topic == HELLO or topic.endswith(("/plan", "/ack", "/get", "/release", "/predict"))
        return self.device[1] if is_server_s else self.server[1]

    def deliver(self, topic: str, payload: bytes) -> None:
        """Deliver a message, which is believed, and then once more, which is a duplicate."""
        assert reason_of(self.listener(topic), topic, payload) is None
        if topic in self.last:
            self.recorded.append((topic, self.last[topic]))
        self.last[topic] = payload
        assert reason_of(self.listener(topic), topic, payload) is Reason.DUPLICATE

    def forget(self, listener: Verifier) -> None:
        """A listener has restarted: also the last messages to it are from another session now, but for the hello."""
        for topic in [topic for topic in self.last if topic != HELLO and self.listener(topic) is listener]:
            self.recorded.append((topic, self.last.pop(topic)))

    @rule(kind=FROM_DEVICE, body=st.binary(max_size=20))
    def device_speaks(self, kind: Any, body: bytes) -> None:
        signer, verifier = self.device
        topic = topic_for(FLEET, "pi", kind)
        self.deliver(topic, signer.seal(topic, body, verifier.session_of(SERVER)))

    @rule(kind=FROM_SERVER, body=st.binary(max_size=20))
    def server_speaks(self, kind: Any, body: bytes) -> None:
        self.device_speaks("birth", b"so that the server knows its session")
        signer, verifier = self.server
        topic = topic_for(FLEET, "pi", kind)
        self.deliver(topic, signer.seal(topic, body, verifier.session_of("pi")))

    @rule()
    def say_hello(self) -> None:
        self.hellos += 1
        self.retained = self.server[0].seal(HELLO, b"hello %d" % self.hellos)
        self.deliver(HELLO, self.retained)

    @rule()
    def say_hello_again(self) -> None:
        """Say the same once more, as to a device that has not heard it."""
        self.retained = self.server[0].seal(HELLO, b"hello %d" % self.hellos)
        self.deliver(HELLO, self.retained)

    @rule()
    def restart_server(self) -> None:
        old = self.server[1]
        self.forget(old)
        self.server = self.member(SERVER)
        self.say_hello()

    @rule()
    def restart_device(self) -> None:
        if hasattr(self, "device"):
            self.forget(self.device[1])
        self.device = self.member("pi")
        if self.retained is not None:
            assert reason_of(self.device[1], HELLO, self.retained) is None

    @rule(data=st.data())
    def somebody_repeats(self, data: st.DataObject) -> None:
        if self.recorded:
            topic, payload = data.draw(st.sampled_from(self.recorded))
            assert reason_of(self.listener(topic), topic, payload) in REFUSED

    @rule(kind=FROM_DEVICE)
    def device_dies_before_it_hears_the_server(self, kind: Any) -> None:
        """What a device says before the hello is stale, and comes no closer to being believed later."""
        signer = self.member("pi")[0]
        topic = topic_for(FLEET, "pi", kind)
        early = signer.seal(topic, b"early")
        assert reason_of(self.server[1], topic, early) is Reason.STALE
        self.recorded.append((topic, early))
        self.restart_device()


TestMembers = Members.TestCase
TestMembers.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
