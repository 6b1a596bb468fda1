// The rule of a step (edge_runtime/protocol/step_rule.py): how it perturbs, and how its scalars become an update.
#pragma once

#include <cstdint>
#include <optional>

#include "core/files/names.h"

namespace covey {

constexpr std::uint64_t max_perturbations = 256;
constexpr std::uint64_t max_seed_pool = 1 << 20;

enum class Variant { nested, clean };
enum class Difference { central, forward };
enum class Normalize { none, rms, std };

inline constexpr Names<Variant, 2> variant_names = {{{"nested", Variant::nested}, {"clean", Variant::clean}}};
inline constexpr Names<Difference, 2> difference_names = {
    {{"central", Difference::central}, {"forward", Difference::forward}}};
inline constexpr Names<Normalize, 3> normalize_names = {
    {{"none", Normalize::none}, {"rms", Normalize::rms}, {"std", Normalize::std}}};

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
    bool front_is_frozen = false; // no front directions; P1 and leave_one_out do not count

    bool is_nested() const { return variant == Variant::nested && !front_is_frozen; }
    std::uint64_t front_directions() const { return front_is_frozen ? 0 : front_perturbations; }
    std::uint64_t back_directions() const { return back_perturbations * (is_nested() ? front_perturbations : 1); }
    std::uint64_t scalars_per_step() const { return back_directions() + (is_nested() ? 0 : front_directions()); }
    bool merges_devices() const { return shared_directions || seed_pool.has_value(); }
};

// Checks bounds, and that leave-one-out and Normalize::std have other scalars to compare with. Throws Error (config).
void check_rule(const StepRule &rule);

} // namespace covey
