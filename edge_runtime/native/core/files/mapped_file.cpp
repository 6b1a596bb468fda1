#include "core/files/mapped_file.h"

#include <cerrno>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace covey {

MappedFile::MappedFile(const std::string &path, Code code)
{
    const auto fail = [&](const char *why) {
        throw Error(code, "cannot read " + path + ": " + why, "check that the file exists, and its permissions");
    };
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail(std::strerror(errno));
    struct stat status {};
    const char *problem = nullptr;
    if (fstat(file, &status) != 0)
        problem = std::strerror(errno);
    else if (!S_ISREG(status.st_mode))
        problem = "it is not a plain file";
    else if (status.st_size > 0) {
        void *mapped = mmap(nullptr, static_cast<std::size_t>(status.st_size), PROT_READ, MAP_SHARED, file, 0);
        if (mapped == MAP_FAILED)
            problem = std::strerror(errno);
        else {
            data_ = static_cast<const std::uint8_t *>(mapped);
            size_ = static_cast<std::size_t>(status.st_size);
        }
    }
    close(file);
    if (problem != nullptr)
        fail(problem);
}

MappedFile::~MappedFile()
{
    if (data_ != nullptr)
        munmap(const_cast<std::uint8_t *>(data_), size_);
}

MappedFile::MappedFile(MappedFile &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0))
{
}

} // namespace covey
