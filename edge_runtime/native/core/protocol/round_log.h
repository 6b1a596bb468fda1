// The replay log of a round, and its encoding (edge_runtime/protocol/round_log.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/files/document.h"
#include "core/protocol/step_rule.h"

namespace covey {

constexpr std::int64_t log_version = 2;
constexpr double scalar_bound = 1e6;

struct DeviceScalars {
    std::string device;
    double weight;
    Bytes scalars;                                                  // float32, little-endian, step after step
    std::optional<std::uint64_t> back_perturbations = std::nullopt; // P2, where it differs from the rule's
};

// A round's update where devices share directions: one coefficient per direction.
struct PackedTerms {
    std::vector<float> front, back;
    std::optional<std::vector<std::uint32_t>> front_pool, back_pool; // indexes in the job's seed pool
};

struct RoundLog {
    std::uint64_t job_seed, round;
    StepRule rule;
    std::uint64_t front_size, steps;
    std::optional<double> mean_square;
    double momentum;
    std::optional<std::string> previous_sha256;
    std::string base_sha256, result_sha256;
    std::vector<DeviceScalars> devices;
    std::optional<PackedTerms> terms;
};

// Reads a chain of one or more logs. Throws Error (protocol): it is no chain, of another version, or out of bounds.
std::vector<RoundLog> decode_chain(const void *data, std::size_t size);

// Reads packed scalars: steps x per_step numbers. Throws Error (protocol): the length does not fit, or the absolute
// value of a scalar is not finite or above scalar_bound.
std::vector<double> unpack_scalars(const Bytes &data, std::uint64_t steps, std::uint64_t per_step);

} // namespace covey
