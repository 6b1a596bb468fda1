#include "core/protocol/step_rule.h"

#include "core/files/error.h"
#include "core/forward_only/seeds.h"

namespace covey {
namespace {

// In the place of a device's name: the seeds of directions that the whole cohort shares.
constexpr std::string_view all_devices = "";

void require(bool holds, const char *what)
{
    if (!holds)
        throw Error(Code::config, what, "change the job's [step]");
}

} // namespace

void check_rule(const StepRule &rule)
{
    const auto within = [](std::uint64_t value, std::uint64_t most) { return 1 <= value && value <= most; };
    require(within(rule.front_perturbations, max_perturbations) && within(rule.back_perturbations, max_perturbations),
            "front_perturbations and back_perturbations must be in 1 ... 256");
    require(rule.eps > 0 && rule.eps <= 1, "eps must be above 0 and at most 1");
    require(rule.learning_rate > 0 && rule.learning_rate <= 1e3, "learning_rate must be above 0 and at most 1000");
    require(!rule.seed_pool || within(*rule.seed_pool, max_seed_pool), "seed_pool must be in 1 ... 1048576");
    require(!rule.leave_one_out || (rule.variant == Variant::nested && rule.back_perturbations >= 2),
            "leave_one_out needs variant = \"nested\" and back_perturbations of 2 or more");
    require(rule.normalize != Normalize::std || rule.scalars_per_step() >= 2,
            "normalize = \"std\" needs 2 or more scalars a step");
}

StepSeeds step_seeds(const StepRule &rule, std::uint64_t job_seed, std::uint64_t round, std::string_view device,
                     std::uint64_t step)
{
    StepSeeds seeds;
    const std::string_view name = rule.shared_directions ? all_devices : device;
    const auto seed_of = [&](std::uint64_t seed) {
        return rule.seed_pool ? pool_seed(job_seed, seed % *rule.seed_pool) : seed;
    };
    for (std::uint64_t i = 0; i < rule.front_perturbations; i++)
        seeds.front.push_back(seed_of(front_seed(job_seed, round, name, step, i)));
    for (std::uint64_t i = 0; i < (rule.variant == Variant::nested ? rule.front_perturbations : 1); i++)
        for (std::uint64_t j = 0; j < rule.back_perturbations; j++)
            seeds.back.push_back(seed_of(back_seed(job_seed, round, name, step, i, j)));
    return seeds;
}

} // namespace covey
