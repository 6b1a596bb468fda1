#include "core/engines/engine_executorch.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "core/engines/executorch_graph.h"
#include "core/engines/reads.h"
#include "core/files/error.h"

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

// Where every weight is trained, the two workspaces share memory that is as large as the larger block.
class BundleEngine : public ExecutorchEngine {
public:
    BundleEngine(const Bundle &bundle, std::int64_t split, std::uint32_t threads)
        : manifest_(bundle.manifest()), split_(split),
          front_graph_(manifest_.graph(GraphKind::front, Runtime::executorch, split)),
          back_graph_(manifest_.graph(GraphKind::back, Runtime::executorch, split)),
          front_size_(manifest_.front_size(split)), back_size_(manifest_.total_size() - front_size_)
    {
        std::vector<const TensorFile *> frozen;
        for (const std::string &path : {manifest_.weights_file, manifest_.adapter_file}) {
            if (manifest_.trains_every_weight)
                break;
            files_.push_back(std::make_unique<TensorFile>(bundle.path_of(path)));
            frozen.push_back(files_.back().get());
        }
        check_sizes(bundle);
        memory_.resize(manifest_.trains_every_weight ? std::max(front_size_, back_size_) : manifest_.total_size());
        set_threads(threads);
        front_.emplace(bundle, front_graph_, frozen, front_workspace(), 0);
        back_.emplace(bundle, back_graph_, frozen, back_workspace(), front_size_);
    }

    std::size_t front_size() const override { return front_size_; }
    std::size_t back_size() const override { return back_size_; }
    float *front_workspace() override { return memory_.data(); }
    float *back_workspace() override { return memory_.data() + (memory_.size() - back_size_); }

    std::vector<Part> front_reads(const Batch &batch) const override
    {
        return read_parts(manifest_, front_graph_, true, split_, batch);
    }
    std::vector<Part> back_reads(const Batch &batch) const override
    {
        return read_parts(manifest_, back_graph_, false, split_, batch);
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
            throw Error(Code::bundle, "the loss of the back graph is not a float32 number",
                        "re-export the bundle with covey export");
        return static_cast<double>(*static_cast<const float *>(data));
    }
    Matrix back_output(const std::string &name) const override
    {
        const void *data = nullptr;
        const covey_executorch_tensor type = back_->output(name, &data);
        if (type.dtype != COVEY_EXECUTORCH_FLOAT32 || type.rank != 2)
            throw Error(Code::bundle, "the back graph's " + name + " is not a float32 matrix",
                        "re-export the bundle with covey export");
        return {static_cast<const float *>(data), type.sizes[0], type.sizes[1]};
    }

private:
    // Checks the layout against the bundle's files, so that no memory is allocated for sizes that it only claims.
    static void check_sizes(const Bundle &bundle) { InitialAdapter{bundle}; }

    const Manifest &manifest_;
    std::int64_t split_;
    const Graph &front_graph_, &back_graph_;
    std::size_t front_size_, back_size_;
    std::vector<float> memory_;
    std::vector<std::unique_ptr<TensorFile>> files_;
    std::optional<ExecutorchGraph> front_, back_; // destroyed before the members that they are bound to
};

} // namespace

std::unique_ptr<ExecutorchEngine> executorch_engine(const Bundle &bundle, std::int64_t split, std::uint32_t threads)
{
    return std::make_unique<BundleEngine>(bundle, split, threads);
}

} // namespace covey
