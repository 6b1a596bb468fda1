// The engine on ExecuTorch (edge_runtime/engines/executorch_engine.py), over covey_executorch.h.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/bundle/bundle.h"
#include "core/engines/engine.h"

namespace covey {

// A float32 matrix of an engine's own, (rows, width), row-major; valid until the engine's next run.
struct Matrix {
    const float *values;
    std::int64_t rows, width;
};

class ExecutorchEngine : public Engine {
public:
    // Returns an output of the last back run by its name, such as "logits". Throws Error (bundle): the back graph has
    // no such output, or it is not a float32 matrix.
    virtual Matrix back_output(const std::string &name) const = 0;
};

// Opens the front and back graphs of a bundle at one split; the bundle must outlive the engine. `threads` is the number
// of threads of one operator, for the whole process; 0 is one per fast core. Throws Error: bundle (no such graph, it
// was altered or does not fit the bundle's files, ExecuTorch cannot load it), config (built without ExecuTorch, or
// another number of threads is in use).
std::unique_ptr<ExecutorchEngine> executorch_engine(const Bundle &bundle, std::int64_t split, std::uint32_t threads);

} // namespace covey
