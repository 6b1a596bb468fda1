// Tensors mapped from a safetensors file, without a copy (edge_runtime/files/tensor_file.py).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/files/mapped_file.h"
#include "core/files/names.h"

namespace covey {

// Element types, named as the manifest names them; tensor files hold float32 and int64.
enum class Dtype { float32, int64, boolean };

inline constexpr Names<Dtype, 3> dtype_names = {
    {{"float32", Dtype::float32}, {"int64", Dtype::int64}, {"bool", Dtype::boolean}}};

struct Tensor {
    Dtype dtype;
    std::vector<std::int64_t> shape;
    const void *data; // aligned for its type
    std::uint64_t size_bytes;
    std::uint64_t begin; // offset in the file's data, in bytes
};

class TensorFile {
public:
    // Throws Error (bundle): the file is missing, truncated or not aligned, or has another element type.
    explicit TensorFile(const std::string &path);

    const std::map<std::string, Tensor> &tensors() const { return tensors_; }
    // Throws Error (bundle) where the file has no such tensor, or it has another element type.
    const Tensor &tensor(const std::string &name, Dtype dtype) const;
    // Returns the file's data as one vector of `size` floats. Throws Error (bundle) where its tensors are not float32,
    // one after the other in the order of `names`.
    const float *flat(const std::vector<std::string> &names, std::uint64_t size) const;

private:
    [[noreturn]] void refuse(const std::string &what) const;

    std::string path_;
    MappedFile file_;
    std::map<std::string, Tensor> tensors_;
};

} // namespace covey
