#include "core/self_test.h"

#include <cstring>

#include "core/engines/engine.h"
#include "core/files/sha256.h"
#include "core/forward_only/replay.h"
#include "core/forward_only/round.h"
#include "kernel/perturb.h"

namespace covey {
namespace {

constexpr std::size_t parameters = 300, front_parameters = 130;

// An engine with a known loss: the sum of (1 + k mod 3) (theta_k - (k mod 5) / 8)^2 / 2, added up in order.
class Bowl : public Engine {
public:
    std::size_t front_size() const override { return front_parameters; }
    std::size_t back_size() const override { return parameters - front_parameters; }
    float *front_workspace() override { return theta_; }
    float *back_workspace() override { return theta_ + front_parameters; }

    std::unique_ptr<Boundary> front(const Batch & /*batch*/) override
    {
        auto boundary = std::make_unique<Copy>();
        std::memcpy(boundary->values, theta_, sizeof boundary->values);
        return boundary;
    }
    double back(const Boundary &boundary, const Batch & /*batch*/) override
    {
        double loss = 0.0;
        for (std::size_t k = 0; k < parameters; k++) {
            const auto value =
                static_cast<double>(k < front_parameters ? static_cast<const Copy &>(boundary).values[k] : theta_[k]);
            const double distance = value - static_cast<double>(k % 5) / 8;
            loss += static_cast<double>(1 + k % 3) * distance * distance / 2;
        }
        return loss;
    }

private:
    struct Copy : Boundary {
        float values[front_parameters];
    };
    float theta_[parameters] = {};
};

std::vector<float> start()
{
    std::vector<float> theta;
    for (std::size_t k = 0; k < parameters; k++)
        theta.push_back(static_cast<float>(k % 17) / 16 - 0.5f);
    return theta;
}

std::vector<StepRule> rules()
{
    StepRule nested;
    nested.front_perturbations = 2, nested.back_perturbations = 3, nested.leave_one_out = true;
    StepRule clean;
    clean.variant = Variant::clean, clean.difference = Difference::forward, clean.normalize = Normalize::std;
    StepRule shared;
    shared.back_perturbations = 1, shared.front_perturbations = 3, shared.shared_directions = true;
    shared.normalize = Normalize::none, shared.learning_rate = 1e-4;
    StepRule pool;
    pool.seed_pool = 5;
    return {nested, clean, shared, pool};
}

std::string floats_sha256(const std::vector<float> &values)
{
    return sha256_hex(values.data(), values.size() * sizeof(float));
}

std::string perturbed()
{
    std::vector<float> out(5000), clean(5000);
    for (std::size_t k = 0; k < clean.size(); k++)
        clean[k] = static_cast<float>(k) / 4096 - 0.5f;
    const std::uint64_t seeds[] = {3, UINT64_MAX, 7};
    const float scales[] = {0.1f, -1e-3f, 1.0f};
    covey_perturb(out.data(), clean.data(), out.size(), 77, seeds, scales, 3, COVEY_BACK_BLOCK);
    return floats_sha256(out);
}

// Runs two steps with every rule; hashes all scalars and all local models.
std::string rounds()
{
    std::vector<float> all, local(parameters);
    const std::vector<float> theta = start();
    for (const StepRule &rule : rules()) {
        Bowl bowl;
        Round round(bowl, theta.data(), {11, 3, "self-test", rule, std::nullopt, std::nullopt});
        for (int step = 0; step < 2; step++)
            round.step(Batch{});
        round.local_model(local.data());
        all.insert(all.end(), round.scalars().begin(), round.scalars().end());
        all.insert(all.end(), local.begin(), local.end());
    }
    return floats_sha256(all);
}

// Replays one round of two devices with every rule, each from the previous round's adapter and with momentum.
std::string replays()
{
    std::vector<float> before = start(), now = before, after(parameters);
    for (const StepRule &rule : rules()) {
        RoundLog log{11, 3, rule, front_parameters, 2, 0.25, 0.9, std::string(64, '0'), "", "", {}, std::nullopt};
        for (const char *device : {"one", "two"}) {
            std::vector<float> scalars;
            for (std::size_t k = 0; k < 2 * rule.scalars_per_step(); k++)
                scalars.push_back(static_cast<float>(k * (device[0] == 'o' ? 5 : 3) % 11) / 4 - 1);
            Bytes bytes(scalars.size() * sizeof(float));
            std::memcpy(bytes.data(), scalars.data(), bytes.size());
            log.devices.push_back({device, device[0] == 'o' ? 0.3 : 0.7, bytes});
        }
        replay_part(after.data(), now.data(), parameters, log, round_terms(log), before.data(), 0);
        before = now;
        now = after;
    }
    return floats_sha256(now);
}

} // namespace

std::vector<SelfTest> self_test()
{
    return {{"sha256", sha256_hex("abc", 3), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
            {"perturbation", perturbed(), "848732018211e53bdc8d609cfddaa10263a96e335ec07636ec36e65c73c7a882"},
            {"rounds", rounds(), "6d42e579b5c4eed722aa477c68c30f09787fa7b10b713742faff18701bb41bed"},
            {"replay", replays(), "674770bef4ac00447045f19afc20aef4c90a97fe2c1db3b9b2aeea8721f78d32"}};
}

} // namespace covey
