// Computes an adapter from seeds and scalars, with the same bits everywhere (edge_runtime/forward_only/replay.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/forward_only/coefficients.h"
#include "core/protocol/round_log.h"

namespace covey {

// Returns the terms that a round adds: each direction once, in the order of its first use. Throws Error (protocol):
// scalars or terms do not fit the rule.
Terms round_terms(const RoundLog &log);

// Replays n parameters beginning at `start`. out, theta and previous hold only this part and do not overlap.
// `previous`, the part of the adapter before theta, is needed where the log has momentum. Parts give the same bits as
// the whole.
void replay_part(float *out, const float *theta, std::size_t n, const RoundLog &log, const Terms &terms,
                 const float *previous, std::uint64_t start);

} // namespace covey
