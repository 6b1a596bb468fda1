// In the place of engine_executorch.cpp where the library is built without ExecuTorch.
#include "core/engines/engine_executorch.h"
#include "core/files/error.h"

namespace covey {
namespace {

[[noreturn]] void refuse()
{
    throw Error(Code::config, "this library was built without ExecuTorch",
                "build it with -DCOVEY_EXECUTORCH=ON, or give it an engine of your own by covey_engine_callbacks");
}

} // namespace

std::unique_ptr<Engine> executorch_engine(const Bundle & /*bundle*/, std::int64_t /*split*/, std::uint32_t /*threads*/)
{
    refuse();
}

double check_golden(const Bundle & /*bundle*/, std::uint32_t /*threads*/)
{
    refuse();
}

} // namespace covey
