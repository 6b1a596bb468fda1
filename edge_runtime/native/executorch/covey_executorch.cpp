/* See covey_executorch.h.
 *
 * ExecuTorch logs the reason of an error and returns a code. Where it cannot continue, it asks the platform layer to
 * end the process. This file keeps the log lines for the error's message, and turns that request into an exception that
 * it catches at this interface: a bad graph must not take a device down. A graph that failed like this is never used
 * again.
 */
#include "covey_executorch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <executorch/extension/data_loader/buffer_data_loader.h>
#include <executorch/extension/data_loader/mmap_data_loader.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr_maker.h>
#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

/* The wheel lacks the thread pool's header. This declares the members that are called here. */
namespace executorch::extension {
namespace threadpool {
class ThreadPool {
public:
    size_t get_thread_count() const;
    bool _unsafe_reset_threadpool(uint32_t new_thread_count);
};
ThreadPool *get_threadpool();
} // namespace threadpool
namespace cpuinfo {
uint32_t get_num_performant_cores();
}
} // namespace executorch::extension

using executorch::aten::ScalarType;
using executorch::extension::BufferDataLoader;
using executorch::extension::MmapDataLoader;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::DataLoader;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::HierarchicalAllocator;
using executorch::runtime::Program;
using executorch::runtime::Span;

struct covey_executorch_graph {
    /* Memory planned for the largest batch. Module would fill it with zeros and so use all of it; pages from malloc
     * that nobody writes cost nothing. */
    std::vector<std::unique_ptr<uint8_t, decltype(&std::free)>> arenas;
    std::vector<Span<uint8_t>> spans;
    std::unique_ptr<HierarchicalAllocator> planned;
    std::unique_ptr<Module> module;
    std::vector<covey_executorch_tensor> inputs;
    std::vector<TensorPtr> bound;
    std::vector<EValue> outputs;
    uint32_t output_count = 0;
    bool broken = false;
};

