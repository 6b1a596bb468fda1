#include "engine_executorch.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <vector>

#include "covey_executorch.h"
#include "error.h"
#include "golden.h"
#include "reads.h"
#include "update.h"

namespace covey {
namespace {

// A tensor that a graph gave: what crosses the cut is copied, for the graph's next run overwrites it.
struct Output {
    covey_executorch_tensor type;
    std::vector<std::uint8_t> bytes;
};

class Outputs : public Boundary {
public:
    std::map<std::string, Output> by_name;
};

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

// One graph with its weights bound to the mapped files and its trainable parameters to a workspace.
class Runner {
public:
    Runner(const Bundle &bundle, const Graph &graph, const std::vector<const TensorFile *> &frozen, float *workspace,
           std::uint64_t workspace_start)
        : graph_(graph), file_(bundle.path_of(graph.file), Code::bundle)
    {
        bundle.check(file_, bundle.manifest().file(graph.file));
        check(covey_executorch_open_bytes(file_.data(), file_.size(), &handle_), "cannot load", Code::bundle);
        // The destructor does not run for an object that was not finished: from here on this closes the graph.
        std::unique_ptr<covey_executorch_graph, void (*)(covey_executorch_graph *)> owner(handle_,
                                                                                          covey_executorch_close);
        if (covey_executorch_inputs(handle_) != graph.inputs.size() ||
            covey_executorch_outputs(handle_) != graph.outputs.size())
            refuse("has other inputs or outputs than the manifest says");
        for (std::uint32_t index = 0; index < graph.inputs.size(); index++) {
            const GraphInput &input = graph.inputs[index];
            if (input.role == "trainable")
                bind_parameter(bundle.manifest(), index, workspace, workspace_start);
            else if (input.role != "batch" && input.role != "boundary")
                bind_frozen(index, frozen);
        }
        owner.release();
    }
    ~Runner() { covey_executorch_close(handle_); }
    Runner(const Runner &) = delete;
    Runner &operator=(const Runner &) = delete;

    void run(const Batch &batch, const Outputs *boundary)
    {
        for (std::uint32_t index = 0; index < graph_.inputs.size(); index++) {
            const GraphInput &input = graph_.inputs[index];
            if (input.role == "batch")
                bind_batch(index, batch);
            else if (input.role == "boundary")
                bind_boundary(index, *boundary);
        }
        check(covey_executorch_run(handle_), "failed on a batch of " + std::to_string(batch.rows) + " x " +
                                                 std::to_string(batch.tokens) + " tokens", Code::training);
    }

    // Args: data is the graph's own, until its next run.
    covey_executorch_tensor output(const std::string &name, const void **data) const
    {
        const auto found = std::find(graph_.outputs.begin(), graph_.outputs.end(), name);
        if (found == graph_.outputs.end())
            refuse("gives no " + name);
        covey_executorch_tensor type{};
        check(covey_executorch_output(handle_, static_cast<std::uint32_t>(found - graph_.outputs.begin()), &type, data),
              "does not give " + name, Code::training);
        return type;
    }

