// covey-core: the core as a command, without Python. `usage` describes it; results go to stdout as text or JSON.
#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/bundle/bundle.h"
#include "core/command/command_line.h"
#include "core/engines/engine_executorch.h"
#include "core/engines/golden.h"
#include "core/files/error.h"
#include "core/files/sha256.h"
#include "core/forward_only/replay_file.h"
#include "core/forward_only/round.h"
#include "core/self_test.h"

namespace {

using namespace covey;

constexpr Names<bool, 2> format_names = {{{"text", false}, {"json", true}}}; // whether it is JSON

constexpr const char *usage = R"(usage: covey-core COMMAND [--option VALUE ...] [--format text|json]

  self-test                      compare this machine's perturbations, steps and replay with pinned results
  verify --bundle DIR            compare every file of a bundle with its hash; --golden 1 also runs its golden vectors
  replay --log FILE --adapter FILE --out FILE [--previous FILE] [--before FILE]
                                 replay a chain of logs from one adapter to a later one, and check its hash
  step --bundle DIR --split N    local steps of a round on ExecuTorch, with these options:
    --adapter FILE               start from this adapter; default: the bundle's
    --batches FILE               a safetensors file with 0.input_ids, 0.attention_mask, 0.labels, 1.input_ids ...,
                                 used in turn; default: the bundle's golden batches
    --steps N                    default 1
    --device NAME --job-seed N --round N          default device, 0, 0
    --front-perturbations N --back-perturbations N --eps X --learning-rate X
    --variant nested|clean --difference central|forward --normalize none|rms|std
    --leave-one-out 0|1 --shared-directions 0|1 --seed-pool N --mean-square X
    --threads N                  threads of one operator; default 0: one per fast core
    --scalars FILE --local-model FILE             write raw float32 results to these files

exit codes: 0 done, 2 usage, 3 configuration, 4 data, 5 bundle, 6 replay log, 8 storage, 9 training, 70 fault of Covey, 1 out of memory
)";

Result run_self_test(Options &options)
{
    options.finish();
    Result result;
    for (const SelfTest &test : self_test()) {
        if (test.found != test.pinned)
            throw Error(Code::training,
                        "the self-test's result for " + test.name + " differs from the pinned one: " + test.found,
                        "report the compiler, its flags and the CPU; do not train on this machine");
        result.add(test.name, quoted(test.found));
    }
    return result;
}

Result run_verify(Options &options)
{
    const std::string path = options.required("bundle");
    const bool golden = options.whole("golden", 0) != 0;
    const auto threads = static_cast<std::uint32_t>(options.whole("threads", 0));
    options.finish();
    const Bundle bundle(path);
    bundle.verify_files();
    Result result;
    result.add("bundle_sha256", quoted(bundle.manifest().sha256));
    result.add("files", std::to_string(bundle.manifest().files.size()));
    if (golden)
        result.add("parity", number(check_golden(bundle, threads)));
    return result;
}

Result run_replay(Options &options)
{
    const std::string log = options.required("log"), adapter = options.required("adapter");
    const std::string out = options.required("out"), previous = options.text("previous");
    const std::string before = options.text("before");
    options.finish();
    const MappedFile file(log, Code::protocol);
    const std::vector<RoundLog> logs = decode_chain(file.data(), file.size());
    Result result;
    result.add("adapter_sha256", quoted(follow_logs(logs, adapter, previous, out, before)));
    result.add("rounds", std::to_string(logs.size()));
    return result;
}

StepRule rule_from(Options &options)
{
    StepRule rule;
    rule.variant = options.choice("variant", variant_names, rule.variant);
    rule.difference = options.choice("difference", difference_names, rule.difference);
    rule.normalize = options.choice("normalize", normalize_names, rule.normalize);
    rule.front_perturbations = options.whole("front-perturbations", rule.front_perturbations);
    rule.back_perturbations = options.whole("back-perturbations", rule.back_perturbations);
    rule.eps = options.real("eps", rule.eps);
    rule.learning_rate = options.real("learning-rate", rule.learning_rate);
    rule.leave_one_out = options.whole("leave-one-out", 0) != 0;
    rule.shared_directions = options.whole("shared-directions", 0) != 0;
    if (const std::uint64_t pool = options.whole("seed-pool", 0))
        rule.seed_pool = pool;
    return rule;
}

void write_floats(const std::string &path, const std::vector<float> &values)
{
    if (path.empty())
        return;
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char *>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
    if (!file.flush())
        throw Error(Code::storage, "cannot write " + path, "free some space, or check the directory's permissions");
}

