// An exported bundle on disk, and its check against the manifest's hashes (edge_runtime/bundle/folder.py).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/bundle/manifest.h"
#include "core/files/tensor_file.h"

namespace covey {

class Bundle {
public:
    // Reads the manifest, but no other file; see verify_files. Throws Error (bundle).
    explicit Bundle(std::string path);

    const Manifest &manifest() const { return manifest_; }
    std::string path_of(const std::string &name) const { return path_ + "/" + name; }

    // Checks that the folder holds exactly the manifest's files, each with its hash. Throws Error (bundle).
    void verify_files() const;
    // Checks the bytes of one mapped file. A caller that uses this same mapping uses bytes that were checked.
    void check(const MappedFile &file, const FileEntry &entry) const;

private:
    std::string path_;
    Manifest manifest_;
};

// A bundle's initial trainable vector: total_size() floats, mapped where every weight is trained, otherwise copied.
class InitialAdapter {
public:
    explicit InitialAdapter(const Bundle &bundle);

    const float *data() const { return data_; }

private:
    TensorFile file_;
    std::vector<float> flat_;
    const float *data_;
};

} // namespace covey
