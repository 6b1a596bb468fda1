// Damages logs and bundles at random and passes them to the C interface, in one process under sanitizers. Prints as
// JSON how many were taken, how many were refused, and how many errors were wrong.
//
//     covey-mutate log LOG ADAPTER OUT SEED COUNT
//     covey-mutate bundle FOLDER FILE SEED COUNT      damages FILE in place and restores it
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "core/engines/golden.h"
#include "core/files/error.h"
#include "covey.h"

namespace {

using Data = std::vector<char>;

Data read(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

void write(const std::string &path, const Data &data)
{
    std::ofstream(path, std::ios::binary).write(data.data(), static_cast<std::streamsize>(data.size()));
}

// Makes one to four changes: flips a bit, sets a byte, replaces a digit, deletes or doubles a piece, or cuts the end
// off.
Data damage(Data data, std::mt19937_64 &random, std::size_t reach)
{
    for (auto changes = 1 + random() % 4; changes > 0 && !data.empty(); changes--) {
        const std::size_t size = std::min(data.size(), reach), at = random() % size;
        const std::size_t length = 1 + random() % std::min<std::size_t>(size - at, 16);
        const auto place = data.begin() + static_cast<std::ptrdiff_t>(at);
        const Data piece(place, place + static_cast<std::ptrdiff_t>(length));
        switch (random() % 6) {
        case 0:
            data[at] = static_cast<char>(data[at] ^ (1 << random() % 8));
            break;
        case 1:
            data[at] = static_cast<char>(random());
            break;
        case 2:
            for (std::size_t k = at; k < size; k++)
                if ('0' <= data[k] && data[k] <= '9') {
                    data[k] = static_cast<char>('0' + random() % 10);
                    break;
                }
            break;
        case 3:
            data.erase(place, place + static_cast<std::ptrdiff_t>(length));
            break;
        case 4:
            data.insert(place, piece.begin(), piece.end());
            break;
        default:
            if (random() % 8 == 0)
                data.resize(at);
        }
    }
    return data;
}

struct Counts {
    int taken = 0, refused = 0, wrong = 0;

    void add(int code, const covey_error &error)
    {
        (code == COVEY_OK ? taken : refused)++;
        // Every refusal needs a reason, a hint and a code other than COVEY_UNEXPECTED.
        if (code != COVEY_OK && (code != error.code || code == COVEY_UNEXPECTED || !error.what[0] || !error.hint[0])) {
            std::fprintf(stderr, "code %d: %s\n", code, error.what);
            wrong++;
        }
    }
};

int open_bundle(const char *folder, const std::string &path, covey_error *error)
{
    covey_bundle *bundle = nullptr;
    int code = covey_bundle_open(folder, &bundle, error);
    covey_adapter *adapter = nullptr;
    if (code == COVEY_OK)
        code = covey_adapter_open(bundle, nullptr, &adapter, error);
    covey_adapter_close(adapter);
    covey_engine *engine = nullptr;
    for (int split = 1; code == COVEY_OK && split < 3; split++) {
        covey_error ignored;
        covey_engine_executorch(bundle, split, 1, &engine, &ignored);
        covey_engine_close(engine);
        engine = nullptr;
    }
    covey_bundle_close(bundle);
    if (code != COVEY_OK || path.find("golden") == std::string::npos)
        return code;
    try {
        const covey::TensorFile file(path);
        const covey_batch batch = covey::batch_from(file, 0);
        volatile std::int64_t sum = 0; // reads every value
        for (std::int64_t k = 0; k < batch.rows * batch.tokens; k++)
            sum = sum ^ batch.input_ids[k] ^ batch.attention_mask[k];
        for (std::int64_t k = 0; k < batch.rows; k++)
            sum = sum ^ batch.labels[k];
        return COVEY_OK;
    } catch (const covey::Error &caught) {
        *error = covey_error{static_cast<int32_t>(caught.code()), "x", "x"};
        return error->code;
    }
}

} // namespace

int main(int argc, char **argv)
{
    if (argc < 6)
        return 2;
    const bool log = std::strcmp(argv[1], "log") == 0;
    const std::string path = log ? argv[2] : std::string(argv[2]) + "/" + argv[3];
    const Data original = read(path);
    std::mt19937_64 random(std::strtoull(argv[log ? 5 : 4], nullptr, 10));
    Counts counts;
    for (int left = std::atoi(argv[log ? 6 : 5]); left > 0; left--) {
        // Half of the damage is near the beginning, where a tensor file has its header.
        const Data data = damage(original, random, left % 2 ? original.size() : 600);
        covey_error error{};
        if (log) {
            // The core must not read past the last byte.
            const int code =
                covey_replay(data.data(), data.size(), argv[3], nullptr, argv[4], nullptr, nullptr, &error);
            counts.add(code, error);
            continue;
        }
        write(path, data);
        counts.add(open_bundle(argv[2], path, &error), error);
    }
    if (!log)
        write(path, original);
    std::printf("{\"taken\": %d, \"refused\": %d, \"wrong\": %d}\n", counts.taken, counts.refused, counts.wrong);
    return counts.wrong == 0 ? 0 : 1;
}
