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

// Follows a chain of logs from one adapter file to another, 4 MiB in memory at a time: adapters are float32,
// little-endian, `size` parameters. The new file appears by a rename, after its hash was the log's.
//
// Args: adapter is read, out is written; previous (the adapter before) and before (where the adapter before the last
// round goes) may be empty. Throws Error: protocol, training (a gap, an end on another hash, not finite) or storage;
// then no file is left.
// Returns the new adapter's SHA-256.
std::string follow_logs(const std::vector<RoundLog> &logs, const std::string &adapter, const std::string &previous,
                        const std::string &out, const std::string &before);

} // namespace covey
