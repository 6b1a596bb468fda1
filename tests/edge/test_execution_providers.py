"""Execution providers: what is configured is used, or said to be missing; the plain package has two."""

from __future__ import annotations

import json
import logging
import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import onnxruntime as ort
import pytest
from fleets import write_edge
from profiles import made_profile

from edge_runtime import cli
from edge_runtime.agent.announcer import Announcer
from edge_runtime.agent.birth import Session, make_birth
from edge_runtime.agent.config import read_edge_config
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.data.batch import pad
from edge_runtime.engines import trial
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.engines.onnx_engine import make_session
from edge_runtime.engines.provider_trial import _PRODUCT, try_providers
from edge_runtime.engines.providers import check_taken, onnx_names, short_name
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.presence import Birth
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import encode_profile
from edge_runtime.store.journal import Journal
from edge_runtime.store.store import Store
from edge_runtime.store.trials import require_trial
from server.fleet.devices import Device

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.folder import Bundle

OTHERS = [short_name(name) for name in ort.get_available_providers() if short_name(name) != "cpu"]
BATCH = pad([[2, 8, 9, 10, 3], [2, 30, 3]], [0, 1], 0)
JETSON = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")

needs_another = pytest.mark.skipif("azure" not in OTHERS, reason="this onnxruntime has no provider but the processor")


def configured(tmp_path: Path, value: str, engine: str = "") -> EdgeConfig:
    path = write_edge(tmp_path, "pi", 1, 0)
    lines = "\n".join(line for line in (f"execution_providers = {value}", engine) if line)
    path.write_text(f"{lines}\n{path.read_text()}")
    return read_edge_config(path)


def edge_toml(tmp_path: Path, value: str) -> Path:
    configured(tmp_path, value)
    return next(tmp_path.rglob("edge.toml"))


@pytest.mark.parametrize(
    ("value", "engine", "said", "hint"),
    [
        ("[]", "", "is empty", "leave it out"),
        ('["CUDAExecutionProvider", "cpu"]', "", "'CUDAExecutionProvider'", 'write "cuda"'),
        ('["CPU"]', "", "'CPU'", 'write "cpu"'),
        ('["cu da"]', "", "'cu da'", "names are"),
        ('["cuda", "cpu", "cuda"]', "", "twice", "once"),
        ('["cuda", "cpu"]', 'engine = "executorch"', "engine is executorch", "leave"),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(
    tmp_path: Path, value: str, engine: str, said: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match="execution_providers") as caught:
        configured(tmp_path, value, engine)
    assert said in caught.value.what
    assert hint in caught.value.hint


def test_the_processor_alone_is_the_default_and_any_order_is_kept(tmp_path: Path) -> None:
    assert read_edge_config(write_edge(tmp_path, "pi", 1, 0)).execution_providers == ("cpu",)
    assert configured(tmp_path, '["tensorrt", "cuda", "cpu"]').execution_providers == ("tensorrt", "cuda", "cpu")


def test_names_are_onnx_runtimes_own() -> None:
    assert onnx_names(["tensorrt", "cuda", "cpu"], JETSON) == list(JETSON)
    assert all(onnx_names([short_name(name)], [name]) == [name] for name in ort.get_all_providers())


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        (("tensorrt", "cuda", "cpu"), ("CUDAExecutionProvider", "CPUExecutionProvider")),
        (("cuda", "cpu"), ("CPUExecutionProvider",)),
        (("cuda",), ("CPUExecutionProvider",)),
        (("cpu", "cuda"), ("CUDAExecutionProvider", "CPUExecutionProvider")),
    ],
)
def test_a_session_that_left_a_provider_out_is_refused(asked: tuple[str, ...], taken: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"does not start .* instead") as caught:
        check_taken(asked, taken)
    assert "nvidia-jetpack" in caught.value.hint
    check_taken(("cuda",), ("CUDAExecutionProvider", "CPUExecutionProvider"))
    check_taken(("tensorrt", "cuda", "cpu"), JETSON)


