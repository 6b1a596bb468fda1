"""Silences the warnings, reports and progress bars of torch.onnx, transformers and peft."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries while the context lasts; Covey checks what they warn about, and exceptions still pass."""
    exporter = logging.getLogger("torch.onnx")
    exporter_level, verbosity = exporter.level, transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    exporter.setLevel(logging.ERROR)
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(exporter_level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
