"""Two network namespaces and a bad link between them: IP packets are lost, late, doubled and overtaken by plan.

The link is a thread between two TUN devices, one in each namespace; it needs root and ``/dev/net/tun``, and no module
of the kernel's traffic control.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER, DEVICES = "server", "devices"
SERVER_ADDRESS, DEVICE_ADDRESS, NEW_DEVICE_ADDRESS = "10.77.0.1", "10.77.0.2", "10.77.0.3"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 1 << 16


@dataclass(frozen=True)
class Impairment:
    """What the link does to packets of one direction; nothing by default.

    Attributes:
        loss: probability in [0, 1] that a packet is lost.
        delay_s: time that each packet takes, in seconds.
        duplicates: probability that a packet arrives twice.
        reordered: probability that a packet is held back, so that later ones overtake it.
        held_s: how long such a packet is held back, in seconds.
    """

    loss: float = 0.0
    delay_s: float = 0.0
    duplicates: float = 0.0
    reordered: float = 0.0
    held_s: float = 0.03


CLEAN, PARTITION = Impairment(), Impairment(loss=1.0)


def fate(impairment: Impairment, rng: random.Random) -> list[float]:
    """Return after how many seconds each copy of a packet arrives: none, one or two of them.

    Three numbers are drawn whatever the impairment is, so that a packet's fate depends on its place alone.
    """
    lost, twice, late = rng.random(), rng.random(), rng.random()
    if lost < impairment.loss:
        return []
    delay_s = impairment.delay_s + (impairment.held_s if late < impairment.reordered else 0.0)
    return [delay_s] * (2 if twice < impairment.duplicates else 1)


class ImpairedLink:
    """A link between the namespaces of a server and of its devices; open it with ``impaired_link``.

    Args:
        seed: decides the fate of each packet, by its number in its direction.

    Attributes:
        counts: packets by what became of them: ``taken``, ``lost``, ``doubled``, ``held``.
    """

    def __init__(self, seed: int) -> None:
        token = f"{os.getpid() % 10**6}"
        self._names = {side: f"covey-{token}-{side}" for side in (SERVER, DEVICES)}
        self._rngs = {SERVER: random.Random(2 * seed), DEVICES: random.Random(2 * seed + 1)}
        self._impairments = dict.fromkeys((SERVER, DEVICES), CLEAN)
        self._tuns: dict[str, int] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._forward, name="impaired link")
        self.counts: Counter[str] = Counter()

    def open(self) -> None:
        """Make the namespaces and start to forward."""
        for side, address in ((SERVER, SERVER_ADDRESS), (DEVICES, DEVICE_ADDRESS)):
            _ip("netns", "add", self._names[side])
            self._tuns[side] = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            interface = f"cov{os.getpid() % 10**6}{side[0]}"
            flags = _IFF_TUN | _IFF_NO_PI
            fcntl.ioctl(self._tuns[side], _TUNSETIFF, struct.pack("16sH22x", interface.encode(), flags))
            _ip("link", "set", interface, "netns", self._names[side])
            self._ip_of(side, "link", "set", interface, "name", "link0")
            self._ip_of(side, "addr", "add", f"{address}/24", "dev", "link0")
            self._ip_of(side, "link", "set", "lo", "up")
            self._ip_of(side, "link", "set", "link0", "up")
        self._thread.start()

    def close(self) -> None:
        """Stop forwarding and remove the namespaces."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        for tun in self._tuns.values():
            os.close(tun)
        for name in self._names.values():
            if Path("/run/netns", name).exists():
                _ip("netns", "del", name)

    def impair(self, both: Impairment, *, to_server: Impairment | None = None) -> None:
        """Treat packets of both directions so from now on, or those to the server in another way."""
        self._impairments = {SERVER: both, DEVICES: both if to_server is None else to_server}

    def inside(self, side: str) -> list[str]:
        """Return the words that start a command in a namespace; its process has the pid that was started."""
        return ["ip", "netns", "exec", self._names[side]]

    def move_devices(self) -> None:
        """Give the devices another address, as a DHCP server or another cell does; the old one is gone."""
        self._ip_of(DEVICES, "addr", "del", f"{DEVICE_ADDRESS}/24", "dev", "link0")
        self._ip_of(DEVICES, "addr", "add", f"{NEW_DEVICE_ADDRESS}/24", "dev", "link0")

    def _ip_of(self, side: str, *words: str) -> None:
        _ip("-n", self._names[side], *words)

    def _forward(self) -> None:
        """Take packets of either side (keyed by who sent them) and deliver them when their time has come."""
        due: list[tuple[float, int, str, bytes]] = []
        numbers = itertools.count()
        other = {SERVER: DEVICES, DEVICES: SERVER}
        sides = {tun: side for side, tun in self._tuns.items()}
        while not self._ended.is_set():
            now = time.monotonic()
            while due and due[0][0] <= now:
                _, _, side, packet = heapq.heappop(due)
                with contextlib.suppress(OSError):  # the interface is down, or its queue is full: lost
                    os.write(self._tuns[side], packet)
            wait_s = min(0.05, due[0][0] - now) if due else 0.05
            for tun in select.select(list(sides), [], [], max(0.0, wait_s))[0]:
                side = sides[tun]
                with contextlib.suppress(BlockingIOError):
                    packet = os.read(tun, _PACKET_BYTES)
                    if packet[0] >> 4 == 4:  # not IPv6's own chatter, which would make the numbers random
                        for delay_s in self._fate(side):
                            heapq.heappush(due, (time.monotonic() + delay_s, next(numbers), other[side], packet))

    def _fate(self, side: str) -> list[float]:
        impairment = self._impairments[side]
        delays_s = fate(impairment, self._rngs[side])
        self.counts["taken"] += 1
        self.counts["lost"] += not delays_s
        self.counts["doubled"] += len(delays_s) > 1
        self.counts["held"] += bool(delays_s) and delays_s[0] > impairment.delay_s
        return delays_s


@contextlib.contextmanager
def impaired_link(seed: int) -> Iterator[ImpairedLink]:
    """A clean link, to be impaired; the test is skipped where this machine can make none."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if not Path("/dev/net/tun").exists():
        pytest.skip("there is no /dev/net/tun here")
    link = ImpairedLink(seed)
    try:
        try:
            link.open()
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespaces with TUN devices here: {getattr(error, 'stderr', None) or error}")
        yield link
    finally:
        link.close()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
