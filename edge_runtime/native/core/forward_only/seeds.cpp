#include "core/forward_only/seeds.h"

#include "core/files/sha256.h"

namespace covey {
namespace {

// The derivation of one seed: purpose and job seed, then the parts, each after its length.
class Derivation {
public:
    Derivation(std::string_view purpose, std::uint64_t job_seed)
    {
        constexpr std::string_view domain = "covey-seed-v1";
        digest_.update(domain.data(), domain.size() + 1); // with the literal's zero byte
        digest_.update(purpose.data(), purpose.size());
        digest_.update("", 1);
        number<8>(job_seed);
    }

    Derivation &part(std::string_view text)
    {
        number<4>(text.size());
        digest_.update(text.data(), text.size());
        return *this;
    }

    Derivation &part(std::uint64_t value)
    {
        number<4>(8);
        number<8>(value);
        return *this;
    }

    std::uint64_t seed()
    {
        const Sha256::Digest digest = digest_.finish();
        std::uint64_t seed = 0;
        for (std::size_t i = 0; i < 8; i++)
            seed |= std::uint64_t{digest[i]} << (8 * i);
        return seed;
    }

private:
    template <std::size_t bytes> void number(std::uint64_t value)
    {
        std::uint8_t little_endian[bytes];
        for (std::size_t i = 0; i < bytes; i++)
            little_endian[i] = static_cast<std::uint8_t>(value >> (8 * i));
        digest_.update(little_endian, bytes);
    }

    Sha256 digest_;
};

} // namespace

std::uint64_t front_seed(std::uint64_t job_seed, std::uint64_t round, std::string_view device, std::uint64_t step,
                         std::uint64_t i)
{
    return Derivation("front", job_seed).part(round).part(device).part(step).part(i).seed();
}

std::uint64_t back_seed(std::uint64_t job_seed, std::uint64_t round, std::string_view device, std::uint64_t step,
                        std::uint64_t i, std::uint64_t j)
{
    return Derivation("back", job_seed).part(round).part(device).part(step).part(i).part(j).seed();
}

std::uint64_t pool_seed(std::uint64_t job_seed, std::uint64_t index)
{
    return Derivation("pool", job_seed).part(index).seed();
}

} // namespace covey
