// A file mapped for reading: a page that nobody touches is never read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/files/error.h"

namespace covey {

class MappedFile {
public:
    // Throws Error(code) where it is not a plain file that can be read.
    MappedFile(const std::string &path, Code code);
    ~MappedFile();
    MappedFile(MappedFile &&other) noexcept;
    MappedFile &operator=(MappedFile &&) = delete;
    MappedFile(const MappedFile &) = delete;
    MappedFile &operator=(const MappedFile &) = delete;

    const std::uint8_t *data() const { return data_; } // a whole page is aligned; null where size() is 0
    std::size_t size() const { return size_; }

private:
    const std::uint8_t *data_ = nullptr;
    std::size_t size_ = 0;
};

} // namespace covey
