// SHA-256 (FIPS 180-4), which names files and adapters (edge_runtime/files/hashing.py) and derives seeds.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace covey {

class Sha256 {
public:
    using Digest = std::array<std::uint8_t, 32>;

    void update(const void *data, std::size_t size);
    // Ends the message; the object must not be updated after this.
    Digest finish();
    std::string finish_hex();

private:
    void compress(const std::uint8_t *block);

    std::array<std::uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                           0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::uint8_t, 64> pending_ = {};
    std::uint64_t length_ = 0;
};

std::string sha256_hex(const void *data, std::size_t size);

} // namespace covey
