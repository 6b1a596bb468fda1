"""Makes a card image from a stock image, under a name that says it is not finished until everything was read back."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError, StorageError, storage_error
from edge_runtime.files.atomic import sync_directory
from server.flash.card import Card
from server.flash.check import check_card
from server.flash.first_boot import look_into
from server.flash.formats import first_boot_files
from server.flash.holes import copy_part
from server.flash.payload import needed_bytes, root_files
from server.flash.source import copy_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from server.flash.check import CardReport
    from server.flash.first_boot import Found, Settings
    from server.flash.payload import Payload
    from server.flash.source import Copied

PARTIAL = ".partial"
"""The end of the name of an image that is not finished."""

_SPARE_BYTES = 96 << 20
"""What is left free in the root partition for the first boot's own work; it grows to the whole card there."""


@dataclass(frozen=True)
class Stock:
    """A stock image that was unpacked and looked into; cards are copies of it.

    Attributes:
        path: the unpacked image.
        copied: its size and hashes.
        found: what it is.
    """

    path: Path
    copied: Copied
    found: Found


def open_stock(source: Path, unpacked: Path, sha256: str | None, progress: Callable[[int, int], None]) -> Stock:
    """Unpack a stock image, and look into it.

    Raises:
        ConfigError: it is no image that a card can be made from.
        StorageError: it is damaged, or the disk is full.
    """
    copied = copy_image(source, unpacked, sha256, progress)
    return Stock(unpacked, copied, look_into(Card(unpacked)))


def make_card(
    stock: Stock, out: Path, settings: Settings, payload: Payload, user_data: Mapping[str, Any] | None
) -> CardReport:
    """Make a card image, read it back, and give it its name.

    Args:
        stock: the stock image.
        out: the image that is written; it must not be there yet.
        settings: for the first boot.
        payload: what it gets of Covey.
        user_data: the user's own cloud-init settings; None: there are none.

    Raises:
        ConfigError: ``out`` is there already, or the settings do not fit the image.
        StorageError: something could not be written; nothing is at ``out`` then.
    """
    if out.exists():
        raise ConfigError(f"{out} is there already", "give another file, or remove it")
    boot_files = first_boot_files(stock.found, settings, user_data)
    partial = out.with_name(out.name + PARTIAL)
    try:
        partial.unlink(missing_ok=True)
        copy_part(stock.path, 0, stock.copied.size_bytes, partial, 0)
        card = Card(partial)
        files = root_files(stock.found, settings, payload)
        missing = needed_bytes(files, payload.environment.unpacked_bytes) + _SPARE_BYTES - card.free_bytes()
        if missing > 0:
            card.grow(missing)
        card.write_root(files)
        card.write_boot(boot_files)
        report = check_card(partial)
        problems = [*report.problems, *([] if report.device == payload.device else ["it is another device's"])]
        if problems:
            raise StorageError(f"the card was not written as it should be: {'; '.join(problems)}", "try it again")
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise storage_error(error, out) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
    return report
