"""What signatures cost: signing and checking one message, and the server's share of a round of 1,000 devices.

    python -m benchmarks.speed.signing [--devices 1000] [--rounds 5] [--repeats 25]

Messages are timed in groups; checking is of messages that are accepted, and of forged ones. In a round, devices are
messages over the in-process broker: they sign and check in the same process, so the difference of two rounds is what
both sides do. The server's own time is added up around its signer and verifier; it is that of a whole job of one round:
announcements, plan, reports, acknowledgements and the final adapter.

`make bench-signing` runs it. The last line is one JSON object: microseconds per message, bytes per message, seconds per
round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.harness.figures import spread
from benchmarks.harness.provenance import provenance
from benchmarks.workers.instant_fleet import FLEET, InstantFleet, run_rounds
from benchmarks.workers.signed_fleet import SignedFleet
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import topic_for
from edge_runtime.signing.keys import KeyBook
from edge_runtime.signing.sequence import SEQUENCE_FILE, SequenceStore
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.verifier import Accepted, Reason, Verifier

if TYPE_CHECKING:
    from collections.abc import Sequence

BODIES = {"report": 512, "largest_report": 96 * 1024}
"""Bytes of the messages that are timed: a report of 64 scalars, and the largest that a job may have."""
_GROUP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000, help="devices of a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="groups of messages (default: %(default)s)")
    parser.add_argument("--parameters", type=int, default=147_456, help="trained parameters (default: %(default)s)")
    args = parser.parse_args()
    results: dict[str, object] = {}
    for name, size in BODIES.items():
        found = time_messages(bytes(size), args.repeats)
        results |= {f"{name}_{key}": value for key, value in found.items()}
    results |= time_rounds(args.devices, args.rounds, args.parameters)
    for key, value in results.items():
        print(f"{key:40} {value}")
    print(json.dumps({**results, **provenance(**vars(args))}))


def time_messages(body: bytes, repeats: int) -> dict[str, object]:
    """Return the microseconds of signing, and of checking honest, altered and foreign messages of a size."""
    key, book = ec.generate_private_key(ec.SECP256R1()), KeyBook()
    book.add("pi", key.public_key())
    topic = topic_for(FLEET, "pi", "report")
    with tempfile.TemporaryDirectory(prefix="covey-signing-") as folder:
        signer = Signer("pi", FLEET, "boot", key, SequenceStore(Path(folder) / SEQUENCE_FILE).take)
        forger = Signer("pi", FLEET, "boot", ec.generate_private_key(ec.SECP256R1()), itertools.count().__next__)
        verifier = Verifier(SERVER, FLEET, "server", book)
        figures: dict[str, list[float]] = {"sign_us": [], "check_us": [], "altered_us": [], "foreign_us": []}
        for repeat in range(repeats + 1):
            began = time.perf_counter()
            honest = [signer.seal(topic, body, "server") for _ in range(_GROUP)]
            signed_us = (time.perf_counter() - began) / _GROUP * 1e6
            altered = [payload[:-1] + bytes([payload[-1] ^ 1]) for payload in honest]
            foreign = [forger.seal(topic, body, "server") for _ in range(_GROUP)]
            groups = {
                "sign_us": signed_us,
                "altered_us": checked_us(verifier, topic, altered, Reason.ALTERED),
                "foreign_us": checked_us(verifier, topic, foreign, Reason.FOREIGN),
                "check_us": checked_us(verifier, topic, honest, None),
            }
            if repeat:  # the first is not counted
                for name, value in groups.items():
                    figures[name].append(value)
    return {**{name: spread(values) for name, values in figures.items()}, "added_bytes": len(honest[-1]) - len(body)}


def checked_us(verifier: Verifier, topic: str, payloads: Sequence[bytes], reason: Reason | None) -> float:
    """Check messages, all of which must end in the same way; return the microseconds of one check.

    Raises:
        RuntimeError: one ended otherwise, so that something else was timed.
    """
    began = time.perf_counter()
    results = [verifier.check(topic, payload) for payload in payloads]
    taken_us = (time.perf_counter() - began) / len(payloads) * 1e6
    ends = {None if isinstance(result, Accepted) else result.reason for result in results}
    if ends != {reason}:
        raise RuntimeError(f"expected {reason}, found {ends}")
    return taken_us


def time_rounds(devices: int, rounds: int, parameters: int) -> dict[str, object]:
    """Return the seconds of rounds with and without signatures, which alternate, and the server's own time in them."""
    plain_s: list[float] = []
    signed_s: list[float] = []
    signing_s: list[float] = []
    checking_s: list[float] = []
    signed_messages = checked_messages = 0
    for repeat in range(rounds + 1):
        with tempfile.TemporaryDirectory(prefix="covey-rounds-") as folder:
            plain = run_rounds(Path(folder), InstantFleet(devices), 1, parameters, 1e6)
        with tempfile.TemporaryDirectory(prefix="covey-rounds-") as folder:
            fleet = SignedFleet(devices, Path(folder))
            signed = run_rounds(Path(folder), fleet, 1, parameters, 1e6)
        if repeat:  # the first is not counted
            plain_s, signed_s = plain_s + plain, signed_s + signed
            signing_s.append(fleet.signer.seconds)
            checking_s.append(fleet.verifier.seconds)
        signed_messages, checked_messages = fleet.signer.calls, fleet.verifier.calls
    return {
        "round_s_unsigned": spread(plain_s),
        "round_s_signed_both_sides": spread(signed_s),
        "server_signing_s": spread(signing_s),
        "server_checking_s": spread(checking_s),
        "server_signed_messages": signed_messages,
        "server_checked_messages": checked_messages,
    }


if __name__ == "__main__":
    main()
