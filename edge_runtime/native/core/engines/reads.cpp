#include "core/engines/reads.h"

#include <map>
#include <set>
#include <string>

#include "core/files/error.h"

namespace covey {
namespace {

void append(std::vector<Part> &parts, std::uint64_t begin, std::uint64_t end)
{
    if (!parts.empty() && parts.back().end == begin)
        parts.back().end = end;
    else if (begin < end)
        parts.push_back({begin, end});
}

} // namespace

std::vector<Part> read_parts(const Manifest &manifest, const Graph &graph, bool front, std::int64_t split,
                             const Batch &batch)
{
    std::map<std::string, const GraphInput *> by_rows;
    for (const GraphInput &input : graph.inputs)
        if (input.role == InputRole::trainable && (input.reads_tokens || input.rows))
            by_rows[input.source] = &input;
    const std::uint64_t block = front ? 0 : manifest.front_size(split);
    std::vector<Part> parts;
    for (const Parameter &parameter : manifest.parameters) {
        if ((parameter.layer < split) != front)
            continue;
        const std::uint64_t first = parameter.offset - block;
        const auto found = by_rows.find(parameter.name);
        if (found == by_rows.end()) {
            append(parts, first, first + parameter.size);
            continue;
        }
        std::set<std::int64_t> rows;
        if (found->second->reads_tokens)
            rows.insert(batch.input_ids, batch.input_ids + batch.rows * batch.tokens);
        else
            rows.insert(found->second->rows->begin(), found->second->rows->end());
        const std::int64_t height = parameter.shape.empty() ? 1 : parameter.shape[0];
        const std::uint64_t width = parameter.size / static_cast<std::uint64_t>(height);
        for (const std::int64_t row : rows) {
            if (row < 0 || row >= height)
                throw Error(Code::data,
                            "a batch has token " + std::to_string(row) + "; " + parameter.name + " has " +
                                std::to_string(height),
                            "encode the rows with the bundle's own tokenizer");
            append(parts, first + static_cast<std::uint64_t>(row) * width,
                   first + static_cast<std::uint64_t>(row + 1) * width);
        }
    }
    return parts;
}

} // namespace covey
