// The parts of a block that a run reads (edge_runtime/engines/reads.py); of an embedding, only the batch's rows.
#pragma once

#include <cstdint>
#include <vector>

#include "core/bundle/manifest.h"
#include "core/engines/engine.h"

namespace covey {

// Returns the parts in ascending order, without overlaps. `front` chooses the block at the split. Throws Error (data)
// where the batch has a token that the embedding does not have.
std::vector<Part> read_parts(const Manifest &manifest, const Graph &graph, bool front, std::int64_t split,
                             const Batch &batch);

} // namespace covey
