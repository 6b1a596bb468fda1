#include "core/bundle/manifest.h"

#include <cctype>
#include <cmath>
#include <set>

#include "core/files/document.h"
#include "core/files/sha256.h"

namespace covey {
namespace {

constexpr const char *export_again = "re-export the bundle with covey export";
constexpr std::uint64_t most_elements = std::uint64_t{1} << 40;

std::int64_t whole_number(const Value &value, const Fields &around, const char *what)
{
    const auto *found = std::get_if<std::int64_t>(&value.data);
    if (found == nullptr)
        around.refuse(std::string(what) + " is not a whole number");
    return *found;
}

Parameter read_parameter(const Value &value)
{
    Fields fields(value, "a parameter of the manifest's layout", Code::bundle);
    Parameter parameter{
        fields.text("name"), {}, fields.integer("layer"), fields.unsigned_integer("offset", 0, most_elements), 1};
    for (const Value &side : fields.array("shape")) {
        parameter.shape.push_back(whole_number(side, fields, "a size in its shape"));
        const std::int64_t length = parameter.shape.back();
        if (length < 1 || static_cast<std::uint64_t>(length) > most_elements / parameter.size)
            fields.refuse(parameter.name + " has a bad shape");
        parameter.size *= static_cast<std::uint64_t>(length);
    }
    return parameter;
}

GraphInput read_input(const Value &value)
{
    Fields fields(value, "an input of a graph in the manifest", Code::bundle);
    GraphInput input{fields.choice("dtype", dtype_names),
                     fields.choice("role", input_role_names),
                     fields.text("source"),
                     {},
                     false,
                     {}};
    for (const Value &side : fields.array("shape")) {
        if (const auto *name = std::get_if<std::string>(&side.data))
            input.shape.emplace_back(*name);
        else
            input.shape.emplace_back(whole_number(side, fields, "a size in its shape"));
    }
    const Value *rows = fields.optional("rows");
    if (rows != nullptr && std::holds_alternative<std::string>(rows->data)) {
        input.reads_tokens = std::get<std::string>(rows->data) == "input_ids";
        if (!input.reads_tokens)
            fields.refuse("rows is text, but not \"input_ids\"");
    } else if (rows != nullptr) {
        const auto *list = std::get_if<Array>(&rows->data);
        if (list == nullptr)
            fields.refuse("rows is not a list");
        input.rows.emplace();
        const auto *height = input.shape.empty() ? nullptr : std::get_if<std::int64_t>(&input.shape[0]);
        for (const Value &row : *list) {
            input.rows->push_back(whole_number(row, fields, "a row"));
            if (height == nullptr || input.rows->back() < 0 || input.rows->back() >= *height)
                fields.refuse(input.source + " has no row " + std::to_string(input.rows->back()));
        }
    }
    return input;
}

Graph read_graph(const Value &value)
{
    Fields fields(value, "a graph in the manifest", Code::bundle);
    Graph graph{fields.choice("kind", graph_kind_names),
                fields.choice("runtime", runtime_names),
                fields.text("file"),
                std::nullopt,
                {},
                {}};
    if (const Value *split = fields.optional("split"))
        graph.split = whole_number(*split, fields, "split");
    for (const Value &input : fields.array("inputs"))
        graph.inputs.push_back(read_input(input));
    for (const Value &output : fields.array("outputs"))
        graph.outputs.push_back(Fields(output, "an output of a graph", Code::bundle).text("name"));
    return graph;
}

bool is_safe(const std::string &path)
{
    bool begins = true; // a part begins with a letter or a digit, so there is no ".." and no hidden file
    for (const char c : path) {
        const bool plain = std::isalnum(static_cast<unsigned char>(c)) != 0;
        const bool allowed = plain || (!begins && (c == '.' || c == '_' || c == '-' || c == '/'));
        if (!allowed)
            return false;
        begins = c == '/';
    }
    return !begins && path != "manifest.json";
}

void check_layout(const std::vector<Parameter> &parameters, const Fields &fields)
{
    if (parameters.empty())
        fields.refuse("the parameter layout is empty");
    std::uint64_t offset = 0;
    std::int64_t layer = parameters.front().layer;
    std::set<std::string> seen;
    for (const Parameter &parameter : parameters) {
        if (!seen.insert(parameter.name).second)
            fields.refuse("parameter " + parameter.name + " occurs twice in the layout");
        if (parameter.offset != offset)
            fields.refuse("parameter " + parameter.name + " does not begin where the previous one ends");
        if (parameter.layer < layer)
            fields.refuse("parameter " + parameter.name + " is out of depth order");
        if (parameter.size > most_elements - offset)
            fields.refuse("the layout is too large");
        offset += parameter.size;
        layer = parameter.layer;
    }
}

void check(const Manifest &manifest, const Fields &fields)
{
    std::set<std::string> paths, names;
    for (const FileEntry &entry : manifest.files) {
        if (!is_safe(entry.path))
            fields.refuse("it lists an unsafe path: " + entry.path);
        if (!paths.insert(entry.path).second)
            fields.refuse("it lists a file twice: " + entry.path);
    }
    check_layout(manifest.parameters, fields);
    for (const std::string &path : {manifest.weights_file, manifest.adapter_file, manifest.golden.file})
        manifest.file(path);
    for (const Parameter &parameter : manifest.parameters)
        names.insert(parameter.name);
    for (const Graph &graph : manifest.graphs) {
        manifest.file(graph.file);
        // The core does not run training graphs. Names of their layers' tensors are formed when a layer is bound.
        for (const GraphInput &input : graph.inputs)
            if (graph.kind != GraphKind::train && input.role == InputRole::trainable && names.count(input.source) == 0)
                fields.refuse(graph.file + ": " + input.source + " is not in the layout");
    }
    if (manifest.splits.empty())
        fields.refuse("it lists no split");
}

} // namespace

std::uint64_t Manifest::total_size() const
{
    return parameters.back().offset + parameters.back().size;
}

std::uint64_t Manifest::front_size(std::int64_t split) const
{
    std::uint64_t size = 0;
    for (const Parameter &parameter : parameters)
        size += parameter.layer < split ? parameter.size : 0;
    return size;
}

const FileEntry &Manifest::file(const std::string &path) const
{
    for (const FileEntry &entry : files)
        if (entry.path == path)
            return entry;
    throw Error(Code::bundle, "the manifest lists no file " + path, export_again);
}

const Graph &Manifest::graph(GraphKind kind, Runtime runtime, std::int64_t split) const
{
    for (const Graph &graph : graphs)
        if (graph.kind == kind && graph.runtime == runtime && graph.split == split)
            return graph;
    std::string known;
    for (const std::int64_t each : splits)
        known += (known.empty() ? "" : ", ") + std::to_string(each);
    const std::string engine = text_of(runtime_names, runtime);
    throw Error(Code::bundle,
                "the bundle has no " + text_of(graph_kind_names, kind) + " graph for " + engine + " at split " +
                    std::to_string(split) + "; its splits are " + known,
                "choose one of its splits, or re-export it with covey export --runtime onnx," + engine);
}

Manifest decode_manifest(const void *data, std::size_t size)
{
    const Value value = parse_json(data, size, Code::bundle);
    Fields fields(value, "the manifest", Code::bundle);
    const std::int64_t version = fields.integer("format_version");
    if (version < oldest_format_version || version > format_version)
        throw Error(Code::bundle,
                    "the bundle has format version " + std::to_string(version) + ", this Covey reads versions " +
                        std::to_string(oldest_format_version) + " to " + std::to_string(format_version),
                    version > format_version ? "upgrade Covey on this machine" : export_again);
    Manifest manifest{};
    manifest.sha256 = sha256_hex(data, size);
    manifest.task = Fields(fields.required("task"), "the manifest's task", Code::bundle).choice("kind", task_names);
    manifest.weights_file = fields.text("weights_file");
    manifest.adapter_file = fields.text("adapter_file");
    if (!fields.is_present("lora"))
        fields.refuse("lora is missing");
    manifest.trains_every_weight = fields.optional("lora") == nullptr;
    if (fields.is_present("base") && fields.optional("base") != nullptr)
        throw Error(Code::bundle, "the bundle has a quantised base, which the core for apps does not run",
                    "export it without --base");
    for (const Value &split : fields.array("splits"))
        manifest.splits.push_back(whole_number(split, fields, "a split"));
    for (const Value &parameter : fields.array("parameters"))
        manifest.parameters.push_back(read_parameter(parameter));
    Fields golden(fields.required("golden"), "the manifest's golden vectors", Code::bundle);
    manifest.golden = {golden.text("file"), golden.unsigned_integer("batches", 0, 1 << 20),
                       golden.unsigned_integer("seed"), golden.number("scale"), golden.number("tolerance")};
    if (!std::isfinite(manifest.golden.scale) || !std::isfinite(manifest.golden.tolerance))
        golden.refuse("scale or tolerance is not finite");
    for (const Value &graph : fields.array("graphs"))
        manifest.graphs.push_back(read_graph(graph));
    for (const Value &entry : fields.array("files")) {
        Fields file(entry, "a file in the manifest", Code::bundle);
        manifest.files.push_back({file.text("path"), file.sha256("sha256"), file.unsigned_integer("size_bytes")});
    }
    check(manifest, fields);
    return manifest;
}

} // namespace covey
