// The C interface: hides objects behind pointers and turns exceptions into codes.
#include "covey.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "core/bundle/bundle.h"
#include "core/engines/engine_callbacks.h"
#include "core/engines/engine_executorch.h"
#include "core/engines/golden.h"
#include "core/files/error.h"
#include "core/files/sha256.h"
#include "core/forward_only/replay_file.h"
#include "core/forward_only/round.h"
#include "core/self_test.h"

struct covey_bundle {
    covey::Bundle bundle;
};

struct covey_adapter {
    std::unique_ptr<covey::InitialAdapter> initial;
    std::unique_ptr<covey::MappedFile> file;
    const float *data = nullptr;
    std::string sha256;
};

struct covey_engine {
    std::unique_ptr<covey::Engine> engine;
};

struct covey_round {
    covey::Round round;
};

namespace {

using covey::Code;
using covey::Error;

int32_t report(covey_error *error, Code code, const char *what, const char *hint)
{
    if (error != nullptr) {
        error->code = static_cast<int32_t>(code);
        std::strncpy(error->what, what, sizeof error->what - 1);
        std::strncpy(error->hint, hint, sizeof error->hint - 1);
        error->what[sizeof error->what - 1] = error->hint[sizeof error->hint - 1] = '\0';
    }
    return static_cast<int32_t>(code);
}

template <typename Work> int32_t guarded(covey_error *error, Work work)
{
    try {
        work();
        if (error != nullptr)
            *error = covey_error{};
        return COVEY_OK;
    } catch (const Error &caught) {
        return report(error, caught.code(), caught.what(), caught.hint().c_str());
    } catch (const std::bad_alloc &) {
        return report(error, Code::unexpected, "out of memory", "close other apps, or use a smaller batch");
    } catch (const std::exception &caught) {
        return report(error, Code::fault, caught.what(), "please report this");
    }
}

void require(bool holds, const char *what)
{
    if (!holds)
        throw Error(Code::config, what, "see covey.h");
}

covey::StepRule rule_of(const covey_rule &from)
{
    require(from.variant >= COVEY_NESTED && from.variant <= COVEY_CLEAN, "variant is out of bounds");
    require(from.difference >= COVEY_CENTRAL && from.difference <= COVEY_FORWARD, "difference is out of bounds");
    require(from.normalize >= COVEY_NORMALIZE_NONE && from.normalize <= COVEY_NORMALIZE_STD,
            "normalize is out of bounds");
    covey::StepRule rule;
    rule.variant = from.variant == COVEY_CLEAN ? covey::Variant::clean : covey::Variant::nested;
    rule.difference = from.difference == COVEY_FORWARD ? covey::Difference::forward : covey::Difference::central;
    rule.normalize = from.normalize == COVEY_NORMALIZE_RMS   ? covey::Normalize::rms
                     : from.normalize == COVEY_NORMALIZE_STD ? covey::Normalize::std
                                                             : covey::Normalize::none;
    rule.front_perturbations = from.front_perturbations;
    rule.back_perturbations = from.back_perturbations;
    rule.eps = from.eps;
    rule.learning_rate = from.learning_rate;
    rule.leave_one_out = from.leave_one_out != 0;
    rule.shared_directions = from.shared_directions != 0;
    if (from.seed_pool != 0)
        rule.seed_pool = from.seed_pool;
    return rule;
}

} // namespace

