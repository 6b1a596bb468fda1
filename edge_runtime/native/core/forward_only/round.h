// One round of local steps on one device (edge_runtime/forward_only/round.py): batches in, scalars out.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/engines/engine.h"
#include "core/forward_only/coefficients.h"
#include "core/forward_only/step.h"
#include "core/protocol/step_rule.h"

namespace covey {

// How scalars are clipped and noised before anything keeps them (edge_runtime/forward_only/noise.py).
struct Privacy {
    double clip;             // largest absolute value of a scalar
    double noise_multiplier; // standard deviation of the noise, as a multiple of clip
};

// Returns a standard normal number from the operating system's entropy, which nobody can predict.
double secret_normal();

struct RoundWork {
    std::uint64_t job_seed, round;
    std::string device;
    StepRule rule;
    std::optional<double> mean_square; // of the last round's scalars; empty in the first round
    std::optional<Privacy> privacy;
};

// Neither copies nor changes theta: keeps the updates as a list and adds it each time it writes a block.
class Round {
public:
    // engine and theta must outlive the round. Throws Error (config): an invalid rule, or values out of bounds.
    Round(Engine &engine, const float *theta, RoundWork work, std::function<double()> normal = secret_normal);

    // Runs one local step. Throws Error (training) where a loss is not finite, and leaves the round as it was.
    StepResult step(const Batch &batch);

    const std::vector<float> &scalars() const { return scalars_; } // of all steps so far
    std::uint64_t front_passes() const { return front_passes_; }
    std::uint64_t back_passes() const { return back_passes_; }
    // Writes the local model to out: front_size() + back_size() floats.
    void local_model(float *out) const;

private:
    void privatise(std::vector<float> &scalars);

    Engine &engine_;
    const float *theta_;
    RoundWork work_;
    std::function<double()> normal_;
    Terms pending_;
    std::vector<float> scalars_;
    std::uint64_t steps_ = 0, front_passes_ = 0, back_passes_ = 0;
};

} // namespace covey
