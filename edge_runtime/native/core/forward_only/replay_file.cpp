#include "core/forward_only/replay_file.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>

#include <fcntl.h>
#include <unistd.h>

#include "core/files/error.h"
#include "core/files/mapped_file.h"
#include "core/files/sha256.h"
#include "core/forward_only/replay.h"

namespace covey {
namespace {

constexpr std::size_t part_size = 1 << 20; // parameters: 4 MiB
constexpr const char *fetch = "fetch the adapter's file instead of replaying its log";

// A file that is written under another name and renamed by commit(); removed where commit() is not reached.
class NewFile {
public:
    explicit NewFile(std::string path) : path_(std::move(path))
    {
        if (path_.empty())
            return;
        file_ = open(partial().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (file_ < 0)
            fail();
    }
    NewFile(const NewFile &) = delete;
    NewFile &operator=(const NewFile &) = delete;
    ~NewFile()
    {
        if (file_ < 0)
            return;
        close(file_);
        unlink(partial().c_str());
    }

    void write(const std::vector<float> &values)
    {
        const char *data = reinterpret_cast<const char *>(values.data());
        for (std::size_t left = file_ < 0 ? 0 : values.size() * sizeof(float); left > 0;) {
            const ssize_t written = ::write(file_, data, left);
            if (written < 0 && errno == EINTR)
                continue;
            if (written < 0)
                fail();
            data += written;
            left -= static_cast<std::size_t>(written);
        }
    }
    void commit()
    {
        if (file_ < 0)
            return;
        if (fsync(file_) != 0 || std::rename(partial().c_str(), path_.c_str()) != 0)
            fail();
        close(file_);
        file_ = -1;
    }

private:
    std::string partial() const { return path_ + ".part"; }
    [[noreturn]] void fail() const
    {
        throw Error(Code::storage, "cannot write " + path_ + ": " + std::strerror(errno),
                    "free some space, or check the directory's owner and permissions; nothing was lost");
    }

    std::string path_;
    int file_ = -1;
};

MappedFile map_adapter(const std::string &path)
{
    MappedFile file(path, Code::bundle);
    if (file.size() == 0 || file.size() % sizeof(float) != 0)
        throw Error(Code::bundle, path + " is not an adapter: it has " + std::to_string(file.size()) + " bytes",
                    "use the adapter that belongs to this bundle");
    return file;
}

const float *floats(const MappedFile &file)
{
    return reinterpret_cast<const float *>(file.data()); // aligned, as every mapping is
}

void check_chain(const std::vector<RoundLog> &logs, std::string reached, std::size_t size)
{
    for (const RoundLog &log : logs) {
        if (log.base_sha256 != reached)
            throw Error(Code::training,
                        "the replay logs have a gap: round " + std::to_string(log.round) + " starts from adapter " +
                            log.base_sha256.substr(0, 12) + ", not from " + reached.substr(0, 12),
                        fetch);
        if (log.front_size > size)
            throw Error(Code::protocol, "a replay log has a front block larger than the adapter", fetch);
        reached = log.result_sha256;
    }
}

} // namespace

std::string follow_logs(const std::vector<RoundLog> &logs, const std::string &adapter, const std::string &previous,
                        const std::string &out, const std::string &before)
{
    const MappedFile theta = map_adapter(adapter);
    const std::size_t size = theta.size() / sizeof(float);
    std::optional<MappedFile> earlier;
    if (!previous.empty())
        earlier.emplace(map_adapter(previous));
    if (earlier && earlier->size() != theta.size())
        throw Error(Code::bundle, "the previous adapter has another length", "use adapters of one bundle");
    check_chain(logs, sha256_hex(theta.data(), theta.size()), size);
    if (earlier && logs.front().previous_sha256 &&
        sha256_hex(earlier->data(), earlier->size()) != *logs.front().previous_sha256)
        throw Error(Code::training, "the previous adapter is not the one that the log's momentum needs", fetch);
    std::vector<Terms> terms;
    for (const RoundLog &log : logs)
        terms.push_back(round_terms(log));
    NewFile file(out), before_file(before);
    Sha256 digest;
    for (std::size_t start = 0; start < size; start += part_size) {
        const std::size_t n = std::min(part_size, size - start);
        std::vector<float> now(floats(theta) + start, floats(theta) + start + n), was, after(n);
        if (earlier)
            was.assign(floats(*earlier) + start, floats(*earlier) + start + n);
        for (std::size_t k = 0; k < logs.size(); k++) {
            replay_part(after.data(), now.data(), n, logs[k], terms[k], was.empty() ? nullptr : was.data(), start);
            was.swap(now);
            now.swap(after);
            after.resize(n);
        }
        for (const float value : now)
            if (!std::isfinite(value))
                throw Error(Code::training,
                            "round " + std::to_string(logs.back().round) + " gives an adapter that is not finite",
                            "lower learning_rate in the job's [step]");
        digest.update(now.data(), n * sizeof(float));
        file.write(now);
        before_file.write(was);
    }
    std::string found = digest.finish_hex();
    if (found != logs.back().result_sha256)
        throw Error(Code::training,
                    "the replay ended on adapter " + found.substr(0, 12) + "; the log says " +
                        logs.back().result_sha256.substr(0, 12),
                    std::string(fetch) + ", and report both machines' versions: the bits should be equal");
    before_file.commit();
    file.commit();
    return found;
}

} // namespace covey
