// The seeds of a step's directions (edge_runtime/forward_only/directions.py).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/protocol/step_rule.h"

namespace covey {

// Seeds of one step: front[i], and back in the order in which the scalars use them.
struct StepSeeds {
    std::vector<std::uint64_t> front, back;
};

// Derives the seeds of one step. `back` has P1 x P2 entries, i before j, for Variant::nested, and P2 for
// Variant::clean.
StepSeeds step_seeds(const StepRule &rule, std::uint64_t job_seed, std::uint64_t round, std::string_view device,
                     std::uint64_t step);

} // namespace covey
