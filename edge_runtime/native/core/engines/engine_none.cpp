// Takes the place of engine_executorch.cpp where the library is built without ExecuTorch.
#include "core/engines/engine_executorch.h"
#include "core/files/error.h"

namespace covey {

std::unique_ptr<ExecutorchEngine> executorch_engine(const Bundle & /*bundle*/, std::int64_t /*split*/,
                                                    std::uint32_t /*threads*/)
{
    throw Error(Code::config, "this library was built without ExecuTorch",
                "build it with -DCOVEY_EXECUTORCH=ON, or pass an engine of the app through covey_engine_callbacks");
}

} // namespace covey
