// Adapts an app's own engine, given as the C interface's callbacks, to Engine.
#pragma once

#include "core/engines/engine.h"
#include "covey.h"

namespace covey {

class CallbackEngine : public Engine {
public:
    // Throws Error (config) where a callback or a workspace is missing.
    explicit CallbackEngine(const covey_callbacks &callbacks);

    std::size_t front_size() const override { return callbacks_.front_size; }
    std::size_t back_size() const override { return callbacks_.back_size; }
    float *front_workspace() override { return callbacks_.front_workspace; }
    float *back_workspace() override { return callbacks_.back_workspace; }
    // Both throw Error (training) where the callback does not return 0.
    std::unique_ptr<Boundary> front(const Batch &batch) override;
    double back(const Boundary &boundary, const Batch &batch) override;

private:
    covey_callbacks callbacks_;
};

} // namespace covey