namespace {

struct Abort {};

std::atomic<covey_executorch_log> log_sink{nullptr};
std::atomic<int> open_graphs{0};
std::mutex threads_mutex;
thread_local std::string error_text;
thread_local std::string logged; // errors that ExecuTorch logged during this call
thread_local bool inside = false;
constexpr size_t most_logged_bytes = 2000;
constexpr size_t overread_bytes = 64; // XNNPACK's vector loads may read past the end of a buffer

void on_log(et_timestamp_t, et_pal_log_level_t level, const char *file, const char *, size_t line, const char *message,
            size_t length)
{
    const std::string text(message, length);
    if ((level == kError || level == kFatal) && logged.size() < most_logged_bytes) {
        logged += (logged.empty() ? "" : "; ") + text;
    }
    if (const covey_executorch_log sink = log_sink.load()) {
        const char *name = std::strrchr(file, '/');
        const std::string where = std::string(name == nullptr ? file : name + 1) + ":" + std::to_string(line);
        sink(static_cast<char>(level), where.c_str(), text.c_str());
    }
}

[[noreturn]] void on_abort()
{
    if (inside) {
        throw Abort{};
    }
    std::abort(); // on a thread of the pool, where nothing could catch an exception
}

void prepare()
{
    static std::once_flag once;
    std::call_once(once, [] {
        executorch::runtime::runtime_init();
        executorch::runtime::register_pal(executorch::runtime::PalImpl::create(nullptr, on_abort, nullptr, nullptr,
                                                                               on_log, nullptr, nullptr, __FILE__));
    });
}

int32_t fail(int32_t code, const std::string &text)
{
    error_text = text;
    return code;
}

int32_t fail(Error error)
{
    return fail(static_cast<int32_t>(error), logged.empty() ? "no reason given" : logged);
}

/* Runs a function that returns a code. Turns exceptions, and a request to end the process, into codes. */
template <typename Step> int32_t guarded(bool *broken, Step step)
{
    prepare();
    logged.clear();
    error_text.clear();
    inside = true;
    int32_t code = 0;
    try {
        code = step();
    } catch (const Abort &) {
        *broken = true;
        code = fail(COVEY_EXECUTORCH_ABORTED, logged.empty() ? "no reason given" : logged);
    } catch (const std::bad_alloc &) {
        code = fail(static_cast<int32_t>(Error::MemoryAllocationFailed), "out of memory");
    } catch (const std::exception &error) {
        code = fail(static_cast<int32_t>(Error::Internal), error.what());
    }
    inside = false;
    return code;
}

template <typename Sizes> std::string shape_text(const Sizes *sizes, uint32_t rank)
{
    std::string text = "(";
    for (uint32_t axis = 0; axis < rank; ++axis) {
        text += (axis == 0 ? "" : ", ") + std::to_string(sizes[axis]);
    }
    return text + ")";
}

int32_t describe(const executorch::runtime::TensorInfo &info, covey_executorch_tensor *tensor)
{
    const auto sizes = info.sizes();
    if (sizes.size() > COVEY_EXECUTORCH_MAX_RANK) {
        return fail(static_cast<int32_t>(Error::NotSupported), "a tensor has too many axes");
    }
    tensor->dtype = static_cast<int32_t>(info.scalar_type());
    tensor->rank = static_cast<uint32_t>(sizes.size());
    for (uint32_t axis = 0; axis < tensor->rank; ++axis) {
        tensor->sizes[axis] = sizes[axis];
    }
    return 0;
}

int32_t load(covey_executorch_graph *graph, std::unique_ptr<DataLoader> loader)
{
    graph->module = std::make_unique<Module>(std::move(loader));
    Error error = graph->module->load(Program::Verification::InternalConsistency);
    if (error != Error::Ok) {
        return fail(error);
    }
    const auto meta = graph->module->method_meta("forward");
    if (!meta.ok()) {
        return fail(meta.error());
    }
    /* Checked before the method is loaded: load_method reports only that something was not found. */
    for (size_t n = 0; n < meta->num_backends(); ++n) {
        const auto name = meta->get_backend_name(n);
        if (name.ok() && executorch::runtime::get_backend_class(*name) == nullptr) {
            return fail(static_cast<int32_t>(Error::NotFound), std::string("it needs the delegate ") + *name +
                                                                   ", which this build of ExecuTorch does not have");
        }
    }
    for (size_t n = 0; n < meta->num_memory_planned_buffers(); ++n) {
        const auto size = meta->memory_planned_buffer_size(n);
        if (!size.ok()) {
            return fail(size.error());
        }
        graph->arenas.emplace_back(static_cast<uint8_t *>(std::malloc(*size + overread_bytes)), &std::free);
        if (graph->arenas.back() == nullptr) {
            return fail(static_cast<int32_t>(Error::MemoryAllocationFailed),
                        "no memory for activations of " + std::to_string(*size) +
                            " bytes; export with a smaller --max-batch");
        }
        graph->spans.emplace_back(graph->arenas.back().get(), *size);
    }
    graph->planned =
        std::make_unique<HierarchicalAllocator>(Span<Span<uint8_t>>(graph->spans.data(), graph->spans.size()));
    error = graph->module->load_method("forward", graph->planned.get());
    if (error != Error::Ok) {
        return fail(error);
    }
    graph->inputs.resize(meta->num_inputs());
    graph->bound.resize(meta->num_inputs());
    graph->output_count = static_cast<uint32_t>(meta->num_outputs());
    for (size_t n = 0; n < graph->inputs.size(); ++n) {
        const auto info = meta->input_tensor_meta(n);
        if (!info.ok()) {
            return fail(info.error());
        }
        if (const int32_t code = describe(*info, &graph->inputs[n])) {
            return code;
        }
    }
    return 0;
}

template <typename MakeLoader> int32_t open(covey_executorch_graph **out, MakeLoader make_loader)
{
    *out = nullptr;
    auto graph = std::make_unique<covey_executorch_graph>();
    const std::lock_guard<std::mutex> lock(threads_mutex);
    const int32_t code = guarded(&graph->broken, [&]() -> int32_t {
        auto loader = make_loader();
        if (!loader.ok()) {
            return fail(loader.error());
        }
        using Loader = std::decay_t<decltype(*loader)>;
        return load(graph.get(), std::make_unique<Loader>(std::move(*loader)));
    });
    if (code == 0) {
        ++open_graphs;
        *out = graph.release();
    } else if (graph->broken) {
        graph.release(); // leaked: a graph that was interrupted while loading cannot be destroyed safely
    }
    return code;
}

} // namespace

extern "C" {

uint32_t covey_executorch_abi(void)
{
    return COVEY_EXECUTORCH_ABI;
}

void covey_executorch_set_log(covey_executorch_log log)
{
    prepare();
    log_sink.store(log);
}

const char *covey_executorch_error(void)
{
    return error_text.c_str();
}

const char *covey_executorch_code_name(int32_t code)
{
    if (code == COVEY_EXECUTORCH_ABORTED) {
        return "Aborted";
    }
    const char *name = executorch::runtime::to_string(static_cast<Error>(code));
    return name + std::strlen("Error::");
}

int32_t covey_executorch_set_threads(uint32_t threads)
{
    prepare();
    const std::lock_guard<std::mutex> lock(threads_mutex);
    auto *pool = executorch::extension::threadpool::get_threadpool();
    if (pool == nullptr) {
        return fail(static_cast<int32_t>(Error::Internal), "ExecuTorch has no thread pool");
    }
    static const uint32_t fast = executorch::extension::cpuinfo::get_num_performant_cores();
    static const uint32_t all = static_cast<uint32_t>(pool->get_thread_count());
    const uint32_t wanted = threads != 0 ? threads : fast != 0 ? fast : all;
    if (pool->get_thread_count() == wanted) {
        return 0;
    }
    if (open_graphs > 0) {
        return fail(static_cast<int32_t>(Error::InvalidState), "graphs are open with another number of threads");
    }
    if (!pool->_unsafe_reset_threadpool(wanted)) {
        return fail(static_cast<int32_t>(Error::OutOfResources), "the threads cannot be started");
    }
    return 0;
}

uint32_t covey_executorch_threads(void)
{
    auto *pool = executorch::extension::threadpool::get_threadpool();
    return pool == nullptr ? 1 : static_cast<uint32_t>(pool->get_thread_count());
}

int32_t covey_executorch_has_backend(const char *name)
{
    prepare();
    return executorch::runtime::get_backend_class(name) != nullptr ? 1 : 0;
}

int32_t covey_executorch_open_file(const char *path, covey_executorch_graph **graph)
{
    return open(graph, [path] { return MmapDataLoader::from(path, MmapDataLoader::MlockConfig::NoMlock); });
}

int32_t covey_executorch_open_bytes(const void *data, size_t size, covey_executorch_graph **graph)
{
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) {
        *graph = nullptr;
        return fail(COVEY_EXECUTORCH_INVALID_ARGUMENT, "the bytes of a graph must be aligned to 16");
    }
    return open(graph,
                [data, size] { return executorch::runtime::Result<BufferDataLoader>(BufferDataLoader(data, size)); });
}

