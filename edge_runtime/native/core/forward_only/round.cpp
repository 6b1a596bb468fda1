#include "core/forward_only/round.h"

#include <algorithm>
#include <random>
#include <utility>

#include "core/files/error.h"
#include "core/forward_only/directions.h"
#include "kernel/perturb.h"

namespace covey {

double secret_normal()
{
    std::random_device entropy;
    return std::normal_distribution<double>()(entropy);
}

Round::Round(Engine &engine, const float *theta, RoundWork work, std::function<double()> normal)
    : engine_(engine), theta_(theta), work_(std::move(work)), normal_(std::move(normal))
{
    check_rule(work_.rule);
    if (work_.device.empty())
        throw Error(Code::config, "the device has no name", "pass the name under which it is enrolled");
    if (work_.mean_square && !(*work_.mean_square >= 0 && *work_.mean_square <= 1e12))
        throw Error(Code::config, "mean_square is out of bounds", "use the plan's value");
    if (work_.privacy && !(work_.privacy->clip > 0 && work_.privacy->clip <= 1e5 &&
                           work_.privacy->noise_multiplier >= 0 && work_.privacy->noise_multiplier <= 1e3))
        throw Error(Code::config, "clip or noise_multiplier is out of bounds", "use the plan's values");
}

StepResult Round::step(const Batch &batch)
{
    const StepSeeds seeds = step_seeds(work_.rule, work_.job_seed, work_.round, work_.device, steps_);
    StepResult result = spzo_step(engine_, theta_, batch, work_.rule, seeds, pending_);
    privatise(result.scalars);
    const std::vector<double> scalars(result.scalars.begin(), result.scalars.end());
    add_step(pending_, seeds, step_coefficients(scalars.data(), work_.rule, work_.mean_square));
    scalars_.insert(scalars_.end(), result.scalars.begin(), result.scalars.end());
    steps_++;
    front_passes_ += result.front_passes;
    back_passes_ += result.back_passes;
    return result;
}

void Round::local_model(float *out) const
{
    const std::size_t front = engine_.front_size();
    add_terms(out, theta_, front, pending_.front, COVEY_FRONT_BLOCK);
    add_terms(out + front, theta_ + front, engine_.back_size(), pending_.back, COVEY_BACK_BLOCK);
}

void Round::privatise(std::vector<float> &scalars)
{
    if (!work_.privacy)
        return;
    const double clip = work_.privacy->clip, deviation = work_.privacy->noise_multiplier * clip;
    for (float &scalar : scalars)
        scalar = static_cast<float>(std::clamp(static_cast<double>(scalar), -clip, clip) + deviation * normal_());
}

} // namespace covey