def test_a_provider_that_is_not_installed_is_an_error_that_names_those_that_are(tiny_bundle: Bundle) -> None:
    """ONNX Runtime itself only warns, and runs on the processor."""
    installed = [short_name(name) for name in ort.get_available_providers()]
    for providers in (("cuda", "cpu"), ("cuda",), ("xnnpack", "cpu")):
        engines = Engines(threads=1, providers=providers)
        for make in (engines.make_predictor, lambda bundle, e=engines: e.make_engine(bundle, 1)):
            with pytest.raises(ConfigError, match=f"no execution provider {providers[0]}") as caught:
                make(tiny_bundle)
            assert all(name in caught.value.what for name in installed)
            assert "execution_providers" in caught.value.hint


def test_training_graphs_use_the_providers_too(tiny_bundle: Bundle) -> None:
    opener = Engines(threads=1, providers=("cuda", "cpu")).opener()
    with pytest.raises(ConfigError, match="no execution provider cuda"):
        opener.open_training(tiny_bundle, tiny_bundle.manifest.graph("predict"))


@needs_another
def test_another_provider_is_taken_and_the_processor_is_used_only_where_it_is_named(tiny_bundle: Bundle) -> None:
    """AzureExecutionProvider takes no part of a graph: all of it is left to the processor."""
    session = make_session(_PRODUCT, 1, providers=("azure", "cpu"))
    assert [short_name(name) for name in session.get_providers()] == ["azure", "cpu"]
    theta = golden_adapter(tiny_bundle.initial_adapter(), tiny_bundle.manifest.golden)
    expected = Engines(threads=1).make_predictor(tiny_bundle).logits(theta, BATCH)
    predictor = Engines(threads=1, providers=("azure", "cpu")).make_predictor(tiny_bundle)
    assert (predictor.logits(theta, BATCH) == expected).all()
    with pytest.raises(ConfigError, match=r"cannot run .* on azure") as caught:
        Engines(threads=1, providers=("azure",)).make_predictor(tiny_bundle)
    assert 'add "cpu"' in caught.value.hint


def test_a_session_that_falls_back_silently_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA's libraries are missing, ONNX Runtime logs a line, and makes a session for the processor."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(JETSON))
    with (
        pytest.raises(ConfigError, match="does not start cuda: it would run on cpu"),
        pytest.warns(UserWarning, match="provider"),
    ):
        make_session(_PRODUCT, 1, providers=("cuda", "cpu"))