extern "C" {

uint32_t covey_abi(void)
{
    return COVEY_ABI;
}

int32_t covey_self_test(covey_error *error)
{
    return guarded(error, [] {
        for (const covey::SelfTest &test : covey::self_test())
            if (test.found != test.pinned)
                throw Error(Code::training,
                            "the self-test's result for " + test.name + " differs from the pinned one on this machine",
                            "report the compiler, its flags and the CPU; do not train on it");
    });
}

int32_t covey_bundle_open(const char *path, covey_bundle **bundle, covey_error *error)
{
    return guarded(error, [&] {
        require(path != nullptr && bundle != nullptr, "a path or bundle is missing");
        *bundle = nullptr;
        *bundle = new covey_bundle{covey::Bundle(path)};
    });
}

void covey_bundle_close(covey_bundle *bundle)
{
    delete bundle;
}

int32_t covey_bundle_verify(const covey_bundle *bundle, covey_error *error)
{
    return guarded(error, [&] {
        require(bundle != nullptr, "a bundle is missing");
        bundle->bundle.verify_files();
    });
}

int32_t covey_bundle_check_golden(const covey_bundle *bundle, uint32_t threads, double *difference, covey_error *error)
{
    return guarded(error, [&] {
        require(bundle != nullptr, "a bundle is missing");
        const double found = covey::check_golden(bundle->bundle, threads);
        if (difference != nullptr)
            *difference = found;
    });
}

const char *covey_bundle_sha256(const covey_bundle *bundle)
{
    return bundle->bundle.manifest().sha256.c_str();
}

uint64_t covey_bundle_parameters(const covey_bundle *bundle)
{
    return bundle->bundle.manifest().total_size();
}

int32_t covey_adapter_open(const covey_bundle *bundle, const char *path, covey_adapter **adapter, covey_error *error)
{
    return guarded(error, [&] {
        require(bundle != nullptr && adapter != nullptr, "a bundle or adapter is missing");
        *adapter = nullptr;
        auto opened = std::make_unique<covey_adapter>();
        const std::uint64_t size = bundle->bundle.manifest().total_size();
        if (path == nullptr) {
            opened->initial = std::make_unique<covey::InitialAdapter>(bundle->bundle);
            opened->data = opened->initial->data();
        } else {
            opened->file = std::make_unique<covey::MappedFile>(path, Code::bundle);
            if (opened->file->size() != size * sizeof(float))
                throw Error(Code::bundle,
                            "the adapter has " + std::to_string(opened->file->size()) + " bytes, the layout needs " +
                                std::to_string(size * sizeof(float)),
                            "use the adapter that belongs to this bundle");
            opened->data = reinterpret_cast<const float *>(opened->file->data());
        }
        if (!std::all_of(opened->data, opened->data + size, [](float value) { return std::isfinite(value); }))
            throw Error(Code::bundle, "the adapter holds values that are not finite", "use an earlier adapter");
        opened->sha256 = covey::sha256_hex(opened->data, size * sizeof(float));
        *adapter = opened.release();
    });
}

void covey_adapter_close(covey_adapter *adapter)
{
    delete adapter;
}

const float *covey_adapter_data(const covey_adapter *adapter)
{
    return adapter->data;
}

const char *covey_adapter_sha256(const covey_adapter *adapter)
{
    return adapter->sha256.c_str();
}

int32_t covey_engine_callbacks(const covey_callbacks *callbacks, covey_engine **engine, covey_error *error)
{
    return guarded(error, [&] {
        require(callbacks != nullptr && engine != nullptr, "callbacks or engine are missing");
        *engine = nullptr;
        *engine = new covey_engine{std::make_unique<covey::CallbackEngine>(*callbacks)};
    });
}

int32_t covey_engine_executorch(const covey_bundle *bundle, int64_t split, uint32_t threads, covey_engine **engine,
                                covey_error *error)
{
    return guarded(error, [&] {
        require(bundle != nullptr && engine != nullptr, "a bundle or engine is missing");
        *engine = nullptr;
        *engine = new covey_engine{covey::executorch_engine(bundle->bundle, split, threads)};
    });
}

void covey_engine_close(covey_engine *engine)
{
    delete engine;
}

covey_rule covey_rule_default(void)
{
    const covey::StepRule rule;
    covey_rule result{};
    result.variant = COVEY_NESTED;
    result.difference = COVEY_CENTRAL;
    result.normalize = COVEY_NORMALIZE_RMS;
    result.front_perturbations = static_cast<uint32_t>(rule.front_perturbations);
    result.back_perturbations = static_cast<uint32_t>(rule.back_perturbations);
    result.eps = rule.eps;
    result.learning_rate = rule.learning_rate;
    return result;
}

uint64_t covey_rule_scalars_per_step(const covey_rule *rule)
{
    uint64_t scalars = 0;
    guarded(nullptr, [&] {
        require(rule != nullptr, "a rule is missing");
        const covey::StepRule checked = rule_of(*rule);
        covey::check_rule(checked);
        scalars = checked.scalars_per_step();
    });
    return scalars;
}

int32_t covey_round_open(covey_engine *engine, const float *theta, const covey_work *work, covey_round **round,
                         covey_error *error)
{
    return guarded(error, [&] {
        require(engine != nullptr && theta != nullptr && work != nullptr && round != nullptr && work->device != nullptr,
                "an engine, theta, work, round or device is missing");
        *round = nullptr;
        covey::RoundWork all{work->job_seed,      work->round,  work->device,
                             rule_of(work->rule), std::nullopt, std::nullopt};
        if (!(work->mean_square < 0))
            all.mean_square = work->mean_square;
        if (work->clip != 0)
            all.privacy = covey::Privacy{work->clip, work->noise_multiplier};
        *round = new covey_round{covey::Round(*engine->engine, theta, std::move(all))};
    });
}

void covey_round_close(covey_round *round)
{
    delete round;
}

int32_t covey_round_step(covey_round *round, const covey_batch *batch, double *loss, covey_error *error)
{
    return guarded(error, [&] {
        require(round != nullptr && batch != nullptr, "a round or batch is missing");
        const covey::StepResult result = round->round.step(*batch);
        if (loss != nullptr)
            *loss = result.loss;
    });
}

const float *covey_round_scalars(const covey_round *round, uint64_t *count)
{
    *count = round->round.scalars().size();
    return round->round.scalars().data();
}

void covey_round_passes(const covey_round *round, uint64_t *front_passes, uint64_t *back_passes)
{
    *front_passes = round->round.front_passes();
    *back_passes = round->round.back_passes();
}

void covey_round_local_model(const covey_round *round, float *out)
{
    round->round.local_model(out);
}

int32_t covey_replay(const void *log, size_t size, const char *adapter, const char *previous, const char *out,
                     const char *before, char *sha256, covey_error *error)
{
    return guarded(error, [&] {
        require(log != nullptr && adapter != nullptr && out != nullptr, "a log, adapter or out is missing");
        const std::string found =
            covey::follow_logs(covey::decode_chain(log, size), adapter, previous == nullptr ? "" : previous, out,
                               before == nullptr ? "" : before);
        if (sha256 != nullptr)
            std::memcpy(sha256, found.c_str(), found.size() + 1);
    });
}

} // extern "C"
