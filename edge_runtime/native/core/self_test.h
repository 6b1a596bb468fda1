// Compares this machine's and this compiler's results with pinned ones, bit for bit.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace covey {

struct SelfTest {
    std::string name, found, pinned; // SHA-256 of the result's bytes
};

std::vector<SelfTest> self_test();

} // namespace covey
