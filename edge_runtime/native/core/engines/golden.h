// Golden vectors (edge_runtime/engines/golden.py): the batches, losses and outputs that PyTorch gave at export.
#pragma once

#include <cstdint>

#include "core/bundle/bundle.h"
#include "core/engines/engine.h"
#include "core/files/tensor_file.h"

namespace covey {

// Returns batch n of a safetensors file with the tensors "n.input_ids", "n.attention_mask", "n.labels" and, for
// causal-lm, "n.positions". The batch points into the file. Throws Error (bundle): a tensor is missing or has another
// shape.
Batch batch_from(const TensorFile &file, std::uint64_t n);

// Runs every golden batch through ExecuTorch's front and back graphs of every split. Returns the largest difference of
// a loss or an output from PyTorch: absolute up to 1, relative above. Throws Error (bundle) where it is above the
// manifest's tolerance, and whatever executorch_engine throws.
double check_golden(const Bundle &bundle, std::uint32_t threads);

} // namespace covey
