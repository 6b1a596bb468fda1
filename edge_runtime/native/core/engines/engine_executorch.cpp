#include "core/engines/engine_executorch.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "core/bundle/golden.h"
#include "core/engines/executorch_graph.h"
#include "core/engines/reads.h"
#include "core/files/error.h"
#include "core/forward_only/coefficients.h"

namespace covey {
namespace {

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
    std::optional<ExecutorchGraph> front_, back_; // closed before what they are bound to
};

// The largest difference of a (rows, width) output from (rows, chunk) expected values, chunk at most width.
double difference(const float *found, std::size_t width, const float *expected, std::size_t rows, std::size_t chunk)
{
    double largest = 0.0, scale = 1.0;
    for (std::size_t row = 0; row < rows; row++) {
        for (std::size_t k = 0; k < chunk; k++) {
            const auto wanted = static_cast<double>(expected[row * chunk + k]);
            const double off = std::fabs(static_cast<double>(found[row * width + k]) - wanted);
            largest = off <= largest ? largest : off; // a NaN stays
            scale = std::max(scale, std::fabs(wanted));
        }
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
            const bool fits = loss.size_bytes == sizeof(float) && expected.shape.size() == 2 &&
                              output.type.dtype == COVEY_EXECUTORCH_FLOAT32 && output.type.rank == 2 &&
                              output.type.sizes[0] == expected.shape[0] && output.type.sizes[1] >= expected.shape[1];
            if (!fits)
                throw Error(Code::bundle, "the golden vectors have other shapes than the graphs", "export again");
            for (const double now :
                 {difference(&found_loss, 1, static_cast<const float *>(loss.data), 1, 1),
                  difference(reinterpret_cast<const float *>(output.bytes.data()),
                             static_cast<std::size_t>(output.type.sizes[1]), static_cast<const float *>(expected.data),
                             static_cast<std::size_t>(expected.shape[0]), static_cast<std::size_t>(expected.shape[1]))})
                largest = now <= largest ? largest : now;
        }
    }
    if (!(largest <= golden.tolerance))
        throw Error(Code::bundle, "the golden vectors differ from PyTorch by " + std::to_string(largest),
                    "report this machine and its ExecuTorch version; do not train on it");
    return largest;
}

} // namespace covey
