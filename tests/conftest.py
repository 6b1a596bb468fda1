"""Fixtures that many tests share: tiny bundles, each exported once per test session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge_runtime.bundle.folder import Bundle, open_bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytest_plugins = ["native_fixtures"]
LABELS = ["bad", "good"]


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Return a function that exports a tiny model, once per set of arguments; ``train``: B, AB or full."""
    from tiny_models import make_model

    from export.bundle.bundle_writer import export_bundle
    from export.bundle.options import ExportOptions
    from export.model.lora import DEFAULT_TARGETS
    from export.model.options import LoraOptions, TaskOptions
    from export.source.folder import look_at

    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Bundle] = {}

    def export(
        kind: str,
        *,
        task: str = "classify-head",
        splits: tuple[int, ...] = (1, 2),
        train: str = "B",
        pooling: str | None = None,
        layers: list[int] | None = None,
        max_tokens: int = 32,
        levels: tuple[int, ...] = (),
        recompute: bool = False,
        rescale: bool = False,
        runtimes: tuple[str, ...] = ("onnxruntime",),
    ) -> Bundle:
        key = f"{kind}-{task}-{'_'.join(map(str, splits))}-{train}-{pooling}-{layers}-{max_tokens}-{len(runtimes)}"
        key += f"-{levels}-{recompute}-{rescale}"
        if key not in made:
            model_dir = root / "models" / kind
            if not model_dir.exists():
                make_model(kind, model_dir)
            folder = look_at(model_dir)
            prompt = task == "classify-prompt"
            template, words = "{text} It was", [" terrible", " great"]
            if kind.endswith("-mlm"):
                template, words = "{text} It was {mask}", ["terrible", "great"]
            task_options = TaskOptions(
                kind=task,
                labels=[] if task == "causal-lm" else LABELS,
                template=template if prompt else None,
                label_words=words if prompt else None,
                max_tokens=max_tokens,
                pooling=pooling,
                logit_scale=3.0 if task == "classify-head" else None,
                head_init=None,
            )
            lora = LoraOptions(4, 8.0, DEFAULT_TARGETS[folder.model_type], layers, list(train), seed=1)
            lora = None if train == "full" else lora
            options = ExportOptions(
                task_options,
                lora,
                list(splits),
                runtimes=runtimes,
                max_batch=16,
                levels=levels,
                recompute=recompute,
                rescale=rescale,
            )
            made[key] = export_bundle(folder, options, root / "bundles" / key).bundle
        return made[key]

    return export


@pytest.fixture(scope="session")
def tiny_bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    """A tiny BERT with Covey's own head, with splits 1 and 2 of 3 layers. Tests must not change it: see bundle_copy."""
    return tiny_export("bert")


@pytest.fixture
def bundle_copy(tiny_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle that a test may change."""
    import shutil

    shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")
