#include "core/forward_only/step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "core/files/error.h"
#include "kernel/perturb.h"

namespace covey {
namespace {

using Pairs = std::vector<std::pair<double, double>>;

// Runs an engine's blocks around theta: writes the perturbed block to its workspace before each run.
class Blocks {
public:
    Blocks(Engine &engine, const float *theta, const Terms &pending, const Batch &batch)
        : engine_(engine), theta_(theta), pending_(pending), batch_(batch), front_reads_(engine.front_reads(batch)),
          back_reads_(engine.back_reads(batch))
    {
    }

    bool front_is_frozen() const { return engine_.front_size() == 0; }

    std::unique_ptr<Boundary> front() { return run_front(pending_.front); }
    std::unique_ptr<Boundary> front(std::uint64_t seed, double scale)
    {
        return run_front(with(pending_.front, seed, scale));
    }
    double back(const Boundary &boundary) { return run_back(boundary, pending_.back); }
    double back(const Boundary &boundary, std::uint64_t seed, double scale)
    {
        return run_back(boundary, with(pending_.back, seed, scale));
    }

    std::uint64_t front_passes = 0;
    std::vector<double> losses;

private:
    static BlockTerms with(BlockTerms terms, std::uint64_t seed, double scale)
    {
        terms.add(seed, scale);
        return terms;
    }
    static void write(float *out, const float *clean, const std::vector<Part> &parts, const BlockTerms &terms,
                      std::uint64_t block)
    {
        for (const auto &[begin, end] : parts)
            add_terms(out + begin, clean + begin, end - begin, terms, block, begin);
    }
    std::unique_ptr<Boundary> run_front(const BlockTerms &terms)
    {
        write(engine_.front_workspace(), theta_, front_reads_, terms, COVEY_FRONT_BLOCK);
        front_passes++;
        return engine_.front(batch_);
    }
    double run_back(const Boundary &boundary, const BlockTerms &terms)
    {
        write(engine_.back_workspace(), theta_ + engine_.front_size(), back_reads_, terms, COVEY_BACK_BLOCK);
        losses.push_back(engine_.back(boundary, batch_));
        return losses.back();
    }

    Engine &engine_;
    const float *theta_;
    const Terms &pending_;
    const Batch &batch_;
    std::vector<Part> front_reads_, back_reads_;
};

Pairs nested(Blocks &blocks, const StepRule &rule, const StepSeeds &seeds)
{
    Pairs pairs;
    const bool one_sided = rule.difference == Difference::forward, frozen = blocks.front_is_frozen();
    std::unique_ptr<Boundary> clean;
    double clean_loss = 0.0;
    if (one_sided || frozen)
        clean = blocks.front();
    if (one_sided)
        clean_loss = blocks.back(*clean);
    for (std::size_t i = 0; i < seeds.front.size(); i++) {
        std::unique_ptr<Boundary> plus, minus;
        if (!frozen)
            plus = blocks.front(seeds.front[i], rule.eps);
        if (!frozen && !one_sided)
            minus = blocks.front(seeds.front[i], -rule.eps);
        for (std::size_t j = i * rule.back_perturbations; j < (i + 1) * rule.back_perturbations; j++) {
            const double loss = blocks.back(frozen ? *clean : *plus, seeds.back[j], rule.eps);
            pairs.emplace_back(loss, one_sided ? clean_loss
                                               : blocks.back(frozen ? *clean : *minus, seeds.back[j], -rule.eps));
        }
    }
    return pairs;
}

Pairs around_clean(Blocks &blocks, const StepRule &rule, const StepSeeds &seeds)
{
    Pairs pairs;
    const bool one_sided = rule.difference == Difference::forward;
    const std::unique_ptr<Boundary> clean = blocks.front();
    const double clean_loss = one_sided ? blocks.back(*clean) : 0.0;
    for (const std::uint64_t seed : seeds.front) {
        // A frozen front has no directions: its scalars are 0 and need no passes.
        if (blocks.front_is_frozen()) {
            pairs.emplace_back(0.0, 0.0);
            continue;
        }
        const double plus = blocks.back(*blocks.front(seed, rule.eps));
        pairs.emplace_back(plus, one_sided ? clean_loss : blocks.back(*blocks.front(seed, -rule.eps)));
    }
    for (const std::uint64_t seed : seeds.back) {
        const double plus = blocks.back(*clean, seed, rule.eps);
        pairs.emplace_back(plus, one_sided ? clean_loss : blocks.back(*clean, seed, -rule.eps));
    }
    return pairs;
}

} // namespace

double exact_sum(const std::vector<double> &values)
{
    // Partial sums that do not overlap, in ascending order: together they are the exact sum.
    std::vector<double> partials;
    for (double x : values) {
        std::size_t kept = 0;
        for (double y : partials) {
            if (std::fabs(x) < std::fabs(y))
                std::swap(x, y);
            const double high = x + y, low = y - (high - x);
            if (low != 0.0)
                partials[kept++] = low;
            x = high;
        }
        partials.resize(kept);
        partials.push_back(x);
    }
    if (partials.empty())
        return 0.0;
    double high = partials.back(), low = 0.0;
    partials.pop_back();
    while (!partials.empty() && low == 0.0) {
        const double before = high, y = partials.back();
        partials.pop_back();
        high = before + y;
        low = y - (high - before);
    }
    // Where the sum is halfway between two numbers, the remaining partials decide the rounding.
    if (!partials.empty() && ((low < 0.0 && partials.back() < 0.0) || (low > 0.0 && partials.back() > 0.0))) {
        const double twice = low * 2.0, rounded = high + twice;
        if (twice == rounded - high)
            high = rounded;
    }
    return high;
}

StepResult spzo_step(Engine &engine, const float *theta, const Batch &batch, const StepRule &rule,
                     const StepSeeds &seeds, const Terms &pending)
{
    Blocks blocks(engine, theta, pending, batch);
    const Pairs pairs = (rule.is_nested() ? nested : around_clean)(blocks, rule, seeds);
    for (const double loss : blocks.losses)
        if (!std::isfinite(loss))
            throw Error(Code::training, "a loss is not finite (" + std::to_string(loss) + ")",
                        "lower learning_rate or eps in the job's [step], or check the rows of the data");
    const double distance = rule.difference == Difference::forward ? rule.eps : 2 * rule.eps;
    StepResult result{{},
                      exact_sum(blocks.losses) / static_cast<double>(blocks.losses.size()),
                      blocks.front_passes,
                      blocks.losses.size()};
    for (const auto &[plus, minus] : pairs)
        result.scalars.push_back(static_cast<float>((plus - minus) / distance));
    return result;
}

} // namespace covey
