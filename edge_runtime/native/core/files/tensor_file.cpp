#include "core/files/tensor_file.h"

#include <algorithm>

#include "core/files/document.h"

namespace covey {
namespace {

constexpr std::uint64_t most_header_bytes = 100'000'000;

} // namespace

void TensorFile::refuse(const std::string &what) const
{
    throw Error(Code::bundle, path_ + ": " + what, "fetch the bundle again, or re-export it with covey export");
}

TensorFile::TensorFile(const std::string &path) : path_(path), file_(path, Code::bundle)
{
    std::uint64_t header_size = 0;
    for (std::size_t i = 0; file_.size() >= 8 && i < 8; i++)
        header_size |= std::uint64_t{file_.data()[i]} << (8 * i);
    if (header_size < 2 || header_size > most_header_bytes || header_size > file_.size() - 8)
        refuse("it is not a safetensors file");
    const Value header = parse_json(file_.data() + 8, header_size, Code::bundle);
    const Object *entries = std::get_if<Object>(&header.data);
    if (entries == nullptr)
        refuse("its header is broken");
    const std::uint64_t data_size = file_.size() - 8 - header_size;
    for (const auto &[name, value] : *entries) {
        if (name == "__metadata__")
            continue;
        Fields fields(value, path_ + ": " + name, Code::bundle);
        Tensor tensor{};
        const std::string &type = fields.text("dtype");
        const std::uint64_t item = type == "F32" ? 4 : 8;
        if (type != "F32" && type != "I64")
            fields.refuse("its element type is " + type);
        tensor.dtype = type == "F32" ? Dtype::float32 : Dtype::int64;
        std::uint64_t count = 1;
        for (const Value &side : fields.array("shape")) {
            const auto *length = std::get_if<std::int64_t>(&side.data);
            if (length == nullptr || *length < 0)
                fields.refuse("it has a bad shape");
            if (*length > 0 && count > data_size / static_cast<std::uint64_t>(*length))
                fields.refuse("it lies outside the file");
            count *= static_cast<std::uint64_t>(*length);
            tensor.shape.push_back(*length);
        }
        const Array &offsets = fields.array("data_offsets");
        const auto offset = [&](std::size_t k) -> std::uint64_t {
            const auto *found = offsets.size() == 2 ? std::get_if<std::int64_t>(&offsets[k].data) : nullptr;
            if (found == nullptr || *found < 0)
                fields.refuse("it has bad offsets");
            return static_cast<std::uint64_t>(*found);
        };
        const std::uint64_t begin = offset(0), end = offset(1);
        if (begin > end || end > data_size || end - begin != count * item)
            fields.refuse("it lies outside the file");
        if ((8 + header_size + begin) % item != 0)
            fields.refuse("it is not aligned");
        tensor.data = file_.data() + 8 + header_size + begin;
        tensor.size_bytes = end - begin;
        tensor.begin = begin;
        tensors_[name] = tensor;
    }
}

const Tensor &TensorFile::tensor(const std::string &name, Dtype dtype) const
{
    const auto found = tensors_.find(name);
    if (found == tensors_.end() || found->second.dtype != dtype)
        refuse("it does not hold " + name + " as " + text_of(dtype_names, dtype));
    return found->second;
}

const float *TensorFile::flat(const std::vector<std::string> &names, std::uint64_t size) const
{
    std::uint64_t reached = 0;
    bool is_in_order = !names.empty() && names.size() == tensors_.size();
    for (std::size_t k = 0; is_in_order && k < names.size(); k++) {
        const auto found = tensors_.find(names[k]);
        is_in_order =
            found != tensors_.end() && found->second.dtype == Dtype::float32 && found->second.begin == reached;
        reached += is_in_order ? found->second.size_bytes : 0;
    }
    if (!is_in_order || reached != size * sizeof(float))
        refuse("it does not hold the layout's tensors in its order");
    return static_cast<const float *>(tensor(names.front(), Dtype::float32).data);
}

} // namespace covey
