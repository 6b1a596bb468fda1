// A file mapped for reading; pages that nobody touches are never read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/files/error.h"

namespace covey {

class MappedFile {
public:
    // Throws Error(code) where the path is not a readable plain file.
    MappedFile(const std::string &path, Code code);
    ~MappedFile();
    MappedFile(MappedFile &&other) noexcept;
    MappedFile &operator=(MappedFile &&) = delete;
    MappedFile(const MappedFile &) = delete;
    MappedFile &operator=(const MappedFile &) = delete;

    const std::uint8_t *data() const { return data_; } // aligned to a page; null where size() is 0
    std::size_t size() const { return size_; }

private:
    const std::uint8_t *data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace covey
