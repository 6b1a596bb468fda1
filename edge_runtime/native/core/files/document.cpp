#include "core/files/document.h"

#include <algorithm>
#include <limits>

#include <nlohmann/json.hpp>

namespace covey {
namespace {

using Json = nlohmann::json;

// Covey's documents nest five deep. The limit protects the stack, because MessagePack is read recursively.
constexpr std::size_t deepest = 16;
constexpr const char *hint = "fetch it again, and install the same version of Covey on every machine";

bool is_utf8(std::string_view text)
{
    for (std::size_t i = 0; i < text.size();) {
        const auto byte = [&](std::size_t k) -> std::uint32_t {
            return k < text.size() ? static_cast<std::uint8_t>(text[k]) : 0;
        };
        const std::uint32_t first = byte(i);
        const std::size_t length = first < 0x80       ? 1
                                   : first >> 5 == 6  ? 2
                                   : first >> 4 == 14 ? 3
                                   : first >> 3 == 30 ? 4
                                                      : 0;
        if (length == 0)
            return false;
        constexpr std::uint32_t masks[] = {0, 0x7f, 0x1f, 0x0f, 0x07}, least[] = {0, 0, 0x80, 0x800, 0x10000};
        std::uint32_t point = first & masks[length];
        for (std::size_t k = 1; k < length; k++) {
            if (byte(i + k) >> 6 != 2)
                return false;
            point = point << 6 | (byte(i + k) & 0x3f);
        }
        if (point < least[length] || point > 0x10ffff || (point >= 0xd800 && point <= 0xdfff))
            return false;
        i += length;
    }
    return true;
}

// Builds a Value from the parser's events. A handler that returns false ends the parse.
class Builder : public nlohmann::json_sax<Json> {
public:
    bool null() override { return add(Value{nullptr}); }
    bool boolean(bool value) override { return add(Value{value}); }
    bool number_integer(number_integer_t value) override { return add(Value{std::int64_t{value}}); }
    bool number_unsigned(number_unsigned_t value) override
    {
        constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
        return value <= most ? add(Value{static_cast<std::int64_t>(value)}) : add(Value{std::uint64_t{value}});
    }
    bool number_float(number_float_t value, const string_t & /*text*/) override { return add(Value{value}); }
    bool string(string_t &value) override
    {
        return is_utf8(value) ? add(Value{std::move(value)}) : fail("it has text that is not UTF-8");
    }
    bool binary(binary_t &value) override
    {
        return value.has_subtype() ? fail("it has an extension type") : add(Value{Bytes(value.begin(), value.end())});
    }
    bool start_object(std::size_t /*size*/) override { return open(Value{Object{}}); }
    bool start_array(std::size_t /*size*/) override { return open(Value{Array{}}); }
    bool end_object() override { return close(); }
    bool end_array() override { return close(); }
    bool key(string_t &value) override
    {
        if (!is_utf8(value))
            return fail("it has text that is not UTF-8");
        std::get<Object>(open_.back().data).emplace_back(std::move(value), Value{nullptr});
        return true;
    }
    bool parse_error(std::size_t position, const std::string & /*token*/, const Json::exception & /*error*/) override
    {
        return fail("it is broken at byte " + std::to_string(position));
    }

    Value root{nullptr};
    std::string problem = "it is broken";

private:
    // Moves a closed list or object into the one that encloses it, so nothing points into a growing vector.
    bool add(Value value)
    {
        if (open_.empty())
            root = std::move(value);
        else if (auto *array = std::get_if<Array>(&open_.back().data))
            array->push_back(std::move(value));
        else
            std::get<Object>(open_.back().data).back().second = std::move(value);
        return true;
    }
    bool open(Value value)
    {
        if (open_.size() == deepest)
            return fail("it nests too deeply");
        open_.push_back(std::move(value));
        return true;
    }
    bool close()
    {
        Value value = std::move(open_.back());
        open_.pop_back();
        return add(std::move(value));
    }
    bool fail(std::string what)
    {
        problem = std::move(what);
        return false;
    }