    std::unique_ptr<Outputs> copy_outputs() const
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

private:
    void check(std::int32_t code, const std::string &what, Code kind) const
    {
        if (code != 0)
            throw Error(kind, "ExecuTorch " + what + ": " + graph_.file + ": " + covey_executorch_code_name(code) + ": " +
                                  covey_executorch_error(),
                        kind == Code::bundle ? "export the bundle with the ExecuTorch version that this app has"
                                             : "use a smaller batch if memory is short; check the bundle's golden vectors");
    }
    [[noreturn]] void refuse(const std::string &what) const
    {
        throw Error(Code::bundle, graph_.file + " " + what, "export the bundle again");
    }
    void bind(std::uint32_t index, const void *data, const std::vector<std::int64_t> &sizes, const std::string &dtype,
              Code kind)
    {
        covey_executorch_tensor expected{};
        const GraphInput &input = graph_.inputs[index];
        check(covey_executorch_input(handle_, index, &expected), "lacks input " + input.source, kind);
        const bool fits = (dtype == "float32" && expected.dtype == COVEY_EXECUTORCH_FLOAT32) ||
                          (dtype == "int64" && expected.dtype == COVEY_EXECUTORCH_INT64) ||
                          (dtype == "bool" && expected.dtype == COVEY_EXECUTORCH_BOOL);
        if (!fits)
            refuse("takes " + input.source + " with another element type than " + dtype);
        check(covey_executorch_bind(handle_, index, data, sizes.data(), static_cast<std::uint32_t>(sizes.size())),
              "does not take " + input.source, kind);
    }
    void check_shape(const GraphInput &input, const std::vector<std::int64_t> &shape) const
    {
        bool fits = input.shape.size() == shape.size();
        for (std::size_t axis = 0; fits && axis < shape.size(); axis++)
            fits = std::get_if<std::int64_t>(&input.shape[axis]) != nullptr &&
                   std::get<std::int64_t>(input.shape[axis]) == shape[axis];
        if (!fits)
            refuse("needs " + input.source + " with another shape");
    }
    void bind_parameter(const Manifest &manifest, std::uint32_t index, float *workspace, std::uint64_t start)
    {
        const GraphInput &input = graph_.inputs[index];
        for (const Parameter &parameter : manifest.parameters) {
            if (parameter.name != input.source)
                continue;
            if ((graph_.kind == "front") != (parameter.layer < *graph_.split))
                refuse("takes " + input.source + " of the other block");
            check_shape(input, parameter.shape);
            bind(index, workspace + (parameter.offset - start), parameter.shape, "float32", Code::bundle);
            return;
        }
        refuse("needs " + input.source + ", which is not in the layout");
    }
    void bind_frozen(std::uint32_t index, const std::vector<const TensorFile *> &files)
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
        refuse("needs " + input.source + ": not there");
    }
    void bind_batch(std::uint32_t index, const Batch &batch)
    {
        const std::string &source = graph_.inputs[index].source;
        const std::vector<std::int64_t> tokens = {batch.rows, batch.tokens}, chunks = {batch.chunks, batch.chunk};
        const bool is_tokens = source == "input_ids" || source == "attention_mask";
        const std::int64_t *data = source == "input_ids"        ? batch.input_ids
                                   : source == "attention_mask" ? batch.attention_mask
                                   : source == "labels"         ? batch.labels
                                   : source == "positions"      ? batch.positions
                                                                : nullptr;
        if (data == nullptr)
            throw Error(Code::config, "the batch has no " + source, "fill the fields that the task needs; see covey.h");
        const std::vector<std::int64_t> rows = {batch.rows};
        bind(index, data, is_tokens ? tokens : batch.positions == nullptr ? rows : chunks, "int64", Code::training);
    }
    void bind_boundary(std::uint32_t index, const Outputs &boundary)
    {
        const GraphInput &input = graph_.inputs[index];
        const auto found = boundary.by_name.find(input.source);
        if (found == boundary.by_name.end())
            refuse("needs " + input.source + ", which the front does not give");
        const covey_executorch_tensor &type = found->second.type;
        bind(index, found->second.bytes.data(), {type.sizes, type.sizes + type.rank}, input.dtype, Code::training);
    }

    const Graph &graph_;
    MappedFile file_;
    covey_executorch_graph *handle_ = nullptr;
};

void set_threads(std::uint32_t threads)
{
    if (covey_executorch_abi() != COVEY_EXECUTORCH_ABI)
        throw Error(Code::config, "the ExecuTorch library is of another version", "build it and this one together");
    if (covey_executorch_set_threads(threads) != 0)
        throw Error(Code::config, std::string("ExecuTorch's threads cannot be set: ") + covey_executorch_error(),
                    "close the other engines first, or use the same number of threads");
}

// Where every weight is trained, the two workspaces lie in the same memory, as large as the larger block.
class ExecutorchEngine : public Engine {
public:
    ExecutorchEngine(const Bundle &bundle, std::int64_t split, std::uint32_t threads)
        : manifest_(&bundle.manifest()), split_(split), front_graph_(&manifest_->graph("front", "executorch", split)),
          back_graph_(&manifest_->graph("back", "executorch", split))
    {
        const Manifest &manifest = *manifest_;
        front_size_ = manifest.front_size(split);
        back_size_ = manifest.total_size() - front_size_;
        std::vector<const TensorFile *> frozen;
        for (const std::string &path : {manifest.weights_file, manifest.adapter_file}) {
            if (manifest.trains_every_weight)
                break;
            files_.push_back(std::make_unique<TensorFile>(bundle.path_of(path)));
            frozen.push_back(files_.back().get());
        }
        check_sizes(bundle);
        memory_.resize(manifest.trains_every_weight ? std::max(front_size_, back_size_) : manifest.total_size());
        set_threads(threads);
        front_.emplace(bundle, *front_graph_, frozen, front_workspace(), 0);
        back_.emplace(bundle, *back_graph_, frozen, back_workspace(), front_size_);
    }

    std::size_t front_size() const override { return front_size_; }
    std::size_t back_size() const override { return back_size_; }
    float *front_workspace() override { return memory_.data(); }
    float *back_workspace() override { return memory_.data() + (memory_.size() - back_size_); }

