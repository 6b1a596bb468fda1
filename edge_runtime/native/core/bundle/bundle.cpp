#include "core/bundle/bundle.h"

#include <cstring>
#include <filesystem>
#include <set>

#include "core/files/error.h"
#include "core/files/sha256.h"

namespace covey {
namespace {

namespace fs = std::filesystem;

constexpr const char *fetch_again = "fetch the bundle again, or re-export it with covey export";

Manifest read_manifest(const std::string &path)
{
    std::error_code error;
    if (!fs::is_directory(path, error))
        throw Error(Code::bundle, path + " is not a bundle: no such folder", "make one with: covey export");
    if (!fs::exists(path + "/manifest.json", error))
        throw Error(Code::bundle, path + " is not a bundle: no manifest.json in it (an interrupted export?)",
                    "make one with: covey export");
    const MappedFile file(path + "/manifest.json", Code::bundle);
    return decode_manifest(file.data(), file.size());
}

} // namespace

Bundle::Bundle(std::string path) : path_(std::move(path)), manifest_(read_manifest(path_)) {}

void Bundle::check(const MappedFile &file, const FileEntry &entry) const
{
    if (file.size() != entry.size_bytes || sha256_hex(file.data(), file.size()) != entry.sha256)
        throw Error(Code::bundle,
                    "the bundle's file " + entry.path + " was altered: its size or hash is not the manifest's",
                    fetch_again);
}

void Bundle::verify_files() const
{
    std::error_code error;
    std::set<std::string> listed = {"manifest.json"};
    for (const FileEntry &entry : manifest_.files) {
        const std::string path = path_of(entry.path);
        if (fs::symlink_status(path, error).type() != fs::file_type::regular)
            throw Error(Code::bundle, "the bundle's file " + entry.path + " is missing", fetch_again);
        check(MappedFile(path, Code::bundle), entry);
        listed.insert(entry.path);
    }
    for (fs::recursive_directory_iterator at(path_, error), end; !error && at != end; at.increment(error)) {
        const std::string name = fs::relative(at->path(), path_, error).generic_string();
        if (!fs::is_directory(at->symlink_status(error)) && listed.count(name) == 0)
            throw Error(Code::bundle, name + " is in the bundle's folder but not in its manifest",
                        "remove the file, or re-export the bundle with covey export");
    }
    if (error)
        throw Error(Code::bundle, "cannot list " + path_ + ": " + error.message(), "check its permissions");
}

InitialAdapter::InitialAdapter(const Bundle &bundle) : file_(bundle.path_of(bundle.manifest().adapter_file))
{
    const Manifest &manifest = bundle.manifest();
    if (manifest.trains_every_weight) {
        std::vector<std::string> names;
        for (const Parameter &parameter : manifest.parameters)
            names.push_back(parameter.name);
        data_ = file_.flat(names, manifest.total_size());
        return;
    }
    // Every shape is checked before memory is allocated, because a layout may claim any size.
    for (const Parameter &parameter : manifest.parameters)
        if (file_.tensor(parameter.name, Dtype::float32).shape != parameter.shape)
            throw Error(Code::bundle, manifest.adapter_file + " holds " + parameter.name + " with another shape",
                        fetch_again);
    flat_.resize(manifest.total_size());
    for (const Parameter &parameter : manifest.parameters) {
        const Tensor &tensor = file_.tensor(parameter.name, Dtype::float32);
        std::memcpy(flat_.data() + parameter.offset, tensor.data, tensor.size_bytes);
    }
    data_ = flat_.data();
}

} // namespace covey
