// Pinned results: whether this machine and this compiler give the bits of every other one.
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
