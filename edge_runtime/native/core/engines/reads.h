// Which parts of a block's parameters a run reads (edge_runtime/engines/reads.py): of an embedding only the batch's
// rows.
#pragma once

#include <cstdint>
#include <vector>

#include "core/bundle/manifest.h"
#include "core/engines/engine.h"

namespace covey {

// Args: front says which of the two blocks at the split. Returns parts that ascend and are apart. Throws Error (data):
// the batch has a token that the embedding does not.
std::vector<Part> read_parts(const Manifest &manifest, const Graph &graph, bool front, std::int64_t split,
                             const Batch &batch);

} // namespace covey