void covey_executorch_close(covey_executorch_graph *graph)
{
    if (graph == nullptr) {
        return;
    }
    --open_graphs;
    if (!graph->broken) {
        delete graph;
    }
}

uint32_t covey_executorch_inputs(const covey_executorch_graph *graph)
{
    return static_cast<uint32_t>(graph->inputs.size());
}

uint32_t covey_executorch_outputs(const covey_executorch_graph *graph)
{
    return graph->output_count;
}

int32_t covey_executorch_input(const covey_executorch_graph *graph, uint32_t index, covey_executorch_tensor *tensor)
{
    if (index >= graph->inputs.size()) {
        return fail(COVEY_EXECUTORCH_INVALID_ARGUMENT, "the graph has no input " + std::to_string(index));
    }
    *tensor = graph->inputs[index];
    return 0;
}

int32_t covey_executorch_bind(covey_executorch_graph *graph, uint32_t index, const void *data, const int64_t *sizes,
                              uint32_t rank)
{
    covey_executorch_tensor allowed;
    if (const int32_t code = covey_executorch_input(graph, index, &allowed)) {
        return code;
    }
    bool fits = rank == allowed.rank;
    for (uint32_t axis = 0; fits && axis < rank; ++axis) {
        fits = sizes[axis] >= 0 && sizes[axis] <= allowed.sizes[axis];
    }
    if (!fits) {
        return fail(COVEY_EXECUTORCH_INVALID_ARGUMENT, "input " + std::to_string(index) + " has sizes " +
                                                           shape_text(sizes, rank) + "; at most " +
                                                           shape_text(allowed.sizes, allowed.rank) + " are allowed");
    }
    return guarded(&graph->broken, [&]() -> int32_t {
        using Size = executorch::aten::SizesType;
        graph->bound[index] = executorch::extension::from_blob(
            const_cast<void *>(data), std::vector<Size>(sizes, sizes + rank), static_cast<ScalarType>(allowed.dtype));
        return 0;
    });
}

int32_t covey_executorch_run(covey_executorch_graph *graph)
{
    if (graph->broken) {
        return fail(static_cast<int32_t>(Error::InvalidState), "the graph failed before and can only be closed");
    }
    for (size_t n = 0; n < graph->bound.size(); ++n) {
        if (graph->bound[n] == nullptr) {
            return fail(static_cast<int32_t>(Error::InvalidState), "input " + std::to_string(n) + " is not bound");
        }
    }
    return guarded(&graph->broken, [&]() -> int32_t {
        graph->outputs.clear();
        std::vector<EValue> values;
        values.reserve(graph->bound.size());
        for (const TensorPtr &tensor : graph->bound) {
            values.emplace_back(*tensor);
        }
        auto result = graph->module->execute("forward", values);
        if (!result.ok()) {
            return fail(result.error());
        }
        graph->outputs = std::move(*result);
        return 0;
    });
}

int32_t covey_executorch_output(const covey_executorch_graph *graph, uint32_t index, covey_executorch_tensor *tensor,
                                const void **data)
{
    if (index >= graph->outputs.size() || !graph->outputs[index].isTensor()) {
        return fail(COVEY_EXECUTORCH_INVALID_ARGUMENT, "the last run gave no tensor " + std::to_string(index));
    }
    const auto &value = graph->outputs[index].toTensor();
    if (value.dim() > COVEY_EXECUTORCH_MAX_RANK) {
        return fail(static_cast<int32_t>(Error::NotSupported), "an output has too many axes");
    }
    tensor->dtype = static_cast<int32_t>(value.scalar_type());
    tensor->rank = static_cast<uint32_t>(value.dim());
    for (uint32_t axis = 0; axis < tensor->rank; ++axis) {
        tensor->sizes[axis] = value.size(axis);
    }
    *data = value.const_data_ptr();
    return 0;
}

} // extern "C"
