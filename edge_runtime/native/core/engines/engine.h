// What a step needs of an engine: a front and a back at given trainable parameters (edge_runtime/engines/engine.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "covey.h"

namespace covey {

using Batch = covey_batch;

// What crosses the cut; its meaning is the engine's own.
class Boundary {
public:
    virtual ~Boundary() = default;
};

// A part of a block's parameters, begin ... end - 1.
struct Part {
    std::uint64_t begin, end;
};

// The trainable parameters of each block lie in a workspace that the engine reads when it runs. A block's workspace is
// written before each run of the block, at least where that run reads it, so the two may share memory. Nothing else is
// kept between calls.
class Engine {
public:
    virtual ~Engine() = default;

    virtual std::size_t front_size() const = 0; // parameters
    virtual std::size_t back_size() const = 0;
    virtual float *front_workspace() = 0;
    virtual float *back_workspace() = 0;
    // The parts of a workspace that a run on this batch reads.
    virtual std::vector<Part> front_reads(const Batch & /*batch*/) const { return {{0, front_size()}}; }
    virtual std::vector<Part> back_reads(const Batch & /*batch*/) const { return {{0, back_size()}}; }
    virtual std::unique_ptr<Boundary> front(const Batch &batch) = 0;
    // Returns the mean loss over the batch's rows, or its completion tokens.
    virtual double back(const Boundary &boundary, const Batch &batch) = 0;
};

} // namespace covey
