// Derives seeds as edge_runtime/seeds.py does: by SHA-256 over the purpose and place of their use.
#pragma once

#include <cstdint>
#include <string_view>

namespace covey {

std::uint64_t front_seed(std::uint64_t job_seed, std::uint64_t round, std::string_view device, std::uint64_t step,
                         std::uint64_t i);
std::uint64_t back_seed(std::uint64_t job_seed, std::uint64_t round, std::string_view device, std::uint64_t step,
                        std::uint64_t i, std::uint64_t j);
// Returns seed `index` of a job's finite pool of directions.
std::uint64_t pool_seed(std::uint64_t job_seed, std::uint64_t index);

} // namespace covey
