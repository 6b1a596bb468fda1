// From a step's scalars to what is added to the parameters (edge_runtime/forward_only/coefficients.py).
//
// Coefficients are float64, plain additions in a fixed order; an update is one float32 addition a parameter and term.
// Compiled with -ffp-contract=off: a fused multiply-add would give other bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/forward_only/directions.h"
#include "core/protocol/step_rule.h"

namespace covey {

constexpr std::uint64_t front_block = 0, back_block = 1; // second word of a perturbation's key

// A sum of directions of one block, added in this order.
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

// What one step adds: front[i] z_i and back[k] z_k, in the order of StepSeeds.
struct Coefficients {
    std::vector<double> front, back;
};

// Args: scalars as they were rounded to float32, scalars_per_step() of them; mean_square is the running one, none
// before the first step, and is changed.
Coefficients step_coefficients(const double *scalars, const StepRule &rule, std::optional<double> &mean_square);

void add_step(Terms &terms, const StepSeeds &seeds, const Coefficients &coefficients);

// Writes clean plus the terms to out, one after the other: n floats, equal arrays or apart; `offset` is the first
// one's place in the block.
void add_terms(float *out, const float *clean, std::size_t n, const BlockTerms &terms, std::uint64_t block,
               std::uint64_t offset = 0);

} // namespace covey
