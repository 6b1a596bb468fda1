// The engine on ExecuTorch (over covey_executorch.h), and the bundle's golden vectors run through it.
#pragma once

#include <cstdint>
#include <memory>

#include "core/bundle/bundle.h"
#include "core/engines/engine.h"

namespace covey {

// Front and back of a bundle at one split; the bundle must outlive it. Throws Error: bundle (no such graph, altered,
// does not fit the files, ExecuTorch cannot load it), config (built without ExecuTorch, threads that cannot be had).
std::unique_ptr<Engine> executorch_engine(const Bundle &bundle, std::int64_t split, std::uint32_t threads);

// Runs every golden batch through front and back of every split, and insists on the manifest's tolerance. Returns the
// largest difference of a loss or an output from PyTorch: absolute up to 1, relative above.
double check_golden(const Bundle &bundle, std::uint32_t threads);

} // namespace covey
