#include "core/protocol/round_log.h"

#include <cmath>
#include <cstring>

namespace covey {
namespace {

constexpr const char *same_version = "install the same version of Covey on the devices and on the server";

template <typename T> std::vector<T> numbers(const Bytes &data, const Fields &log)
{
    static_assert(sizeof(T) == 4);
    if (data.size() % 4 != 0)
        log.refuse("it has a broken list of terms");
    std::vector<T> values(data.size() / 4);
    if (!values.empty())
        std::memcpy(values.data(), data.data(), data.size());
    return values;
}

StepRule read_rule(const Value &value)
{
    Fields fields(value, "the rule of a replay log", Code::protocol);
    for (const char *name : {"keep_directions", "curvature", "sign_momentum"})
        if (fields.is_present(name))
            throw Error(Code::protocol, std::string("the rule of a replay log has ") + name +
                            ", which the core for apps does not know",
                        "fetch the adapter's file instead, or leave it out of the job's [step]");
    StepRule rule;
    rule.variant = fields.choice("variant", variant_names, rule.variant);
    rule.difference = fields.choice("difference", difference_names, rule.difference);
    rule.normalize = fields.choice("normalize", normalize_names, rule.normalize);
    if (fields.is_present("front_perturbations"))
        rule.front_perturbations = fields.unsigned_integer("front_perturbations", 1, max_perturbations);
    if (fields.is_present("back_perturbations"))
        rule.back_perturbations = fields.unsigned_integer("back_perturbations", 1, max_perturbations);
    if (fields.is_present("eps"))
        rule.eps = fields.number("eps");
    if (fields.is_present("learning_rate"))
        rule.learning_rate = fields.number("learning_rate");
    rule.leave_one_out = fields.flag("leave_one_out", false);
    rule.shared_directions = fields.flag("shared_directions", false);
    if (const Value *pool = fields.optional("seed_pool")) {
        const auto *size = std::get_if<std::int64_t>(&pool->data);
        if (size == nullptr || *size < 1 || static_cast<std::uint64_t>(*size) > max_seed_pool)
            fields.refuse("seed_pool is out of bounds");
        rule.seed_pool = static_cast<std::uint64_t>(*size);
    }
    if (fields.is_present("front")) {
        if (fields.text("front") != "frozen")
            fields.refuse("front is not \"frozen\"");
        rule.front_is_frozen = true;
    }
    fields.finish();
    try {
        check_rule(rule);
    } catch (const Error &error) {
        fields.refuse(error.what());
    }
    return rule;
}

DeviceScalars read_device(const Value &value)
{
    Fields fields(value, "a device in a replay log", Code::protocol);
    DeviceScalars device{fields.text("device"), fields.number("weight"), fields.bytes("scalars"), std::nullopt};
    if (!(device.weight >= 0 && device.weight <= 1))
        fields.refuse("weight is out of bounds");
    if (fields.is_present("back_perturbations"))
        device.back_perturbations = fields.unsigned_integer("back_perturbations", 1, max_perturbations);
    fields.finish();
    return device;
}

std::optional<std::vector<std::uint32_t>> read_pool(Fields &fields, const char *name)
{
    const Value *value = fields.optional(name);
    if (value == nullptr)
        return std::nullopt;
    const Bytes *data = std::get_if<Bytes>(&value->data);
    if (data == nullptr)
        fields.refuse(std::string(name) + " is not bytes");
    return numbers<std::uint32_t>(*data, fields);
}

PackedTerms read_terms(const Value &value)
{
    Fields fields(value, "the terms of a replay log", Code::protocol);
    PackedTerms terms{numbers<float>(fields.bytes("front"), fields), numbers<float>(fields.bytes("back"), fields),
                      read_pool(fields, "front_pool"), read_pool(fields, "back_pool")};
    fields.finish();
    for (const std::vector<float> *block : {&terms.front, &terms.back})
        for (const float coefficient : *block)
            if (!std::isfinite(coefficient))
                fields.refuse("a coefficient is not finite");
    return terms;
}

RoundLog read_log(const Value &value)
{
    Fields fields(value, "a replay log", Code::protocol);
    RoundLog log{};
    if (fields.text("type") != "round-log")
        fields.refuse("type is not round-log");
    fields.text("job");
    log.job_seed = fields.unsigned_integer("job_seed");
    log.round = fields.unsigned_integer("round");
    log.rule = read_rule(fields.required("rule"));
    log.front_size = fields.unsigned_integer("front_size");
    log.steps = fields.unsigned_integer("steps", 1);
    if (!fields.is_present("mean_square") || !fields.is_present("previous_sha256") || !fields.is_present("terms"))
        fields.refuse("mean_square, previous_sha256 or terms is missing");
    log.mean_square = fields.optional_number("mean_square");
    if (log.mean_square && !(std::isfinite(*log.mean_square) && *log.mean_square >= 0))
        fields.refuse("mean_square is out of bounds");
    log.momentum = fields.number("momentum");
    if (!(log.momentum >= 0 && log.momentum < 1))
        fields.refuse("momentum is out of bounds");
    log.previous_sha256 = fields.optional_sha256("previous_sha256");
    log.base_sha256 = fields.sha256("base_sha256");
    log.result_sha256 = fields.sha256("result_sha256");
    for (const Value &device : fields.array("devices"))
        log.devices.push_back(read_device(device));
    if (const Value *terms = fields.optional("terms"))
        log.terms = read_terms(*terms);
    fields.finish();
    return log;
}

} // namespace

std::vector<RoundLog> decode_chain(const void *data, std::size_t size)
{
    const Value value = parse_msgpack(data, size, Code::protocol);
    Fields fields(value, "a chain of replay logs", Code::protocol);
    const std::int64_t version = fields.integer("v");
    if (version != log_version)
        throw Error(Code::protocol,
                    "a replay log has version " + std::to_string(version) + ", this Covey reads version " +
                        std::to_string(log_version),
                    same_version);
    if (fields.text("type") != "log-chain")
        fields.refuse("type is not log-chain");
    std::vector<RoundLog> logs;
    for (const Value &log : fields.array("rounds"))
        logs.push_back(read_log(log));
    if (logs.empty())
        fields.refuse("it is empty");
    fields.finish();
    return logs;
}

std::vector<double> unpack_scalars(const Bytes &data, std::uint64_t steps, std::uint64_t per_step)
{
    // Divides instead of multiplying, which could overflow: a log may claim any number of steps.
    if (data.size() % (4 * per_step) != 0 || data.size() / (4 * per_step) != steps)
        throw Error(Code::protocol,
                    std::to_string(data.size()) + " bytes of scalars do not fit " + std::to_string(steps) +
                        " steps of " + std::to_string(per_step) + " scalars",
                    same_version);
    std::vector<double> values;
    values.reserve(data.size() / 4);
    for (std::size_t at = 0; at < data.size(); at += 4) {
        float value;
        std::memcpy(&value, data.data() + at, 4);
        if (!std::isfinite(value) || std::fabs(static_cast<double>(value)) > scalar_bound)
            throw Error(Code::protocol, "a scalar is not finite, or its absolute value is above 1e+06",
                        "lower learning_rate in the job's [step], and run covey-edge doctor on the device");
        values.push_back(static_cast<double>(value));
    }
    return values;
}

} // namespace covey
