// Reads JSON and MessagePack into checked values, for the manifest, safetensors headers and replay logs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "core/files/error.h"
#include "core/files/names.h"

namespace covey {

struct Value;
using Bytes = std::vector<std::uint8_t>;
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>; // in the order of the file; where a name occurs twice, the
                                                           // last value counts

// Integers are int64 where they fit, larger ones uint64.
struct Value {
    std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Bytes, Array, Object> data;
};

// Both throw Error(code) where the data is not one whole document, nests too deeply, or has text that is not UTF-8.
Value parse_json(const void *data, std::size_t size, Code code);
Value parse_msgpack(const void *data, std::size_t size, Code code);

// Takes the fields of an object one by one and checks their types. Every method throws an Error(code) that names the
// field.
class Fields {
public:
    // `where` begins the messages, for example "the manifest's task". `value` must outlive this object.
    Fields(const Value &value, std::string where, Code code);

    const std::string &text(const char *name) { return as<std::string>(required(name), name, "text"); }
    const Bytes &bytes(const char *name) { return as<Bytes>(required(name), name, "bytes"); }
    const Array &array(const char *name) { return as<Array>(required(name), name, "a list"); }
    bool flag(const char *name, bool absent);
    // The value that the field's text names.
    template <typename Enum, std::size_t count> Enum choice(const char *name, const Names<Enum, count> &names)
    {
        const std::string &found = text(name);
        if (const std::optional<Enum> value = value_of(names, found))
            return *value;
        refuse(std::string(name) + " is \"" + found + "\"; this version knows " + all_of(names));
    }
    template <typename Enum, std::size_t count>
    Enum choice(const char *name, const Names<Enum, count> &names, Enum absent)
    {
        return is_present(name) ? choice(name, names) : absent;
    }
    std::uint64_t unsigned_integer(const char *name, std::uint64_t least = 0, std::uint64_t most = UINT64_MAX);
    std::int64_t integer(const char *name);
    double number(const char *name); // accepts integers, infinity and NaN too
    std::string sha256(const char *name);
    std::optional<double> optional_number(const char *name);
    std::optional<std::string> optional_sha256(const char *name);
    // Returns the field, or null where it is null or missing.
    const Value *optional(const char *name);
    const Value &required(const char *name);
    bool is_present(const char *name) const { return fields_.count(name) != 0; }
    // Refuses fields that were not taken.
    void finish() const;

    [[noreturn]] void refuse(const std::string &what) const;
    const std::string &where() const { return where_; }

private:
    template <typename T> const T &as(const Value &value, const char *name, const char *expected) const
    {
        if (const T *found = std::get_if<T>(&value.data))
            return *found;
        refuse(std::string(name) + " is not " + expected);
    }

    double number_in(const Value &value, const char *name) const;
    const std::string &sha256_in(const Value &value, const char *name) const;

    std::map<std::string, const Value *, std::less<>> fields_;
    std::string where_;
    Code code_;
};

// Returns whether the text is 64 lower-case hexadecimal digits.
bool is_sha256(std::string_view text);

} // namespace covey
