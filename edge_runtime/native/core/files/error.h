// Errors with what was wrong, what to do about it, and the exit code of Covey's commands (edge_runtime/errors.py).
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace covey {

enum class Code {
    unexpected = 1,
    usage = 2,
    config = 3,
    data = 4,
    bundle = 5,
    protocol = 6,
    storage = 8,
    training = 9,
    fault = 70
};

class Error : public std::runtime_error {
public:
    Error(Code code, const std::string &what, std::string hint)
        : std::runtime_error(what), code_(code), hint_(std::move(hint))
    {
    }

    Code code() const { return code_; }
    const std::string &hint() const { return hint_; }

private:
    Code code_;
    std::string hint_;
};

} // namespace covey