    std::vector<Part> front_reads(const Batch &batch) const override
    {
        return read_parts(*manifest_, *front_graph_, true, split_, batch);
    }
    std::vector<Part> back_reads(const Batch &batch) const override
    {
        return read_parts(*manifest_, *back_graph_, false, split_, batch);
    }
    std::unique_ptr<Boundary> front(const Batch &batch) override
    {
        front_->run(batch, nullptr);
        return front_->copy_outputs();
    }
    double back(const Boundary &boundary, const Batch &batch) override
    {
        const void *data = nullptr;
        back_->run(batch, static_cast<const Outputs *>(&boundary));
        const covey_executorch_tensor type = back_->output("loss", &data);
        if (type.dtype != COVEY_EXECUTORCH_FLOAT32 || type.rank > 1 || (type.rank == 1 && type.sizes[0] != 1))
            throw Error(Code::bundle, "the loss of the back graph is not a float32 number", "export the bundle again");
        return static_cast<double>(*static_cast<const float *>(data));
    }
    // What the last run of the back block gave.
    std::unique_ptr<Outputs> back_outputs() const { return back_->copy_outputs(); }

private:
    // The parameters lie in files of the bundle: a layout that claims more than those hold gets no memory.
    static void check_sizes(const Bundle &bundle) { InitialAdapter{bundle}; }

    const Manifest *manifest_;
    std::int64_t split_;
    const Graph *front_graph_, *back_graph_;
    std::size_t front_size_ = 0, back_size_ = 0;
    std::vector<float> memory_;
    std::vector<std::unique_ptr<TensorFile>> files_;
    std::optional<Runner> front_, back_; // closed before what they are bound to
};

double difference(const float *found, const float *expected, std::size_t n)
{
    double largest = 0.0, scale = 1.0;
    for (std::size_t k = 0; k < n; k++) {
        const double off = std::fabs(static_cast<double>(found[k]) - static_cast<double>(expected[k]));
        largest = off <= largest ? largest : off; // a NaN stays
        scale = std::max(scale, std::fabs(static_cast<double>(expected[k])));
    }
    return largest / scale;
}

} // namespace

std::unique_ptr<Engine> executorch_engine(const Bundle &bundle, std::int64_t split, std::uint32_t threads)
{
    return std::make_unique<ExecutorchEngine>(bundle, split, threads);
}

double check_golden(const Bundle &bundle, std::uint32_t threads)
{
    const Manifest &manifest = bundle.manifest();
    const Golden &golden = manifest.golden;
    const TensorFile file(bundle.path_of(golden.file));
    const std::string name = manifest.task == "causal-lm" ? "token_losses" : "logits";
    BlockTerms moved;
    moved.add(golden.seed, golden.scale);
    const InitialAdapter initial(bundle);
    std::vector<float> theta(manifest.total_size());
    add_terms(theta.data(), initial.data(), theta.size(), moved, front_block);
    double largest = 0.0;
    for (const std::int64_t split : manifest.splits) {
        ExecutorchEngine engine(bundle, split, threads);
        for (std::uint64_t n = 0; n < golden.batches; n++) {
            const Batch batch = batch_from(file, n);
            const Tensor &loss = file.tensor(std::to_string(n) + ".loss", "float32");
            const Tensor &expected = file.tensor(std::to_string(n) + "." + name, "float32");
            std::copy_n(theta.data(), engine.front_size(), engine.front_workspace());
            const std::unique_ptr<Boundary> boundary = engine.front(batch);
            std::copy_n(theta.data() + engine.front_size(), engine.back_size(), engine.back_workspace());
            const auto found_loss = static_cast<float>(engine.back(*boundary, batch));
            const std::unique_ptr<Outputs> outputs = engine.back_outputs();
            const Output &output = outputs->by_name[name];
            if (loss.size_bytes != sizeof(float) || output.bytes.size() != expected.size_bytes)
                throw Error(Code::bundle, "the golden vectors have other shapes than the graphs", "export again");
            for (const double now :
                 {difference(&found_loss, static_cast<const float *>(loss.data), 1),
                  difference(reinterpret_cast<const float *>(output.bytes.data()),
                             static_cast<const float *>(expected.data), expected.size_bytes / sizeof(float))})
                largest = now <= largest ? largest : now;
        }
    }
    if (!(largest <= golden.tolerance))
        throw Error(Code::bundle, "the golden vectors differ from PyTorch by " + std::to_string(largest),
                    "report this machine and its ExecuTorch version; do not train on it");
    return largest;
}

} // namespace covey
