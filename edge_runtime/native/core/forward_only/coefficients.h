// Turns a step's scalars into coefficients of its directions (edge_runtime/forward_only/coefficients.py).
//
// Coefficients are float64 and computed by plain additions in a fixed order. An update is one float32 addition per
// parameter and term. Compile with -ffp-contract=off: a fused multiply-add would give other bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/forward_only/directions.h"
#include "core/protocol/step_rule.h"

namespace covey {

// A weighted sum of one block's directions, added in this order.
struct BlockTerms {
    std::vector<std::uint64_t> seeds;
    std::vector<double> coefficients;

    void add(std::uint64_t seed, double coefficient)
    {
        seeds.push_back(seed);
        coefficients.push_back(coefficient);
    }
};

struct Terms {
    BlockTerms front, back;
};

// One step adds front[i] z_i and back[k] z_k, in the order of StepSeeds.
struct Coefficients {
    std::vector<double> front, back;
};

// Returns the coefficients of one step. Args: `scalars` holds scalars_per_step() values, as they were rounded to
// float32. `mean_square` is the running mean square, empty before the first step; it is updated.
Coefficients step_coefficients(const double *scalars, const StepRule &rule, std::optional<double> &mean_square);

void add_step(Terms &terms, const StepSeeds &seeds, const Coefficients &coefficients);

// Writes clean plus the terms, one after the other, to out. Both hold n floats and are the same array or do not
// overlap; `offset` is the place of the first one in the block.
void add_terms(float *out, const float *clean, std::size_t n, const BlockTerms &terms, std::uint64_t block,
               std::uint64_t offset = 0);

} // namespace covey
