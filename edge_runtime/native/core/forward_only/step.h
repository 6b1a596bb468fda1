// The forward-only step (edge_runtime/forward_only/step.py, which describes Covey's reading of FedSPZO).
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
    double loss;                // mean of all losses of the step
    std::uint64_t front_passes, back_passes;
};

// Measures the projected gradients of one batch at theta plus the pending terms. The bits are those of adding the terms
// to theta one after the other; theta, front_size() + back_size() floats, is not changed. Throws Error (training) where
// a loss is not finite.
StepResult spzo_step(Engine &engine, const float *theta, const Batch &batch, const StepRule &rule,
                     const StepSeeds &seeds, const Terms &pending);

// Returns the correctly rounded sum of finite values (Shewchuk, 1997), like Python's math.fsum.
double exact_sum(const std::vector<double> &values);

} // namespace covey
