// One graph of a bundle on ExecuTorch (edge_runtime/engines/executorch_engine.py), bound to mapped weights.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/bundle/bundle.h"
#include "core/engines/engine.h"
#include "executorch/covey_executorch.h"

namespace covey {

// A copy of an output tensor: the graph's next run would overwrite the original.
struct Output {
    covey_executorch_tensor type;
    std::vector<std::uint8_t> bytes;
};

class Outputs : public Boundary {
public:
    std::map<std::string, Output> by_name;
};

// Bundle, files and workspace must outlive the graph. Every method may throw Error.
class ExecutorchGraph {
public:
    // Checks the graph's hash and loads the bytes that were checked. Args: `frozen` lists the files with weights;
    // `workspace` begins at parameter `workspace_start` of the flat vector.
    ExecutorchGraph(const Bundle &bundle, const Graph &graph, const std::vector<const TensorFile *> &frozen,
                    float *workspace, std::uint64_t workspace_start);
    ~ExecutorchGraph();
    ExecutorchGraph(const ExecutorchGraph &) = delete;
    ExecutorchGraph &operator=(const ExecutorchGraph &) = delete;

    // Runs the graph; `boundary` is the front's output, or null for the front itself.
    void run(const Batch &batch, const Outputs *boundary);
    // Returns an output's type; *data points to its values, which stay valid until the next run.
    covey_executorch_tensor output(const std::string &name, const void **data) const;
    std::unique_ptr<Outputs> copy_outputs() const;

private:
    void check(std::int32_t code, const std::string &what, Code kind) const;
    [[noreturn]] void refuse(const std::string &what) const;
    void bind(std::uint32_t index, const void *data, const std::vector<std::int64_t> &sizes, Dtype dtype, Code kind);
    void check_shape(const GraphInput &input, const std::vector<std::int64_t> &shape) const;
    void bind_parameter(const Manifest &manifest, std::uint32_t index, float *workspace, std::uint64_t start);
    void bind_frozen(std::uint32_t index, const std::vector<const TensorFile *> &files);
    const std::int64_t *fill_chunks(std::uint32_t index, const std::int64_t *data, const Batch &batch,
                                    std::int64_t filler, std::vector<std::int64_t> &sizes);
    void bind_batch(std::uint32_t index, const Batch &batch);
    void bind_boundary(std::uint32_t index, const Outputs &boundary);

    const Graph &graph_;
    MappedFile file_;
    covey_executorch_graph *handle_ = nullptr;
    std::map<std::uint32_t, std::vector<std::int64_t>> filled_; // padded batch fields, by input
};

} // namespace covey
