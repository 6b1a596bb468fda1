// Rebuilds an adapter from one file into another, part by part (edge_runtime/forward_only/replay_file.py).
#pragma once

#include <string>
#include <vector>

#include "core/protocol/round_log.h"

namespace covey {

// Follows a chain of logs from one adapter file to another, with 4 MiB of it in memory at a time. Adapter files hold
// float32 values, little-endian. Renames the new file to `out` only after its hash was found to be the last log's.
//
// Args: `adapter` is read, `out` is written. `previous`, the file of the adapter before `adapter`, and `before`, the
// file for the adapter before the last round, may be empty. Returns the new adapter's SHA-256. Throws Error and leaves
// no file: bundle (an adapter file is unusable), protocol (a log does not fit), training (a gap, another hash at the
// end, values that are not finite) or storage.
std::string follow_logs(const std::vector<RoundLog> &logs, const std::string &adapter, const std::string &previous,
                        const std::string &out, const std::string &before);

} // namespace covey
