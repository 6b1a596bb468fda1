// The forward-only step (edge_runtime/forward_only/step.py, where our reading of FedSPZO is written down).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/engines/engine.h"
#include "core/forward_only/coefficients.h"
#include "core/forward_only/directions.h"
#include "core/protocol/step_rule.h"

namespace covey {

struct StepResult {
    std::vector<float> scalars; // projected gradients, scalars_per_step()
    double loss;                // mean of all losses seen
    std::uint64_t front_passes, back_passes;
};

// Measures the projected gradients of one batch at theta plus the pending terms, bit for bit as if they had been added
// one after the other; theta, front_size() + back_size() floats, stays as it is. Throws Error (training): a loss is
// not finite.
StepResult spzo_step(Engine &engine, const float *theta, const Batch &batch, const StepRule &rule,
                     const StepSeeds &seeds, const Terms &pending);

// The sum as if no addition had rounded (Shewchuk, 1997), like Python's math.fsum; the values are finite.
double exact_sum(const std::vector<double> &values);

} // namespace covey
