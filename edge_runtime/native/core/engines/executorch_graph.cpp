#include "core/engines/executorch_graph.h"

#include <algorithm>
#include <cstring>

#include "core/files/error.h"

namespace covey {
namespace {

constexpr std::int64_t ignored = -100; // the label of a place that pads a chunk

std::size_t item_size(std::int32_t dtype)
{
    switch (dtype) {
    case COVEY_EXECUTORCH_BOOL:
        return 1;
    case COVEY_EXECUTORCH_INT64:
        return 8;
    default:
        return 4;
    }
}

std::int32_t executorch_dtype(Dtype dtype)
{
    switch (dtype) {
    case Dtype::float32:
        return COVEY_EXECUTORCH_FLOAT32;
    case Dtype::int64:
        return COVEY_EXECUTORCH_INT64;
    case Dtype::boolean:
        return COVEY_EXECUTORCH_BOOL;
    }
    return 0;
}

} // namespace

ExecutorchGraph::ExecutorchGraph(const Bundle &bundle, const Graph &graph,
                                 const std::vector<const TensorFile *> &frozen, float *workspace,
                                 std::uint64_t workspace_start)
    : graph_(graph), file_(bundle.path_of(graph.file), Code::bundle)
{
    bundle.check(file_, bundle.manifest().file(graph.file));
    check(covey_executorch_open_bytes(file_.data(), file_.size(), &handle_), "cannot load", Code::bundle);
    // The destructor does not run where the constructor throws: until it ends, this owner closes the graph.
    std::unique_ptr<covey_executorch_graph, void (*)(covey_executorch_graph *)> owner(handle_, covey_executorch_close);
    if (covey_executorch_inputs(handle_) != graph.inputs.size() ||
        covey_executorch_outputs(handle_) != graph.outputs.size())
        refuse("has other inputs or outputs than the manifest says");
    for (std::uint32_t index = 0; index < graph.inputs.size(); index++) {
        const GraphInput &input = graph.inputs[index];
        if (input.role == InputRole::trainable)
            bind_parameter(bundle.manifest(), index, workspace, workspace_start);
        else if (input.role != InputRole::batch && input.role != InputRole::boundary)
            bind_frozen(index, frozen);
    }
    owner.release();
}

ExecutorchGraph::~ExecutorchGraph()
{
    covey_executorch_close(handle_);
}

void ExecutorchGraph::run(const Batch &batch, const Outputs *boundary)
{
    for (std::uint32_t index = 0; index < graph_.inputs.size(); index++) {
        const GraphInput &input = graph_.inputs[index];
        if (input.role == InputRole::batch)
            bind_batch(index, batch);
        else if (input.role == InputRole::boundary)
            bind_boundary(index, *boundary);
    }
    check(covey_executorch_run(handle_),
          "failed on a batch of " + std::to_string(batch.rows) + " x " + std::to_string(batch.tokens) + " tokens",
          Code::training);
}

covey_executorch_tensor ExecutorchGraph::output(const std::string &name, const void **data) const
{
    const auto found = std::find(graph_.outputs.begin(), graph_.outputs.end(), name);
    if (found == graph_.outputs.end())
        refuse("gives no " + name);
    covey_executorch_tensor type{};
    check(covey_executorch_output(handle_, static_cast<std::uint32_t>(found - graph_.outputs.begin()), &type, data),
          "does not give " + name, Code::training);
    return type;
}

std::unique_ptr<Outputs> ExecutorchGraph::copy_outputs() const
{
    auto outputs = std::make_unique<Outputs>();
    for (const std::string &name : graph_.outputs) {
        const void *data = nullptr;
        Output &output = outputs->by_name[name];
        output.type = this->output(name, &data);
        std::size_t size = item_size(output.type.dtype);
        for (std::uint32_t axis = 0; axis < output.type.rank; axis++)
            size *= static_cast<std::size_t>(output.type.sizes[axis]);
        output.bytes.resize(size);
        if (size > 0)
            std::memcpy(output.bytes.data(), data, size);
    }
    return outputs;
}

void ExecutorchGraph::check(std::int32_t code, const std::string &what, Code kind) const
{
    if (code != 0)
        throw Error(kind,
                    "ExecuTorch " + what + ": " + graph_.file + ": " + covey_executorch_code_name(code) + ": " +
                        covey_executorch_error(),
                    kind == Code::bundle ? "re-export the bundle with the ExecuTorch version that this app has"
                                         : "use a smaller batch if memory is short; check the bundle's golden vectors");
}

void ExecutorchGraph::refuse(const std::string &what) const
{
    throw Error(Code::bundle, graph_.file + " " + what, "re-export the bundle with covey export");
}

void ExecutorchGraph::bind(std::uint32_t index, const void *data, const std::vector<std::int64_t> &sizes, Dtype dtype,
                           Code kind)
{
    covey_executorch_tensor expected{};
    const GraphInput &input = graph_.inputs[index];
    check(covey_executorch_input(handle_, index, &expected), "lacks input " + input.source, kind);
    if (expected.dtype != executorch_dtype(dtype))
        refuse("takes " + input.source + " with another element type than " + text_of(dtype_names, dtype));
    check(covey_executorch_bind(handle_, index, data, sizes.data(), static_cast<std::uint32_t>(sizes.size())),
          "does not take " + input.source, kind);
}

void ExecutorchGraph::check_shape(const GraphInput &input, const std::vector<std::int64_t> &shape) const
{
    bool fits = input.shape.size() == shape.size();
    for (std::size_t axis = 0; fits && axis < shape.size(); axis++)
        fits = std::get_if<std::int64_t>(&input.shape[axis]) != nullptr &&
               std::get<std::int64_t>(input.shape[axis]) == shape[axis];
    if (!fits)
        refuse("needs " + input.source + " with another shape");
}

void ExecutorchGraph::bind_parameter(const Manifest &manifest, std::uint32_t index, float *workspace,
                                     std::uint64_t start)
{
    const GraphInput &input = graph_.inputs[index];
    for (const Parameter &parameter : manifest.parameters) {
        if (parameter.name != input.source)
            continue;
        if ((graph_.kind == GraphKind::front) != (parameter.layer < *graph_.split))
            refuse("takes " + input.source + " of the other block");
        check_shape(input, parameter.shape);
        bind(index, workspace + (parameter.offset - start), parameter.shape, Dtype::float32, Code::bundle);
        return;
    }
    refuse("needs " + input.source + ", which is not in the layout");
}

void ExecutorchGraph::bind_frozen(std::uint32_t index, const std::vector<const TensorFile *> &files)
{
    const GraphInput &input = graph_.inputs[index];
    for (const TensorFile *file : files) {
        const auto found = file->tensors().find(input.source);
        if (found == file->tensors().end())
            continue;
        check_shape(input, found->second.shape);
        bind(index, found->second.data, found->second.shape, found->second.dtype, Code::bundle);
        return;
    }
    refuse("needs " + input.source + ", which no file of the bundle holds");
}

// Pads chunks to the one width that the graph takes, with a filler that the loss ignores.
const std::int64_t *ExecutorchGraph::fill_chunks(std::uint32_t index, const std::int64_t *data, const Batch &batch,
                                                 std::int64_t filler, std::vector<std::int64_t> &sizes)
{
    const GraphInput &input = graph_.inputs[index];
    const auto *width = input.shape.size() == 2 ? std::get_if<std::int64_t>(&input.shape[1]) : nullptr;
    if (width == nullptr || *width == batch.chunk)
        return data;
    if (batch.chunks < 1 || batch.chunk < 1 || batch.chunk > *width)
        throw Error(Code::config,
                    "a batch has chunks of " + std::to_string(batch.chunk) +
                        " positions; the bundle's graphs take up to " + std::to_string(*width),
                    "use smaller chunks");
    std::vector<std::int64_t> &filled = filled_[index];
    filled.assign(static_cast<std::size_t>(batch.chunks * *width), filler);
    for (std::int64_t row = 0; row < batch.chunks; row++)
        std::copy_n(data + row * batch.chunk, batch.chunk, filled.data() + row * *width);
    sizes[1] = *width;
    return filled.data();
}

void ExecutorchGraph::bind_batch(std::uint32_t index, const Batch &batch)
{
    const std::string &source = graph_.inputs[index].source;
    const bool is_tokens = source == "input_ids" || source == "attention_mask";
    const std::int64_t *data = source == "input_ids"        ? batch.input_ids
                               : source == "attention_mask" ? batch.attention_mask
                               : source == "labels"         ? batch.labels
                               : source == "positions"      ? batch.positions
                                                            : nullptr;
    if (data == nullptr)
        throw Error(Code::config, "the batch has no " + source, "fill the fields that the task needs; see covey.h");
    std::vector<std::int64_t> sizes = {batch.rows, batch.tokens};
    if (!is_tokens && batch.positions == nullptr) {
        sizes = {batch.rows};
    } else if (!is_tokens) {
        sizes = {batch.chunks, batch.chunk};
        data = fill_chunks(index, data, batch, source == "labels" ? ignored : 0, sizes);
    }
    bind(index, data, sizes, Dtype::int64, Code::training);
}

void ExecutorchGraph::bind_boundary(std::uint32_t index, const Outputs &boundary)
{
    const GraphInput &input = graph_.inputs[index];
    const auto found = boundary.by_name.find(input.source);
    if (found == boundary.by_name.end())
        refuse("needs " + input.source + ", which the front does not give");
    const covey_executorch_tensor &type = found->second.type;
    bind(index, found->second.bytes.data(), {type.sizes, type.sizes + type.rank}, input.dtype, Code::training);
}

} // namespace covey
