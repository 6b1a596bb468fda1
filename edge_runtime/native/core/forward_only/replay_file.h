// Rebuilds an adapter from one file into another, part by part (edge_runtime/forward_only/replay_file.py).
#pragma once

#include <string>
#include <vector>

#include "core/protocol/round_log.h"

namespace covey {

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
