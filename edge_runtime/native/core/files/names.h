// The texts by which files and options name the values of an enum: one table per enum, read in both directions.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace covey {

template <typename Enum, std::size_t count> using Names = std::array<std::pair<std::string_view, Enum>, count>;

// Returns the value that a text names, or nothing where no value has that name.
template <typename Enum, std::size_t count>
std::optional<Enum> value_of(const Names<Enum, count> &names, std::string_view text)
{
    for (const auto &[name, value] : names)
        if (name == text)
            return value;
    return std::nullopt;
}

// Returns the name of a value; every value of the enum must be in the table.
template <typename Enum, std::size_t count> std::string text_of(const Names<Enum, count> &names, Enum wanted)
{
    for (const auto &[name, value] : names)
        if (value == wanted)
            return std::string(name);
    return "?";
}

// Returns all names, separated by ", ", for error messages.
template <typename Enum, std::size_t count> std::string all_of(const Names<Enum, count> &names)
{
    std::string all;
    for (const auto &[name, value] : names)
        all += (all.empty() ? "" : ", ") + std::string(name);
    return all;
}

} // namespace covey
