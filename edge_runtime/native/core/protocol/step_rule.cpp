#include "core/protocol/step_rule.h"

#include "core/files/error.h"

namespace covey {
namespace {

void require(bool holds, const char *what)
{
    if (!holds)
        throw Error(Code::config, what, "correct the job's [step]");
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
            "normalize = \"std\" needs 2 or more scalars per step");
}

} // namespace covey
