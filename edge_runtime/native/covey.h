/* Covey's core for apps: bundles, forward-only steps and replay, in C, without Python.
 *
 * It gives the bits of the Python side (edge_runtime/), so the server takes its scalars and both end on adapters of the
 * same hash. The app brings what is its own: rows as tokens, MQTT, HTTP, and when to train; docs/mobile.md shows how.
 *
 * Every function that can fail returns COVEY_OK or a covey_code and then fills *error, which may be NULL. No exception
 * crosses this interface. Texts are UTF-8, ended by a zero. An object is used by one thread at a time; two objects may
 * be used by two threads, unless one was made from the other.
 */
#ifndef COVEY_H
#define COVEY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define COVEY_API __attribute__((visibility("default")))
#else
#define COVEY_API
#endif

/* Changes when a function's arguments or a struct do. */
#define COVEY_ABI 1
COVEY_API uint32_t covey_abi(void);

/* The exit codes of Covey's commands (docs/configuration.md). */
enum covey_code {
    COVEY_OK = 0,
    COVEY_UNEXPECTED = 1, /* out of memory, or a fault of ours */
    COVEY_CONFIG = 3,     /* an argument, or a rule that cannot be */
    COVEY_DATA = 4,       /* a batch with a token that the model does not have */
    COVEY_BUNDLE = 5,     /* a bundle or an adapter: missing, altered, of another version */
    COVEY_PROTOCOL = 6,   /* a replay log that is broken or of another version */
    COVEY_STORAGE = 8,    /* disk full, not writable */
    COVEY_TRAINING = 9    /* a loss that is not finite, a replay that does not end on its hash, an engine that failed */
};

typedef struct {
    int32_t code;
    char what[512]; /* what was wrong; cut where it is longer */
    char hint[256]; /* what to do about it */
} covey_error;

/* Checks on this machine that perturbation, steps and replay give the pinned bits; some milliseconds. Worth a call
 * before an app's first training. */
COVEY_API int32_t covey_self_test(covey_error *error);

/* ---- Bundles: docs/architecture.md ------------------------------------------------------------------------------ */

typedef struct covey_bundle covey_bundle;

/* Opens a bundle's folder; reads its manifest alone. */
COVEY_API int32_t covey_bundle_open(const char *path, covey_bundle **bundle, covey_error *error);
COVEY_API void covey_bundle_close(covey_bundle *bundle);
/* Reads every file and compares it with its hash; an app does this once, when it has fetched a bundle. */
COVEY_API int32_t covey_bundle_verify(const covey_bundle *bundle, covey_error *error);
/* Runs the golden vectors through ExecuTorch's graphs of every split; *difference is the largest from PyTorch,
 * absolute up to 1 and relative above. Fails where it is above the manifest's tolerance. threads: see
 * covey_engine_executorch. */
COVEY_API int32_t covey_bundle_check_golden(const covey_bundle *bundle, uint32_t threads, double *difference,
                                            covey_error *error);
/* SHA-256 of the manifest: the bundle's name in plans. Valid as long as the bundle is open. */
COVEY_API const char *covey_bundle_sha256(const covey_bundle *bundle);
/* Length of the trainable vector, in parameters. */
COVEY_API uint64_t covey_bundle_parameters(const covey_bundle *bundle);

/* ---- Adapters: float32, little-endian, one value a trainable parameter ------------------------------------------ */

typedef struct covey_adapter covey_adapter;

/* Maps an adapter's file; path NULL gives the one that the bundle starts from. Its length, and that all values are
 * finite, are checked. Keep the bundle open as long as the adapter. */
COVEY_API int32_t covey_adapter_open(const covey_bundle *bundle, const char *path, covey_adapter **adapter,
                                     covey_error *error);
COVEY_API void covey_adapter_close(covey_adapter *adapter);
COVEY_API const float *covey_adapter_data(const covey_adapter *adapter); /* covey_bundle_parameters values */
/* SHA-256 of its bytes, computed from them: what a report calls adapter_sha256. */
COVEY_API const char *covey_adapter_sha256(const covey_adapter *adapter);

/* ---- Engines ----------------------------------------------------------------------------------------------------- */

/* Rows of tokens, padded on the right to the longest of them; nothing is copied. */
typedef struct {
    int64_t rows, tokens;
    int64_t chunks, chunk;         /* causal-lm; else 0 */
    const int64_t *input_ids;      /* (rows, tokens) */
    const int64_t *attention_mask; /* (rows, tokens): 1 for a real token */
    const int64_t *labels;         /* (rows,): index of each row's label; causal-lm: (chunks, chunk), -100 to ignore */
    const int64_t *positions;      /* causal-lm: (chunks, chunk), row * tokens + place in the row; else NULL */
} covey_batch;

