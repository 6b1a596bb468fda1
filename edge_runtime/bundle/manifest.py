"""The bundle's manifest: every file with its hash, every graph with its inputs, the layout and the task.

``manifest.json`` is written last, so a folder without one is an interrupted export. The bundle's name is the SHA-256
of the manifest's bytes; through the hashes in it, that names every byte of the bundle.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edge_runtime.bundle.base import Base
from edge_runtime.bundle.layout import Parameter
from edge_runtime.bundle.levels import MOST_LAYERS, Level, ascending, kind_of, listed
from edge_runtime.bundle.needs import Needs
from edge_runtime.errors import BundleError
from edge_runtime.values import Count, Sha256, Strict

if TYPE_CHECKING:
    from collections.abc import Iterable

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 4
"""The newest version that this Covey reads; it writes the oldest one that says what a bundle holds."""
PLAIN_VERSION = 3
"""The version of bundles without top levels and with a float32 base, which are the same in both versions."""

MOST_FILES = 16384
MOST_TENSORS = 1 << 18
LARGEST_TOLERANCE = 0.25

Index = Annotated[int, msgspec.Meta(ge=0, le=MOST_LAYERS)]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Shape = Annotated[list[Count | str], msgspec.Meta(max_length=16)]
Dtype = Literal["float32", "int64", "bool", "uint8"]
GraphKind = Literal["front", "back", "predict", "train"]
InputRole = Literal["weight", "constant", "frozen", "trainable", "batch", "boundary", "scale"]
Rows = Literal["input_ids"] | list[int]
Runtime = Literal["onnxruntime", "executorch"]
TaskKind = Literal["classify-head", "classify-prompt", "causal-lm"]
CAUSAL_LM: TaskKind = "causal-lm"


class FileEntry(Strict, frozen=True):
    """One file of the bundle: path relative to the bundle (posix), hash and size."""

    path: str
    sha256: Sha256
    size_bytes: Count


class GraphInput(Strict, frozen=True):
    """One input of a graph.

    Attributes:
        name: its name in the graph.
        dtype: element type.
        shape: fixed sizes, or ``batch``/``tokens`` (or another symbol) where the size is dynamic.
        role: ``weight`` (from the weights file), ``constant`` (from the weights file too, but given to the runtime when
            it loads the graph, so that it can lay it out for its products), ``frozen`` (from the adapter file, not
            trained), ``trainable`` (from the flat vector), ``batch`` (a field of batch.Batch or batch.CompletionBatch),
            ``boundary`` (an output of ``front``) or ``scale`` (factor on what the layer of a slot adds to its input; 1:
            the layer as it is).
        source: the name in the weights file, the adapter file, the layout, the batch, or the front's outputs; with a
            slot, ``{layer}`` in it is the placeholder of the layer that is bound to the slot.
        slot: for a tensor of a layer in a ``train`` graph: which of its active layers, counted from the lowest.
        rows: if the graph reads only some rows of a trainable tensor, such as an embedding: the field of the batch
            that lists them, or their indexes; None: it may read all rows. Of a frozen tensor only the former is said.
    """

    name: str
    dtype: Dtype
    shape: Shape
    role: InputRole
    source: str
    slot: Index | None = None
    rows: Rows | None = None


class GraphOutput(Strict, frozen=True):
    """One output of a graph: ``loss`` (a scalar), one of ``output_names``, a boundary tensor or a gradient.

    The loss is the mean over the rows, for ``causal-lm`` over all completion tokens of the batch.

    Attributes:
        name: its name in the graph.
        dtype: element type.
        shape: as an input's.
        source: for a gradient, the tensor of the layout that it belongs to, as an input's; else None.
        slot: for a gradient of a layer's tensor, which of the graph's active layers.
    """

    name: str
    dtype: Dtype
    shape: Shape
    source: str | None = None
    slot: Index | None = None


class Activations(Strict, frozen=True):
    """Bytes of a training graph's values that are alive at once at most, from the shapes of the trace.

    Attributes:
        first_row: with one row of the longest length.
        further_row: what each further row of the longest length adds.
    """

    first_row: Count
    further_row: Count


class Graph(Strict, frozen=True):
    """One graph.

    Attributes:
        kind: ``front`` and ``back`` of a split, ``predict``, or ``train``: loss and gradients with some of the layers.
        runtime: what runs it. ExecuTorch's inputs and outputs have no names in the file: they are in this order.
        file: its path in the bundle.
        split: of ``front`` and ``back``; of a ``train`` graph in ``behind.json`` (behind.py), the split behind which it
            begins.
        inputs: what it takes.
        outputs: what it gives; ``train``: the loss, then one gradient for each trainable input.
        level: of ``train``, the number of active layers, or the top level.
        recomputes: of ``train``, whether a layer's activations are computed again for its backward pass, so that only
            one hidden state a layer is kept.
        bounds: the largest values of named sizes, if the runtime plans its memory for them; empty: any size.
        activations: of ``train``, the memory that its values take; None: not known.
    """

    kind: GraphKind
    runtime: Runtime
    file: str
    split: Index | None
    inputs: Annotated[list[GraphInput], msgspec.Meta(max_length=MOST_TENSORS)]
    outputs: Annotated[list[GraphOutput], msgspec.Meta(max_length=MOST_TENSORS)]
    level: Level | None = None
    recomputes: bool = False
    bounds: dict[str, Annotated[int, msgspec.Meta(ge=1, le=2**40)]] = msgspec.field(default_factory=dict)
    activations: Activations | None = None

    @property
    def name(self) -> str:
        """Its name among the graphs of its runtime."""
        return graph_name(self.kind, self.split, self.level)

    @property
    def rescales(self) -> bool:
        """Whether what layers add to their inputs has factors; of ``train``."""
        return any(tensor.role == "scale" for tensor in self.inputs)


def graph_name(kind: str, split: int | None, level: Level | None) -> str:
    """Return a graph's name: its kind, and its split or level if it has one."""
    number: Level | None = split if split is not None else level
    return kind if number is None else f"{kind} {number}"


