// An exported bundle on disk (edge_runtime/bundle/folder.py): opened, and checked byte by byte against its manifest.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/bundle/manifest.h"
#include "core/files/tensor_file.h"

namespace covey {

class Bundle {
public:
    // Reads the manifest alone; see verify_files. Throws Error (bundle).
    explicit Bundle(std::string path);

    const Manifest &manifest() const { return manifest_; }
    std::string path_of(const std::string &name) const { return path_ + "/" + name; }

    // Checks that the folder holds exactly the manifest's files, each with its hash.
    void verify_files() const;
    // Checks one file, as it is mapped: who goes on with the mapping has what was checked.
    void check(const MappedFile &file, const FileEntry &entry) const;

private:
    std::string path_;
    Manifest manifest_;
};

// The trainable vector that a bundle starts from: total_size() floats, mapped where it is every weight.
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