    std::vector<Value> open_;
};

Value parse(const void *data, std::size_t size, Code code, nlohmann::detail::input_format_t format, const char *name)
{
    const auto *bytes = static_cast<const std::uint8_t *>(data);
    Builder builder;
    if (!Json::sax_parse(bytes, bytes + size, &builder, format))
        throw Error(code, "the data is not readable " + std::string(name) + ": " + builder.problem, hint);
    return std::move(builder.root);
}

} // namespace

Value parse_json(const void *data, std::size_t size, Code code)
{
    return parse(data, size, code, Json::input_format_t::json, "JSON");
}

Value parse_msgpack(const void *data, std::size_t size, Code code)
{
    return parse(data, size, code, Json::input_format_t::msgpack, "MessagePack");
}

Fields::Fields(const Value &value, std::string where, Code code) : where_(std::move(where)), code_(code)
{
    const Object *object = std::get_if<Object>(&value.data);
    if (object == nullptr)
        refuse("it is not an object");
    for (const auto &[name, field] : *object)
        fields_[name] = &field;
}

void Fields::refuse(const std::string &what) const
{
    throw Error(code_, where_ + ": " + what, hint);
}

const Value *Fields::optional(const char *name)
{
    const auto found = fields_.find(std::string_view(name));
    if (found == fields_.end())
        return nullptr;
    const Value *value = found->second;
    fields_.erase(found);
    return std::holds_alternative<std::nullptr_t>(value->data) ? nullptr : value;
}

const Value &Fields::required(const char *name)
{
    const Value *value = optional(name);
    if (value == nullptr)
        refuse(std::string(name) + " is missing");
    return *value;
}

bool Fields::flag(const char *name, bool absent)
{
    return is_present(name) ? as<bool>(required(name), name, "true or false") : absent;
}

std::uint64_t Fields::unsigned_integer(const char *name, std::uint64_t least, std::uint64_t most)
{
    const Value &value = required(name);
    const std::int64_t *small = std::get_if<std::int64_t>(&value.data);
    const std::uint64_t *large = std::get_if<std::uint64_t>(&value.data);
    if ((small == nullptr && large == nullptr) || (small != nullptr && *small < 0))
        refuse(std::string(name) + " is not a whole number of 0 or more");
    const std::uint64_t found = small != nullptr ? static_cast<std::uint64_t>(*small) : *large;
    if (found < least || found > most)
        refuse(std::string(name) + " is out of bounds: " + std::to_string(found));
    return found;
}

std::int64_t Fields::integer(const char *name)
{
    return as<std::int64_t>(required(name), name, "a whole number");
}

double Fields::number_in(const Value &value, const char *name) const
{
    if (const auto *small = std::get_if<std::int64_t>(&value.data))
        return static_cast<double>(*small);
    if (const auto *large = std::get_if<std::uint64_t>(&value.data))
        return static_cast<double>(*large);
    return as<double>(value, name, "a number");
}

double Fields::number(const char *name)
{
    return number_in(required(name), name);
}

std::optional<double> Fields::optional_number(const char *name)
{
    const Value *value = optional(name);
    return value == nullptr ? std::nullopt : std::optional(number_in(*value, name));
}

const std::string &Fields::sha256_in(const Value &value, const char *name) const
{
    const auto &found = as<std::string>(value, name, "text");
    if (!is_sha256(found))
        refuse(std::string(name) + " is not a SHA-256");
    return found;
}

std::string Fields::sha256(const char *name)
{
    return sha256_in(required(name), name);
}

std::optional<std::string> Fields::optional_sha256(const char *name)
{
    const Value *value = optional(name);
    return value == nullptr ? std::nullopt : std::optional(sha256_in(*value, name));
}

void Fields::finish() const
{
    if (!fields_.empty())
        refuse("unknown field " + fields_.begin()->first);
}

bool is_sha256(std::string_view text)
{
    return text.size() == 64 && std::all_of(text.begin(), text.end(),
                                            [](char c) { return ('0' <= c && c <= '9') || ('a' <= c && c <= 'f'); });
}

} // namespace covey