class Task(Strict, frozen=True):
    """What the model decides.

    Attributes:
        kind: ``classify-head`` (a linear head on the encoder), ``classify-prompt`` (logits of the label words only) or
            ``causal-lm`` (next token, loss on the completion only).
        labels: names of the labels; a row's label is one of them, or its index; empty for causal-lm.
        template: the prompt, with ``{text}`` once, and ``{mask}`` once for a masked language model; may be None for
            classify-head.
        label_words: one word per label; None for classify-head.
        label_token_ids: the token id of each label word; None for classify-head.
        max_tokens: rows longer than this are cut, the template's words are kept.
        pad_token_id: fills up shorter rows, on the right.
        mask_token: replaces ``{mask}`` in the prompt; None where the model is not a masked language model.
        mask_token_id: its token id.
        eos_token_id: ends each completion and counts as a token of it; None where the tokenizer has none, and for tasks
            other than causal-lm.
    """

    kind: TaskKind
    labels: list[str]
    template: str | None
    label_words: list[str] | None
    label_token_ids: list[TokenId] | None
    max_tokens: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    pad_token_id: TokenId
    mask_token: str | None = None
    mask_token_id: TokenId | None = None
    eos_token_id: TokenId | None = None


class Model(Strict, frozen=True):
    """Where the weights come from: Hugging Face ``model_type``, number of layers, parameters in the base model."""

    name: str
    model_type: str
    layers: Annotated[int, msgspec.Meta(ge=1, le=MOST_LAYERS)]
    parameters: Count


class Lora(Strict, frozen=True):
    """The LoRA configuration, as PEFT knows it. ``trained`` lists the matrices that are trained (B, or A and B)."""

    r: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    alpha: float
    targets: list[str]
    layers: list[Index]
    trained: list[Literal["A", "B"]]


class Golden(Strict, frozen=True):
    """Golden vectors: batches with the losses and logits that PyTorch gave.

    Attributes:
        file: a safetensors file; batch n has ``n.input_ids``, ``n.attention_mask``, ``n.labels``, ``n.loss`` and the
            first of ``output_names`` (``n.logits`` or ``n.token_losses``); for causal-lm also ``n.positions``. Level k
            has ``train_k.loss`` and ``train_k.gradients`` of batch 0 with the layers of golden.training_layers (level
            ``top:k``: with all layers): the whole layout, 0 for layers that are absent or not trained.
        batches: how many batches.
        seed: the adapter of the golden vectors is the initial one plus ``scale`` times the perturbation (seed, FRONT)
            over the whole layout, so that every trainable tensor matters (B matrices and new heads start at zero).
        scale: see ``seed``.
        tolerance: the largest absolute difference allowed.
    """

    file: str
    batches: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    seed: Annotated[int, msgspec.Meta(ge=0)]
    scale: float
    tolerance: Annotated[float, msgspec.Meta(gt=0, le=LARGEST_TOLERANCE)]


