#include "core/forward_only/directions.h"

#include "core/forward_only/seeds.h"

namespace covey {
namespace {

// Takes the place of a device's name in the seeds of directions that the whole cohort shares.
constexpr std::string_view all_devices = "";

} // namespace

StepSeeds step_seeds(const StepRule &rule, std::uint64_t job_seed, std::uint64_t round, std::string_view device,
                     std::uint64_t step)
{
    StepSeeds seeds;
    const std::string_view name = rule.shared_directions ? all_devices : device;
    const auto seed_of = [&](std::uint64_t seed) {
        return rule.seed_pool ? pool_seed(job_seed, seed % *rule.seed_pool) : seed;
    };
    for (std::uint64_t i = 0; i < rule.front_directions(); i++)
        seeds.front.push_back(seed_of(front_seed(job_seed, round, name, step, i)));
    for (std::uint64_t i = 0; i < (rule.is_nested() ? rule.front_perturbations : 1); i++)
        for (std::uint64_t j = 0; j < rule.back_perturbations; j++)
            seeds.back.push_back(seed_of(back_seed(job_seed, round, name, step, i, j)));
    return seeds;
}

} // namespace covey
