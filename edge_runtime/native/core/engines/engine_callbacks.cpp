#include "core/engines/engine_callbacks.h"

#include <string>

#include "core/files/error.h"

namespace covey {
namespace {

class CallbackBoundary : public Boundary {
public:
    CallbackBoundary(const covey_callbacks &callbacks, void *value) : callbacks_(callbacks), value_(value) {}
    ~CallbackBoundary() override { callbacks_.drop(callbacks_.context, value_); }
    CallbackBoundary(const CallbackBoundary &) = delete;
    CallbackBoundary &operator=(const CallbackBoundary &) = delete;

    void *value() const { return value_; }

private:
    const covey_callbacks &callbacks_;
    void *value_;
};

void check(int32_t result, const char *block)
{
    if (result != 0)
        throw Error(Code::training, std::string("the engine's ") + block + " failed with " + std::to_string(result),
                    "check the messages of the app's engine");
}

} // namespace

CallbackEngine::CallbackEngine(const covey_callbacks &callbacks) : callbacks_(callbacks)
{
    const bool has_workspaces = (callbacks.front_workspace != nullptr || callbacks.front_size == 0) &&
                                (callbacks.back_workspace != nullptr || callbacks.back_size == 0);
    if (!has_workspaces || callbacks.front == nullptr || callbacks.back == nullptr || callbacks.drop == nullptr)
        throw Error(Code::config, "an engine lacks a callback or a workspace", "fill every field of covey_callbacks");
}

std::unique_ptr<Boundary> CallbackEngine::front(const Batch &batch)
{
    void *value = nullptr;
    check(callbacks_.front(callbacks_.context, &batch, &value), "front");
    return std::make_unique<CallbackBoundary>(callbacks_, value);
}

double CallbackEngine::back(const Boundary &boundary, const Batch &batch)
{
    double loss = 0.0;
    void *value = static_cast<const CallbackBoundary &>(boundary).value();
    check(callbacks_.back(callbacks_.context, value, &batch, &loss), "back");
    return loss;
}

} // namespace covey
