#include "core/forward_only/coefficients.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernel/perturb.h"

namespace covey {
namespace {

constexpr double mean_square_decay = 0.9;

double sum(const double *values, std::size_t n)
{
    double total = 0.0;
    for (std::size_t k = 0; k < n; k++)
        total += values[k];
    return total;
}

// Returns the number by which the scalars are divided; updates the running mean square.
double size_of(const double *scalars, std::size_t n, Normalize normalize, std::optional<double> &mean_square)
{
    const auto count = static_cast<double>(n);
    if (normalize != Normalize::rms)
        mean_square.reset();
    if (normalize == Normalize::none)
        return 1.0;
    double squares = 0.0;
    if (normalize == Normalize::std) {
        const double mean = sum(scalars, n) / count;
        for (std::size_t k = 0; k < n; k++)
            squares += (scalars[k] - mean) * (scalars[k] - mean);
        return std::sqrt(squares / (count - 1));
    }
    for (std::size_t k = 0; k < n; k++)
        squares += scalars[k] * scalars[k];
    const double now = squares / count;
    mean_square = mean_square_decay * mean_square.value_or(now) + (1 - mean_square_decay) * now;
    return std::sqrt(*mean_square);
}

Coefficients nested_estimate(const double *scalars, const StepRule &rule)
{
    Coefficients estimate;
    const std::size_t p1 = rule.front_perturbations, p2 = rule.back_perturbations;
    const auto all = static_cast<double>(p1 * p2);
    for (std::size_t i = 0; i < p1; i++) {
        const double *group = scalars + i * p2;
        const double total = sum(group, p2);
        estimate.front.push_back(total / all);
        for (std::size_t j = 0; j < p2; j++) {
            const double others =
                rule.leave_one_out && p2 >= 2 ? (total - group[j]) / static_cast<double>(p2 - 1) : 0.0;
            estimate.back.push_back((group[j] - others) / all);
        }
    }
    return estimate;
}

Coefficients clean_estimate(const double *scalars, const StepRule &rule)
{
    Coefficients estimate;
    const std::size_t p1 = rule.front_directions(), p2 = rule.back_perturbations;
    for (std::size_t i = 0; i < p1; i++)
        estimate.front.push_back(scalars[i] / static_cast<double>(p1));
    for (std::size_t j = 0; j < p2; j++)
        estimate.back.push_back(scalars[p1 + j] / static_cast<double>(p2));
    return estimate;
}

} // namespace

Coefficients step_coefficients(const double *scalars, const StepRule &rule, std::optional<double> &mean_square)
{
    Coefficients result =
        rule.is_nested() ? nested_estimate(scalars, rule) : clean_estimate(scalars, rule);
    const double size = size_of(scalars, rule.scalars_per_step(), rule.normalize, mean_square);
    const double factor = size > 0 ? -rule.learning_rate / size : 0.0;
    for (std::vector<double> *block : {&result.front, &result.back})
        for (double &coefficient : *block)
            coefficient *= factor;
    return result;
}

void add_step(Terms &terms, const StepSeeds &seeds, const Coefficients &coefficients)
{
    for (std::size_t k = 0; k < seeds.front.size(); k++)
        terms.front.add(seeds.front[k], coefficients.front[k]);
    for (std::size_t k = 0; k < seeds.back.size(); k++)
        terms.back.add(seeds.back[k], coefficients.back[k]);
}

void add_terms(float *out, const float *clean, std::size_t n, const BlockTerms &terms, std::uint64_t block,
               std::uint64_t offset)
{
    if (n == 0)
        return;
    if (terms.seeds.empty()) {
        if (out != clean)
            std::memcpy(out, clean, n * sizeof *out);
        return;
    }
    const std::vector<float> scales(terms.coefficients.begin(), terms.coefficients.end());
    covey_perturb(out, clean, n, offset, terms.seeds.data(), scales.data(), scales.size(), block);
}

} // namespace covey