class Manifest(Strict, frozen=True):
    """The manifest of a bundle. See the module's docstring.

    Attributes:
        created_by: versions of covey, torch, transformers, peft, onnx that made the bundle.
        lora: None where every weight is trained.
        splits: layer indexes at which the graphs are cut; one front and one back graph each.
        levels: levels for which there is a training graph, ascending; empty: forward-only.
        parameters: the layout of the trainable vector.
        weights_file: base weights (safetensors, Hugging Face names).
        adapter_file: the initial adapter in PEFT's own format, beside its adapter_config.json; the weights file itself,
            its data in layout order, where every weight is trained.
        needs: the least versions of the libraries that read the bundle; None: it is too old to say.
        base: how the base weights are quantised; None: they are float32.
    """

    format_version: int
    created_by: dict[str, str]
    model: Model
    task: Task
    lora: Lora | None
    splits: Annotated[list[Index], msgspec.Meta(max_length=MOST_LAYERS)]
    parameters: Annotated[list[Parameter], msgspec.Meta(max_length=MOST_TENSORS)]
    weights_file: str
    adapter_file: str
    tokenizer_file: str
    golden: Golden
    graphs: Annotated[list[Graph], msgspec.Meta(max_length=MOST_FILES)]
    files: Annotated[list[FileEntry], msgspec.Meta(max_length=MOST_FILES)]
    levels: Annotated[list[Level], msgspec.Meta(max_length=2 * MOST_LAYERS)] = msgspec.field(default_factory=list)
    needs: Needs | None = None
    base: Base | None = None

    @property
    def train(self) -> Literal["lora", "full"]:
        """What is trained: LoRA matrices and a head, or every weight."""
        return "full" if self.lora is None else "lora"

    def file(self, path: str) -> FileEntry:
        """Return the entry of a file, or raise BundleError."""
        for entry in self.files:
            if entry.path == path:
                return entry
        raise BundleError(f"the manifest lists no file {path}", "export the bundle again")

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens that have a row in the embedding; None where the bundle is too old to say it."""
        tables = [i.shape[0] for graph in self.graphs for i in graph.inputs if i.rows == "input_ids" and i.shape]
        return min((size for size in tables if isinstance(size, int)), default=None)

    @property
    def runtimes(self) -> list[Runtime]:
        """The runtimes that have a graph of the whole model, in the manifest's order."""
        return [graph.runtime for graph in self.graphs if graph.kind == "predict"]

    def graph(self, kind: GraphKind, split: int | None = None, runtime: Runtime = "onnxruntime") -> Graph:
        """Return a runtime's graph of a kind (and split, for front and back), or raise BundleError."""
        for graph in self.graphs:
            if graph.kind == kind and graph.split == split and graph.runtime == runtime:
                return graph
        if self.runtimes and runtime not in self.runtimes:
            raise BundleError(
                f"the bundle has no graphs for {runtime}, only for {', '.join(self.runtimes)}",
                f"export with --runtime onnx,{runtime}, or set another engine",
            )
        at = "" if split is None else f" at split {split}"
        raise BundleError(
            f"the bundle has no {kind} graph{at}; its splits are {self.splits}",
            "choose one of its splits, or export with --split",
        )

    def levels_for(self, runtime: Runtime) -> list[Level]:
        """Return the levels for which a runtime has a training graph, ascending."""
        graphs = [graph for graph in self.graphs if graph.runtime == runtime]
        return ascending(graph.level for graph in graphs if graph.level is not None)

    def training_graph(self, level: Level, runtime: Runtime = "onnxruntime") -> Graph:
        """Return a runtime's training graph of a level, or raise BundleError."""
        for graph in self.graphs:
            if graph.kind == "train" and graph.level == level and graph.runtime == runtime:
                return graph
        if self.levels and not self.levels_for(runtime):
            raise BundleError(
                f"the bundle has no training graphs for {runtime}",
                f"export it again with --levels and --runtime onnx,{runtime}, or set another engine",
            )
        what = f"of level {level}" if kind_of(level) == "top" else f"with {level} active layers"
        raise BundleError(
            f"the bundle has no training graph {what}; its levels are [{listed(self.levels)}]",
            "choose one of its levels, or export with --levels",
        )


def format_version_of(levels: Iterable[Level], *, is_quantised: bool = False) -> int:
    """Return the oldest version that says what a bundle with these levels holds: older devices read it too."""
    is_new = is_quantised or any(kind_of(level) == "top" for level in levels)
    return FORMAT_VERSION if is_new else PLAIN_VERSION


def output_names(kind: TaskKind) -> list[str]:
    """Return the names of the outputs of ``predict`` for a task, and of ``back`` beside the loss.

    ``logits``: float32, (batch, labels). ``token_losses``: float32, (chunks, chunk), the cross-entropy (nats) at each
    of the batch's positions, 0 where its label is -100. ``best_tokens``: int64, (chunks, chunk), the likeliest next
    tokens.
    """
    return ["token_losses", "best_tokens"] if kind == CAUSAL_LM else ["logits"]
