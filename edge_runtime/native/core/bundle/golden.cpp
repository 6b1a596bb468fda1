#include "core/bundle/golden.h"

#include "core/files/error.h"

namespace covey {

Batch batch_from(const TensorFile &file, std::uint64_t n)
{
    const std::string prefix = std::to_string(n) + ".";
    const auto refuse = [&](const char *what) {
        throw Error(Code::bundle, "batch " + std::to_string(n) + ": " + what, "write the file again");
    };
    const Tensor &input_ids = file.tensor(prefix + "input_ids", "int64");
    const Tensor &mask = file.tensor(prefix + "attention_mask", "int64");
    const Tensor &labels = file.tensor(prefix + "labels", "int64");
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
    const Tensor &positions = file.tensor(prefix + "positions", "int64");
    if (positions.shape.size() != 2 || positions.shape != labels.shape)
        refuse("labels and positions are not (chunks, chunk)");
    batch.chunks = positions.shape[0];
    batch.chunk = positions.shape[1];
    batch.positions = static_cast<const std::int64_t *>(positions.data);
    return batch;
}

} // namespace covey
