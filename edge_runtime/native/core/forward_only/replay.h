// From seeds and scalars to a new adapter (edge_runtime/forward_only/replay.py): the same bits, proved by the adapter's
// hash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/forward_only/coefficients.h"
#include "core/protocol/round_log.h"

namespace covey {

// What a round adds: each direction once, in the order of its first use. Throws Error (protocol): scalars or terms
// that do not fit the rule.
Terms round_terms(const RoundLog &log);

// Replays n parameters from `start` on; out, theta and previous hold this part alone and are apart. `previous`, the
// part of the adapter before theta, is needed where the log has momentum. Parts give the same bits as the whole.
void replay_part(float *out, const float *theta, std::size_t n, const RoundLog &log, const Terms &terms,
                 const float *previous, std::uint64_t start);

} // namespace covey
