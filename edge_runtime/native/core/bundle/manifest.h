// The part of a bundle's manifest that the core needs (edge_runtime/bundle/manifest.py). It ignores the other fields:
// the format version guards their meaning.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/files/tensor_file.h"

namespace covey {

// Version 4 adds top levels, of which forward passes need nothing.
constexpr std::int64_t oldest_format_version = 3, format_version = 4;

enum class TaskKind { classify_head, classify_prompt, causal_lm };
enum class GraphKind { front, back, predict, train };
enum class Runtime { onnxruntime, executorch };
enum class InputRole { weight, frozen, trainable, batch, boundary, scale };

inline constexpr Names<TaskKind, 3> task_names = {{{"classify-head", TaskKind::classify_head},
                                                   {"classify-prompt", TaskKind::classify_prompt},
                                                   {"causal-lm", TaskKind::causal_lm}}};
inline constexpr Names<GraphKind, 4> graph_kind_names = {{{"front", GraphKind::front},
                                                          {"back", GraphKind::back},
                                                          {"predict", GraphKind::predict},
                                                          {"train", GraphKind::train}}};
inline constexpr Names<Runtime, 2> runtime_names = {
    {{"onnxruntime", Runtime::onnxruntime}, {"executorch", Runtime::executorch}}};
inline constexpr Names<InputRole, 6> input_role_names = {{{"weight", InputRole::weight},
                                                          {"frozen", InputRole::frozen},
                                                          {"trainable", InputRole::trainable},
                                                          {"batch", InputRole::batch},
                                                          {"boundary", InputRole::boundary},
                                                          {"scale", InputRole::scale}}};

struct Parameter {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t layer;
    std::uint64_t offset, size; // in elements of the flat vector
};

struct FileEntry {
    std::string path, sha256;
    std::uint64_t size_bytes;
};

struct GraphInput {
    Dtype dtype;
    InputRole role;
    std::string source;
    std::vector<std::variant<std::int64_t, std::string>> shape; // a name where the size is dynamic
    // Where the graph reads only some rows of a trainable tensor: the rows of the batch's tokens, or the listed ones.
    bool reads_tokens = false;
    std::optional<std::vector<std::int64_t>> rows;
};

struct Graph {
    GraphKind kind;
    Runtime runtime;
    std::string file;
    std::optional<std::int64_t> split;
    std::vector<GraphInput> inputs; // in the order in which the graph takes them
    std::vector<std::string> outputs;
};

struct Golden {
    std::string file;
    std::uint64_t batches, seed;
    double scale, tolerance;
};

struct Manifest {
    std::string sha256; // of manifest.json; plans name the bundle by it
    TaskKind task;
    std::string weights_file, adapter_file;
    bool trains_every_weight;
    std::vector<std::int64_t> splits;
    std::vector<Parameter> parameters;
    Golden golden;
    std::vector<Graph> graphs;
    std::vector<FileEntry> files;

    std::uint64_t total_size() const; // of the flat vector
    std::uint64_t front_size(std::int64_t split) const;
    // Both throw Error (bundle) where there is none.
    const FileEntry &file(const std::string &path) const;
    const Graph &graph(GraphKind kind, Runtime runtime, std::int64_t split) const;
};

// Throws Error (bundle): not JSON, another version, wrong types, unknown names, unsafe or missing paths, a broken
// layout.
Manifest decode_manifest(const void *data, std::size_t size);

} // namespace covey
