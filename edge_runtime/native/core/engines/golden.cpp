#include "core/engines/golden.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/engines/engine_executorch.h"
#include "core/files/error.h"
#include "kernel/perturb.h"

namespace covey {
namespace {

// Returns the largest difference of found, (rows, width), from expected, (rows, chunk) with chunk at most width,
// divided by the largest expected value where that is above 1. Infinity where a value is not finite.
double difference(const Matrix &found, const float *expected, std::int64_t chunk)
{
    double largest = 0.0, scale = 1.0;
    for (std::int64_t row = 0; row < found.rows; row++) {
        for (std::int64_t k = 0; k < chunk; k++) {
            const auto wanted = static_cast<double>(expected[row * chunk + k]);
            const double off = std::fabs(static_cast<double>(found.values[row * found.width + k]) - wanted);
            if (!std::isfinite(off))
                return std::numeric_limits<double>::infinity();
            largest = std::max(largest, off);
            scale = std::max(scale, std::fabs(wanted));
        }
    }
    return largest / scale;
}

// Runs golden batch n at theta. Returns the larger difference of its loss and its output `name`.
double batch_difference(ExecutorchEngine &engine, const TensorFile &file, std::uint64_t n, const std::string &name,
                        const std::vector<float> &theta)
{
    const Batch batch = batch_from(file, n);
    const Tensor &loss = file.tensor(std::to_string(n) + ".loss", Dtype::float32);
    const Tensor &expected = file.tensor(std::to_string(n) + "." + name, Dtype::float32);
    // Each workspace is written just before its block runs: they may lie in the same memory.
    std::copy_n(theta.data(), engine.front_size(), engine.front_workspace());
    const std::unique_ptr<Boundary> boundary = engine.front(batch);
    std::copy_n(theta.data() + engine.front_size(), engine.back_size(), engine.back_workspace());
    const auto found_loss = static_cast<float>(engine.back(*boundary, batch));
    const Matrix output = engine.back_output(name);
    const bool fits = loss.size_bytes == sizeof(float) && expected.shape.size() == 2 &&
                      output.rows == expected.shape[0] && output.width >= expected.shape[1];
    if (!fits)
        throw Error(Code::bundle, "the golden vectors and the graphs have different shapes",
                    "re-export the bundle with covey export");
    const double of_loss = difference({&found_loss, 1, 1}, static_cast<const float *>(loss.data), 1);
    const double of_output = difference(output, static_cast<const float *>(expected.data), expected.shape[1]);
    return std::max(of_loss, of_output);
}

} // namespace

Batch batch_from(const TensorFile &file, std::uint64_t n)
{
    const std::string prefix = std::to_string(n) + ".";
    const auto refuse = [&](const char *what) {
        throw Error(Code::bundle, "batch " + std::to_string(n) + ": " + what,
                    "write the file again with the shapes of covey_batch in covey.h");
    };
    const Tensor &input_ids = file.tensor(prefix + "input_ids", Dtype::int64);
    const Tensor &mask = file.tensor(prefix + "attention_mask", Dtype::int64);
    const Tensor &labels = file.tensor(prefix + "labels", Dtype::int64);
    if (input_ids.shape.size() != 2 || input_ids.shape != mask.shape)
        refuse("input_ids and attention_mask are not (rows, tokens)");
    Batch batch{};
    batch.rows = input_ids.shape[0];
    batch.tokens = input_ids.shape[1];
    batch.input_ids = static_cast<const std::int64_t *>(input_ids.data);
    batch.attention_mask = static_cast<const std::int64_t *>(mask.data);
    batch.labels = static_cast<const std::int64_t *>(labels.data);
    if (file.tensors().count(prefix + "positions") == 0) {
        if (labels.shape.size() != 1 || labels.shape[0] != batch.rows)
            refuse("labels are not (rows,)");
        return batch;
    }
    const Tensor &positions = file.tensor(prefix + "positions", Dtype::int64);
    if (positions.shape.size() != 2 || positions.shape != labels.shape)
        refuse("labels and positions are not (chunks, chunk)");
    batch.chunks = positions.shape[0];
    batch.chunk = positions.shape[1];
    batch.positions = static_cast<const std::int64_t *>(positions.data);
    return batch;
}

double check_golden(const Bundle &bundle, std::uint32_t threads)
{
    const Manifest &manifest = bundle.manifest();
    const Golden &golden = manifest.golden;
    const TensorFile file(bundle.path_of(golden.file));
    const std::string name = manifest.task == TaskKind::causal_lm ? "token_losses" : "logits";
    const auto scale = static_cast<float>(golden.scale);
    const InitialAdapter initial(bundle);
    std::vector<float> theta(manifest.total_size());
    covey_perturb(theta.data(), initial.data(), theta.size(), 0, &golden.seed, &scale, 1, COVEY_FRONT_BLOCK);
    double largest = 0.0;
    for (const std::int64_t split : manifest.splits) {
        const std::unique_ptr<ExecutorchEngine> engine = executorch_engine(bundle, split, threads);
        for (std::uint64_t n = 0; n < golden.batches; n++)
            largest = std::max(largest, batch_difference(*engine, file, n, name, theta));
    }
    if (!(largest <= golden.tolerance))
        throw Error(Code::bundle, "the golden vectors differ from PyTorch by " + std::to_string(largest),
                    "report this machine and its ExecuTorch version; do not train on it");
    return largest;
}

} // namespace covey
