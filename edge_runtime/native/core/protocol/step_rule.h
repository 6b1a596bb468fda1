// The rule of a step (edge_runtime/protocol/step_rule.py): how it perturbs, how its scalars become an update, its
// seeds.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace covey {

constexpr std::uint64_t max_perturbations = 256;
constexpr std::uint64_t max_seed_pool = 1 << 20;

enum class Variant { nested, clean };
enum class Difference { central, forward };
enum class Normalize { none, rms, std };

struct StepRule {
    Variant variant = Variant::nested;
    Difference difference = Difference::central;
    std::uint64_t front_perturbations = 1; // P1
    std::uint64_t back_perturbations = 8;  // P2
    double eps = 1e-2;
    double learning_rate = 1e-2;
    bool leave_one_out = false;
    Normalize normalize = Normalize::rms;
    bool shared_directions = false;
    std::optional<std::uint64_t> seed_pool;

    std::uint64_t back_directions() const
    {
        return back_perturbations * (variant == Variant::nested ? front_perturbations : 1);
    }
    std::uint64_t scalars_per_step() const
    {
        return back_directions() + (variant == Variant::clean ? front_perturbations : 0);
    }
    bool merges_devices() const { return shared_directions || seed_pool.has_value(); }
};

// Throws Error (config) where a field is out of bounds or there is nothing to compare with.
void check_rule(const StepRule &rule);

// front[i], and back in the order in which the scalars use them.
struct StepSeeds {
    std::vector<std::uint64_t> front, back;
};

StepSeeds step_seeds(const StepRule &rule, std::uint64_t job_seed, std::uint64_t round, std::string_view device,
                     std::uint64_t step);

} // namespace covey
