#include "core/files/sha256.h"

#include <algorithm>
#include <cstring>

namespace covey {
namespace {

constexpr std::array<std::uint32_t, 64> round_constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

std::uint32_t rotate(std::uint32_t x, int n)
{
    return x >> n | x << (32 - n);
}

} // namespace

void Sha256::compress(const std::uint8_t *block)
{
    std::uint32_t w[64];
    for (int t = 0; t < 16; t++)
        w[t] = std::uint32_t{block[4 * t]} << 24 | std::uint32_t{block[4 * t + 1]} << 16 |
               std::uint32_t{block[4 * t + 2]} << 8 | block[4 * t + 3];
    for (int t = 16; t < 64; t++) {
        std::uint32_t low = rotate(w[t - 15], 7) ^ rotate(w[t - 15], 18) ^ w[t - 15] >> 3;
        std::uint32_t high = rotate(w[t - 2], 17) ^ rotate(w[t - 2], 19) ^ w[t - 2] >> 10;
        w[t] = w[t - 16] + low + w[t - 7] + high;
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (int t = 0; t < 64; t++) {
        std::uint32_t first = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) +
                              round_constants[static_cast<std::size_t>(t)] + w[t];
        std::uint32_t second = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::uint32_t added[8] = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < 8; i++)
        state_[i] += added[i];
}

void Sha256::update(const void *data, std::size_t size)
{
    const auto *bytes = static_cast<const std::uint8_t *>(data);
    while (size > 0) {
        const auto filled = static_cast<std::size_t>(length_ % 64);
        const std::size_t taken = std::min(size, 64 - filled);
        if (taken == 64) {
            compress(bytes);
        } else {
            std::memcpy(pending_.data() + filled, bytes, taken);
            if (filled + taken == 64)
                compress(pending_.data());
        }
        length_ += taken;
        bytes += taken;
        size -= taken;
    }
}

Sha256::Digest Sha256::finish()
{
    const std::uint64_t bits = length_ * 8;
    const auto filled = static_cast<std::size_t>(length_ % 64);
    std::uint8_t tail[72] = {0x80};
    const std::size_t padding = (filled < 56 ? 56 : 120) - filled;
    for (std::size_t i = 0; i < 8; i++)
        tail[padding + i] = static_cast<std::uint8_t>(bits >> (56 - 8 * i));
    update(tail, padding + 8);
    Digest digest;
    for (std::size_t i = 0; i < 32; i++)
        digest[i] = static_cast<std::uint8_t>(state_[i / 4] >> (24 - 8 * (i % 4)));
    return digest;
}

std::string Sha256::finish_hex()
{
    std::string hex;
    for (const std::uint8_t byte : finish()) {
        hex += "0123456789abcdef"[byte >> 4];
        hex += "0123456789abcdef"[byte & 15];
    }
    return hex;
}

std::string sha256_hex(const void *data, std::size_t size)
{
    Sha256 digest;
    digest.update(data, size);
    return digest.finish_hex();
}

} // namespace covey
