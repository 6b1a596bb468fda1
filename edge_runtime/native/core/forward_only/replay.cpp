#include "core/forward_only/replay.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "core/files/error.h"
#include "core/forward_only/directions.h"
#include "core/forward_only/seeds.h"
#include "kernel/perturb.h"

namespace covey {
namespace {

constexpr const char *fetch = "fetch the adapter's file instead of replaying its log";

// Adds up the coefficients of each direction; keeps directions in the order of their first use.
class Totals {
public:
    void add(std::uint64_t seed, double value)
    {
        const auto [found, is_new] = places_.try_emplace(seed, terms_.seeds.size());
        if (is_new)
            terms_.add(seed, 0.0);
        terms_.coefficients[found->second] += value;
    }
    BlockTerms take() { return std::move(terms_); }

private:
    std::unordered_map<std::uint64_t, std::size_t> places_;
    BlockTerms terms_;
};

BlockTerms pooled(const RoundLog &log, const std::vector<float> &coefficients,
                  const std::optional<std::vector<std::uint32_t>> &pool)
{
    BlockTerms terms;
    if ((pool ? pool->size() : 0) != coefficients.size())
        throw Error(Code::protocol,
                    "a replay log has " + std::to_string(coefficients.size()) + " coefficients for " +
                        std::to_string(pool ? pool->size() : 0) + " directions",
                    fetch);
    for (std::size_t k = 0; k < coefficients.size(); k++) {
        if ((*pool)[k] >= *log.rule.seed_pool)
            throw Error(Code::protocol, "a replay log names a seed outside its pool", fetch);
        terms.add(pool_seed(log.job_seed, (*pool)[k]), static_cast<double>(coefficients[k]));
    }
    return terms;
}

Terms unpack_terms(const RoundLog &log, const PackedTerms &packed)
{
    if (!log.rule.merges_devices())
        throw Error(Code::protocol, "a replay log merges directions that its rule does not share", fetch);
    if (log.rule.seed_pool)
        return {pooled(log, packed.front, packed.front_pool), pooled(log, packed.back, packed.back_pool)};
    Terms terms;
    const auto fill = [](BlockTerms &block, const std::vector<std::uint64_t> &seeds, const std::vector<float> &all) {
        for (std::size_t k = 0; k < seeds.size() && block.seeds.size() < all.size(); k++)
            block.add(seeds[k], static_cast<double>(all[block.seeds.size()]));
    };
    const auto is_missing = [&] {
        return terms.front.seeds.size() < packed.front.size() || terms.back.seeds.size() < packed.back.size();
    };
    for (std::uint64_t step = 0; step < log.steps && is_missing(); step++) {
        const StepSeeds seeds = step_seeds(log.rule, log.job_seed, log.round, "", step);
        fill(terms.front, seeds.front, packed.front);
        fill(terms.back, seeds.back, packed.back);
    }
    if (is_missing())
        throw Error(Code::protocol, "a replay log has more coefficients than directions", fetch);
    return terms;
}

} // namespace

Terms round_terms(const RoundLog &log)
{
    if (log.terms)
        return unpack_terms(log, *log.terms);
    Totals front, back;
    for (const DeviceScalars &device : log.devices) {
        StepRule rule = log.rule;
        if (device.back_perturbations) {
            rule.back_perturbations = *device.back_perturbations;
            check_rule(rule);
        }
        const std::uint64_t per_step = rule.scalars_per_step();
        std::optional<double> mean_square = log.mean_square;
        const std::vector<double> scalars = unpack_scalars(device.scalars, log.steps, per_step);
        for (std::uint64_t step = 0; step < log.steps; step++) {
            const Coefficients coefficients = step_coefficients(scalars.data() + step * per_step, rule, mean_square);
            const StepSeeds seeds = step_seeds(rule, log.job_seed, log.round, device.device, step);
            for (std::size_t k = 0; k < seeds.front.size(); k++)
                front.add(seeds.front[k], device.weight * coefficients.front[k]);
            for (std::size_t k = 0; k < seeds.back.size(); k++)
                back.add(seeds.back[k], device.weight * coefficients.back[k]);
        }
    }
    return {log.front_size > 0 ? front.take() : BlockTerms{}, back.take()};
}

void replay_part(float *out, const float *theta, std::size_t n, const RoundLog &log, const Terms &terms,
                 const float *previous, std::uint64_t start)
{
    if (!log.previous_sha256) {
        std::memcpy(out, theta, n * sizeof *out);
    } else if (previous == nullptr) {
        throw Error(Code::training, "the replay log has momentum, and the previous adapter is missing", fetch);
    } else {
        const auto momentum = static_cast<float>(log.momentum);
        for (std::size_t k = 0; k < n; k++) {
            const float moved = momentum * (theta[k] - previous[k]);
            out[k] = theta[k] + moved;
        }
    }
    const std::size_t in_front =
        log.front_size <= start ? 0 : static_cast<std::size_t>(std::min<std::uint64_t>(n, log.front_size - start));
    add_terms(out, out, in_front, terms.front, COVEY_FRONT_BLOCK, start);
    add_terms(out + in_front, out + in_front, n - in_front, terms.back, COVEY_BACK_BLOCK,
              start + in_front - log.front_size);
}

} // namespace covey
