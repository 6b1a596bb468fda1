// Parses a command's options, and prints its result as text or JSON.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/files/error.h"
#include "core/files/names.h"

namespace covey {

inline std::string quoted(const std::string &text)
{
    std::string result = "\"";
    for (const char c : text) {
        char escaped[8];
        if (c == '"' || c == '\\')
            (result += '\\') += c;
        else if (static_cast<unsigned char>(c) < 0x20)
            std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c)), result += escaped;
        else
            result += c;
    }
    return result + '"';
}

inline std::string number(double value)
{
    char text[32];
    std::snprintf(text, sizeof text, "%.17g", value);
    return text;
}

// A command's result: names with JSON values, in order.
class Result {
public:
    void add(const std::string &name, const std::string &json) { fields_.emplace_back(name, json); }
    void print(bool json) const
    {
        std::string line;
        for (const auto &[name, value] : fields_)
            line += json ? (line.empty() ? "{" : ", ") + quoted(name) + ": " + value : name + ": " + value + "\n";
        std::cout << line << (json ? "}\n" : "") << std::flush;
    }

private:
    std::vector<std::pair<std::string, std::string>> fields_;
};

[[noreturn]] inline void misuse(const std::string &what)
{
    throw Error(Code::usage, what, "see covey-core --help");
}

class Options {
public:
    Options(int argc, char **argv)
    {
        for (int k = 2; k < argc; k += 2) {
            const std::string name = argv[k];
            if (name.rfind("--", 0) != 0 || k + 1 >= argc)
                misuse("expected --option VALUE, got " + name);
            values_[name.substr(2)] = argv[k + 1];
        }
    }

    std::string text(const std::string &name, const std::string &absent = "")
    {
        known_.insert(name);
        const auto found = values_.find(name);
        return found == values_.end() ? absent : found->second;
    }
    std::string required(const std::string &name)
    {
        std::string value = text(name);
        if (value.empty())
            misuse("--" + name + " is missing");
        return value;
    }
    std::uint64_t whole(const std::string &name, std::uint64_t absent)
    {
        const std::string value = text(name);
        char *end = nullptr;
        const std::uint64_t result = std::strtoull(value.c_str(), &end, 10);
        if (!value.empty() && (*end != '\0' || value[0] == '-'))
            misuse("--" + name + " is not a whole number: " + value);
        return value.empty() ? absent : result;
    }
    double real(const std::string &name, double absent)
    {
        const std::string value = text(name);
        char *end = nullptr;
        const double result = std::strtod(value.c_str(), &end);
        if (!value.empty() && *end != '\0')
            misuse("--" + name + " is not a number: " + value);
        return value.empty() ? absent : result;
    }
    template <typename Value, std::size_t count>
    Value choice(const std::string &name, const Names<Value, count> &names, Value absent)
    {
        const std::string value = text(name);
        const std::optional<Value> found = value_of(names, value);
        if (!value.empty() && !found)
            misuse("--" + name + " is \"" + value + "\"; choose from " + all_of(names));
        return found.value_or(absent);
    }
    // Refuses options that the command did not read.
    void finish() const
    {
        for (const auto &[name, value] : values_)
            if (known_.count(name) == 0)
                misuse("unknown option --" + name);
    }

private:
    std::map<std::string, std::string> values_;
    std::set<std::string> known_ = {"format"};
};

} // namespace covey