def test_products_are_float32_on_nvidias_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar is a difference of two losses: factors of 10 bits would leave nothing of it."""
    asked: dict[str, Any] = {}

    def refusing(_model: bytes, _options: object, **words: Any) -> None:
        asked.update(words)
        raise RuntimeError("CUDA failure 35: driver version is insufficient; CUDAExecutionProvider")

    monkeypatch.setattr(ort, "get_available_providers", lambda: list(JETSON))
    monkeypatch.setattr(ort, "InferenceSession", refusing)
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    with pytest.raises(ConfigError, match="driver version is insufficient") as caught:
        make_session(_PRODUCT, 1, providers=("tensorrt", "cuda", "cpu"))
    assert "nvidia-jetpack" in caught.value.hint
    assert asked["providers"] == list(JETSON)
    assert asked["provider_options"] == [{}, {"use_tf32": "0"}, {}]
    assert asked["enable_fallback"] == 0
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


def test_a_broken_graph_is_the_bundles_fault_on_any_provider() -> None:
    for providers in (("cpu",), *([("azure", "cpu")] if "azure" in OTHERS else [])):
        with pytest.raises(BundleError, match="cannot load"):
            make_session(b"\x00", 1, providers=providers)


def test_trying_says_what_a_session_would(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no execution provider tensorrt, cuda, but .*cpu"):
        try_providers(Engines(providers=("tensorrt", "cuda", "cpu")))
    if "azure" in OTHERS:
        try_providers(Engines(providers=("azure", "cpu")))
        with pytest.raises(ConfigError, match="azure"):
            try_providers(Engines(providers=("azure",)))
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="loading onnxruntime ends the process by SIGSEGV"):
        try_providers(Engines(providers=("cuda", "cpu")))
    try_providers(Engines())  # the processor alone loads nothing


@pytest.mark.parametrize("command", [["run"], ["profile", "--no-publish"], ["predict", "a text"], ["doctor"]])
def test_each_command_says_it_at_its_start(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    path = edge_toml(tmp_path, '["cuda", "cpu"]')
    if command[0] == "predict":
        keep_bundle(read_edge_config(path), tiny_bundle)
    code = cli.main([command[0], "--config", str(path), "--format", "json", *command[1:]])
    said = capsys.readouterr()
    assert code == ConfigError.exit_code
    assert "no execution provider cuda" in said.out + said.err
    assert "onnxruntime-gpu" in said.out + said.err
    if command[0] == "doctor":
        checks = {check["check"]: check for check in json.loads(said.out)["checks"]}
        assert checks["providers"]["status"] == "problem"
        assert checks["providers"]["execution_providers"] == ["cuda", "cpu"]


def keep_bundle(config: EdgeConfig, bundle: Bundle) -> None:
    """Give a device a bundle and its first adapter, as a round leaves them."""
    store, theta = Store(Path(config.state_dir)), bundle.initial_adapter()
    store.make_folders()
    shutil.copytree(bundle.path, store.bundles / bundle.sha256)
    sha256 = adapter_sha256(theta)
    made = store.root / "made"
    made.write_bytes(theta.tobytes())
    store.write_journal(Journal(job="job", bundle_sha256=bundle.sha256, adapter_sha256=sha256))
    store.keep_adapter(made, sha256)


def birth(config: EdgeConfig) -> Birth:
    return make_birth(config, Session("1"), Journal(), None, None)


def test_the_birth_names_them_and_is_as_it_was_without_them(tmp_path: Path) -> None:
    plain = encode_message(birth(read_edge_config(write_edge(tmp_path, "pi", 1, 0))))
    assert b"execution_providers" not in plain
    sent = encode_message(birth(configured(tmp_path, '["tensorrt", "cuda", "cpu"]')))
    assert decode_message(sent, Birth).execution_providers == ["tensorrt", "cuda", "cpu"]


def test_a_profile_of_other_providers_is_neither_sent_nor_used(
    tmp_path: Path, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(tmp_path, '["cuda", "cpu"]')
    store = Store(tmp_path / "state")
    store.make_folders()
    profile = made_profile(tiny_bundle)
    sent: list[str] = []
    announcer = Announcer(config, store, Recorder(sent), "1", None, None)  # type: ignore[arg-type]
    assert profile.measured is not None
    on_cuda = msgspec.structs.replace(
        profile, measured=msgspec.structs.replace(profile.measured, execution_providers=["cuda", "cpu"])
    )
    with caplog.at_level(logging.INFO):
        for kept, expected in ((profile, 0), (on_cuda, 1)):
            (store.root / PROFILE_FILE).write_bytes(encode_profile(kept))
            announcer._profile(None)
            assert len(sent) == expected
    assert "was measured on cpu, and this device runs on cuda, cpu" in caplog.text
    device = Device("pi", profile=profile, birth=birth(config))
    assert device.usable_profile is None
    device.profile = on_cuda
    assert device.usable_profile is on_cuda
    plain = tmp_path / "plain"
    plain.mkdir()
    device.birth = birth(read_edge_config(write_edge(plain, "pi", 1, 0)))
    assert device.usable_profile is None
    device.profile = profile
    assert device.usable_profile is profile


class Recorder:
    """A transport that keeps the topics it publishes on."""

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def publish(self, topic: str, _payload: bytes, **_: Any) -> None:
        self._topics.append(topic)


@needs_another
def test_a_bundle_is_tried_again_where_the_providers_change(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, ...]] = []
    real = trial.try_bundle

    def counting(path: Path, engines: Engines) -> object:
        tried.append(engines.providers)
        return real(path, engines)

    monkeypatch.setattr("edge_runtime.store.trials.try_bundle", counting)
    for providers in (("cpu",), ("azure", "cpu"), ("cpu",), ("azure", "cpu")):
        require_trial(tmp_path, tiny_bundle, Engines(threads=1, providers=providers))
    assert tried == [("cpu",), ("azure", "cpu")]


def test_the_package_with_cuda_counts_as_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.23.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert trial.runtime_version("onnxruntime") == "1.23.0"
    monkeypatch.setattr(metadata, "version", lambda name: (_ for _ in ()).throw(metadata.PackageNotFoundError(name)))
    with pytest.raises(ConfigError, match="onnxruntime is not installed"):
        trial.runtime_version("onnxruntime")
