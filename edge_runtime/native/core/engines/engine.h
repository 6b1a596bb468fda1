// The engine that a step needs: runs front and back at given trainable parameters (edge_runtime/engines/engine.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "covey.h"

namespace covey {

using Batch = covey_batch;

// The output of a front run, which the back run takes; its contents belong to the engine.
class Boundary {
public:
    virtual ~Boundary() = default;
};

// A part of a block's parameters: begin to end - 1.
struct Part {
    std::uint64_t begin, end;
};

// The engine reads the trainable parameters of each block from that block's workspace. The caller writes a workspace
// before each run of its block, at least where that run reads it, so the two workspaces may share memory. An engine
// keeps no other state between calls.
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
    // Returns the mean loss over the batch's rows, for causal-lm over its completion tokens.
    virtual double back(const Boundary &boundary, const Batch &batch) = 0;
};

} // namespace covey