typedef struct covey_engine covey_engine;

/* An engine of the app's own, as one over Core ML or ONNX Runtime. A callback returns 0, or another number to end the
 * step. Each block is run at the parameters that lie in its workspace at that time; the two may share memory. */
typedef struct {
    void *context;                           /* first argument of each callback */
    uint64_t front_size, back_size;          /* parameters of the two blocks; a front may have none */
    float *front_workspace, *back_workspace; /* written before each run */
    /* Runs the front block; *boundary is what crosses the cut, valid until drop. */
    int32_t (*front)(void *context, const covey_batch *batch, void **boundary);
    /* Runs the back block; *loss is the mean over the batch's rows, for causal-lm over its completion tokens. */
    int32_t (*back)(void *context, void *boundary, const covey_batch *batch, double *loss);
    void (*drop)(void *context, void *boundary);
} covey_callbacks;

COVEY_API int32_t covey_engine_callbacks(const covey_callbacks *callbacks, covey_engine **engine, covey_error *error);
/* ExecuTorch, at one of the bundle's splits; weights are mapped, graphs checked against their hashes. Keep the bundle
 * open as long as the engine. threads: of one operator, for the whole process; 0 for one each fast core. Fails with
 * COVEY_CONFIG where the library was built without ExecuTorch. */
COVEY_API int32_t covey_engine_executorch(const covey_bundle *bundle, int64_t split, uint32_t threads,
                                          covey_engine **engine, covey_error *error);
COVEY_API void covey_engine_close(covey_engine *engine);

/* ---- A round ----------------------------------------------------------------------------------------------------- */

enum covey_variant { COVEY_NESTED = 0, COVEY_CLEAN = 1 };
enum covey_difference { COVEY_CENTRAL = 0, COVEY_FORWARD = 1 };
enum covey_normalize { COVEY_NORMALIZE_NONE = 0, COVEY_NORMALIZE_RMS = 1, COVEY_NORMALIZE_STD = 2 };

/* A plan's rule: docs/configuration.md, [step]. */
typedef struct {
    int32_t variant, difference, normalize;
    uint32_t front_perturbations, back_perturbations; /* 1 ... 256 */
    double eps, learning_rate;
    int32_t leave_one_out, shared_directions; /* 0 or 1 */
    uint32_t seed_pool;                       /* 0: none */
} covey_rule;

COVEY_API covey_rule covey_rule_default(void);
/* Returns the number of scalars that one step reports: front_perturbations x back_perturbations or, for COVEY_CLEAN,
 * their sum. Returns 0 for NULL and for a rule that covey_round_open would refuse. */
COVEY_API uint64_t covey_rule_scalars_per_step(const covey_rule *rule);

typedef struct covey_round covey_round;

typedef struct {
    uint64_t job_seed, round; /* the plan's */
    const char *device;       /* the name with which the device is enrolled */
    covey_rule rule;
    double mean_square;            /* the plan's; below 0 where the plan has none */
    double clip, noise_multiplier; /* the plan's privacy; clip 0 where it has none */
} covey_work;

/* theta (covey_adapter_data) is not copied and not changed; it and the engine must stay until the round is closed. */
COVEY_API int32_t covey_round_open(covey_engine *engine, const float *theta, const covey_work *work,
                                   covey_round **round, covey_error *error);
COVEY_API void covey_round_close(covey_round *round);
/* One local step on one batch. *loss (may be NULL) is the mean of all losses seen; do not report it where the plan has
 * privacy. After an error the round stays as it was before the step. */
COVEY_API int32_t covey_round_step(covey_round *round, const covey_batch *batch, double *loss, covey_error *error);
/* The scalars of all steps so far, *count float32 values: the report's `scalars`. Valid until the next step. */
COVEY_API const float *covey_round_scalars(const covey_round *round, uint64_t *count);
COVEY_API void covey_round_passes(const covey_round *round, uint64_t *front_passes, uint64_t *back_passes);
/* Writes the local model, front_size + back_size floats; may not be theta. */
COVEY_API void covey_round_local_model(const covey_round *round, float *out);

/* ---- Replay ------------------------------------------------------------------------------------------------------ */

/* Follows a chain of replay logs (the bytes of the plan's adapter.log) from one adapter file to a new one, 4 MiB in
 * memory at a time. The new file appears by a rename, only after its hash was the log's.
 *
 * previous: the adapter before `adapter`, where the first log has momentum; else NULL. before: where the adapter before
 * the last round goes; NULL: it is not kept. sha256: 65 characters, the new adapter's hash; may be NULL. */
COVEY_API int32_t covey_replay(const void *log, size_t size, const char *adapter, const char *previous, const char *out,
                               const char *before, char *sha256, covey_error *error);

#ifdef __cplusplus
}
#endif

#endif