Result run_step(Options &options)
{
    const Bundle bundle(options.required("bundle"));
    const Manifest &manifest = bundle.manifest();
    const auto split = static_cast<std::int64_t>(options.whole("split", 0));
    const std::string adapter = options.text("adapter"), scalars = options.text("scalars");
    const std::string local_model = options.text("local-model");
    const std::string batches = options.text("batches", bundle.path_of(manifest.golden.file));
    const std::uint64_t steps = options.whole("steps", 1);
    const auto threads = static_cast<std::uint32_t>(options.whole("threads", 0));
    RoundWork work{options.whole("job-seed", 0),
                   options.whole("round", 0),
                   options.text("device", "device"),
                   rule_from(options),
                   std::nullopt,
                   std::nullopt};
    if (!options.text("mean-square").empty())
        work.mean_square = options.real("mean-square", 0);
    options.finish();

    const InitialAdapter initial(bundle);
    const float *theta = initial.data();
    std::optional<MappedFile> mapped;
    if (!adapter.empty()) {
        mapped.emplace(adapter, Code::bundle);
        if (mapped->size() != manifest.total_size() * sizeof(float))
            throw Error(Code::bundle,
                        adapter + " has " + std::to_string(mapped->size()) + " bytes, the layout needs " +
                            std::to_string(manifest.total_size() * sizeof(float)),
                        "use an adapter of this bundle");
        theta = reinterpret_cast<const float *>(mapped->data());
    }
    const TensorFile file(batches);
    std::uint64_t count = 0;
    while (file.tensors().count(std::to_string(count) + ".input_ids") != 0)
        count++;
    if (count == 0)
        batch_from(file, 0); // throws, and names the missing tensor
    const auto started = std::chrono::steady_clock::now();
    const std::unique_ptr<Engine> engine = executorch_engine(bundle, split, threads);
    const auto loaded = std::chrono::steady_clock::now();
    Round round(*engine, theta, work);
    std::vector<double> losses;
    for (std::uint64_t step = 0; step < steps; step++) {
        losses.push_back(round.step(batch_from(file, step % count)).loss);
        std::cerr << "step " << step + 1 << "/" << steps << ", loss " << losses.back() << "\n";
    }
    const auto done = std::chrono::steady_clock::now();
    std::vector<float> local(manifest.total_size());
    round.local_model(local.data());
    write_floats(scalars, round.scalars());
    write_floats(local_model, local);

    const auto seconds = [](auto duration) { return number(std::chrono::duration<double>(duration).count()); };
    std::string values;
    for (const float scalar : round.scalars())
        values += (values.empty() ? "[" : ", ") + number(static_cast<double>(scalar));
    Result result;
    result.add("adapter_sha256", quoted(sha256_hex(theta, manifest.total_size() * sizeof(float))));
    result.add("local_model_sha256", quoted(sha256_hex(local.data(), local.size() * sizeof(float))));
    result.add("loss", losses.empty() ? "null" : number(exact_sum(losses) / static_cast<double>(losses.size())));
    result.add("front_passes", std::to_string(round.front_passes()));
    result.add("back_passes", std::to_string(round.back_passes()));
    result.add("load_s", seconds(loaded - started));
    result.add("steps_s", seconds(done - loaded));
    result.add("scalars", values.empty() ? "[]" : values + "]");
    return result;
}

int fail(const std::string &what, const std::string &hint, int code, bool json)
{
    if (json)
        std::cout << "{\"error\": " << quoted(what) << ", \"hint\": " << quoted(hint) << ", \"exit_code\": " << code
                  << "}\n";
    std::cerr << "covey-core: " << what << "\n  what to do: " << hint << "\n";
    return code;
}

} // namespace

int main(int argc, char **argv)
{
    const std::map<std::string, std::function<Result(Options &)>> commands = {
        {"self-test", run_self_test}, {"verify", run_verify}, {"replay", run_replay}, {"step", run_step}};
    const std::string command = argc > 1 ? argv[1] : "";
    bool json = false;
    try {
        if (command == "--help" || command == "-h" || command == "help") {
            std::cout << usage;
            return 0;
        }
        Options options(argc, argv);
        json = options.choice("format", format_names, false);
        const auto found = commands.find(command);
        if (found == commands.end())
            misuse(command.empty() ? "no command" : "unknown command " + command);
        found->second(options).print(json);
        return 0;
    } catch (const Error &error) {
        return fail(error.what(), error.hint(), static_cast<int>(error.code()), json);
    } catch (const std::bad_alloc &) {
        return fail("out of memory", "use a smaller batch", 1, json);
    } catch (const std::exception &error) {
        return fail(error.what(), "please report this", static_cast<int>(Code::fault), json);
    }
}
