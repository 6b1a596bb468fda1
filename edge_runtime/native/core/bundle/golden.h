// Batches in a safetensors file, named as golden vectors are: "0.input_ids", "0.labels", ...
// (edge_runtime/engines/golden.py).
#pragma once

#include <cstdint>
#include <string>

#include "core/engines/engine.h"
#include "core/files/tensor_file.h"

namespace covey {

// Returns batch n, which points into the file. Throws Error (bundle): a tensor is missing or has another shape.
Batch batch_from(const TensorFile &file, std::uint64_t n);

} // namespace covey
