/* Covey's core for apps: bundles, forward-only steps and replay, in C, without Python.
 *
 * Its results have the same bits as the Python side's (edge_runtime/): the server accepts its scalars, and both sides
 * compute adapters with the same hash. The app provides the rows as tokens, MQTT and HTTP, and decides when to train;
 * docs/mobile.md shows how.
 *
 * Every function that can fail returns COVEY_OK or another covey_code, and fills *error unless error is NULL. No
 * exception crosses this interface. Texts are UTF-8 and end with a zero byte. Use an object from one thread at a time.
 * Two threads may use two objects, unless one object was made from the other. Functions without an error argument
 * need valid pointers, unless they say otherwise; every close function accepts NULL.
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

/* Changes whenever a function's arguments or a struct change. */
#define COVEY_ABI 1
COVEY_API uint32_t covey_abi(void);

/* The exit codes of Covey's commands (docs/configuration.md). */
enum covey_code {
    COVEY_OK = 0,
    COVEY_UNEXPECTED = 1, /* out of memory */
    COVEY_CONFIG = 3,     /* an invalid argument or rule */
    COVEY_DATA = 4,       /* a batch with a token that the model does not know */
    COVEY_BUNDLE = 5,     /* a bundle or an adapter: missing, altered, or of another version */
    COVEY_PROTOCOL = 6,   /* a replay log: broken, or of another version */
    COVEY_STORAGE = 8,    /* the disk is full, or a folder is not writable */
    COVEY_TRAINING = 9,   /* a loss is not finite, a replay does not reach its hash, or an engine failed */
    COVEY_FAULT = 70      /* a fault of Covey: please report it */
};

typedef struct {
    int32_t code;
    char what[512]; /* what was wrong, cut to this length */
    char hint[256]; /* what to do about it, cut to this length */
} covey_error;

/* Checks that perturbation, steps and replay give the pinned bits on this machine. Takes some milliseconds; call it
 * before an app trains for the first time. */
COVEY_API int32_t covey_self_test(covey_error *error);

/* ---- Bundles: docs/architecture.md ------------------------------------------------------------------------------ */

typedef struct covey_bundle covey_bundle;

/* Opens a bundle's folder and reads its manifest, but no other file. */
COVEY_API int32_t covey_bundle_open(const char *path, covey_bundle **bundle, covey_error *error);
COVEY_API void covey_bundle_close(covey_bundle *bundle);
/* Reads every file and compares it with its hash. Call it once, after fetching a bundle. */
COVEY_API int32_t covey_bundle_verify(const covey_bundle *bundle, covey_error *error);
/* Runs the golden vectors through ExecuTorch's graphs of every split. *difference (may be NULL) receives the largest
 * difference from PyTorch's results, absolute up to 1 and relative above. Fails where that is above the manifest's
 * tolerance. threads: see covey_engine_executorch. */
COVEY_API int32_t covey_bundle_check_golden(const covey_bundle *bundle, uint32_t threads, double *difference,
                                            covey_error *error);
/* The SHA-256 of the manifest, by which plans name the bundle. Valid while the bundle is open. */
COVEY_API const char *covey_bundle_sha256(const covey_bundle *bundle);
/* The length of the trainable vector, in parameters. */
COVEY_API uint64_t covey_bundle_parameters(const covey_bundle *bundle);

/* ---- Adapters: float32, little-endian, one value per trainable parameter ---------------------------------------- */

typedef struct covey_adapter covey_adapter;

/* Maps an adapter's file, or, where path is NULL, the bundle's initial adapter. Checks its length, and that all values
 * are finite. Close the adapter before the bundle. */
COVEY_API int32_t covey_adapter_open(const covey_bundle *bundle, const char *path, covey_adapter **adapter,
                                     covey_error *error);
COVEY_API void covey_adapter_close(covey_adapter *adapter);
COVEY_API const float *covey_adapter_data(const covey_adapter *adapter); /* covey_bundle_parameters values */
/* The SHA-256 of the adapter's bytes, computed from them: adapter_sha256 of a report. */
COVEY_API const char *covey_adapter_sha256(const covey_adapter *adapter);

/* ---- Engines ----------------------------------------------------------------------------------------------------- */

/* Rows of tokens, padded on the right to the longest row. The core does not copy the arrays. */
typedef struct {
    int64_t rows, tokens;
    int64_t chunks, chunk;         /* for causal-lm; otherwise 0 */
    const int64_t *input_ids;      /* (rows, tokens) */
    const int64_t *attention_mask; /* (rows, tokens): 1 for a real token, 0 for padding */
    const int64_t *labels;         /* (rows,): index of each row's label; causal-lm: (chunks, chunk), -100: ignored */
    const int64_t *positions;      /* causal-lm: (chunks, chunk), row * tokens + place in the row; otherwise NULL */
} covey_batch;

typedef struct covey_engine covey_engine;

/* An engine of the app, for example over Core ML or ONNX Runtime. A callback returns 0, or another number to end the
 * step with an error. Each block runs with the parameters that are in its workspace at that time; the two workspaces
 * may share memory. */
typedef struct {
    void *context;                           /* the first argument of each callback */
    uint64_t front_size, back_size;          /* numbers of parameters of the blocks; the front may have 0 */
    float *front_workspace, *back_workspace; /* the core writes them before each run */
    /* Runs the front block. *boundary receives its output, which must stay valid until drop. */
    int32_t (*front)(void *context, const covey_batch *batch, void **boundary);
    /* Runs the back block. *loss receives the mean over the batch's rows, for causal-lm over its completion tokens. */
    int32_t (*back)(void *context, void *boundary, const covey_batch *batch, double *loss);
    /* Frees a boundary. Called once for each front that returned 0. */
    void (*drop)(void *context, void *boundary);
} covey_callbacks;

COVEY_API int32_t covey_engine_callbacks(const covey_callbacks *callbacks, covey_engine **engine, covey_error *error);
/* Opens the graphs of one of the bundle's splits on ExecuTorch: maps the weights and checks each graph's hash. Close
 * the engine before the bundle. threads: the number of threads of one operator, for the whole process; 0: one per fast
 * core. Fails with COVEY_CONFIG where the library was built without ExecuTorch. */
COVEY_API int32_t covey_engine_executorch(const covey_bundle *bundle, int64_t split, uint32_t threads,
                                          covey_engine **engine, covey_error *error);
COVEY_API void covey_engine_close(covey_engine *engine);

/* ---- A round ----------------------------------------------------------------------------------------------------- */

enum covey_variant { COVEY_NESTED = 0, COVEY_CLEAN = 1 };
enum covey_difference { COVEY_CENTRAL = 0, COVEY_FORWARD = 1 };
enum covey_normalize { COVEY_NORMALIZE_NONE = 0, COVEY_NORMALIZE_RMS = 1, COVEY_NORMALIZE_STD = 2 };

/* A plan's rule: docs/configuration.md, [step], describes its fields. */
typedef struct {
    int32_t variant, difference, normalize;
    uint32_t front_perturbations, back_perturbations; /* 1 ... 256 */
    double eps, learning_rate;
    int32_t leave_one_out, shared_directions; /* 0 or 1 */
    uint32_t seed_pool;                       /* 0: no pool */
} covey_rule;

COVEY_API covey_rule covey_rule_default(void);
/* Returns the number of scalars that one step reports: front_perturbations x back_perturbations or, for COVEY_CLEAN,
 * their sum. Returns 0 for NULL and for a rule that covey_round_open would refuse. */
COVEY_API uint64_t covey_rule_scalars_per_step(const covey_rule *rule);

typedef struct covey_round covey_round;

typedef struct {
    uint64_t job_seed, round; /* from the plan */
    const char *device;       /* the name under which the device is enrolled */
    covey_rule rule;
    double mean_square;            /* from the plan; negative where the plan has none */
    double clip, noise_multiplier; /* from the plan's privacy settings; clip is 0 where it has none */
} covey_work;

/* Neither copies nor changes theta (covey_adapter_data). Close the round before the adapter and the engine. */
COVEY_API int32_t covey_round_open(covey_engine *engine, const float *theta, const covey_work *work,
                                   covey_round **round, covey_error *error);
COVEY_API void covey_round_close(covey_round *round);
/* Runs one local step on one batch. *loss (may be NULL) receives the mean of the step's losses; do not report it where
 * the plan has privacy settings. An error leaves the round as it was before the step. */
COVEY_API int32_t covey_round_step(covey_round *round, const covey_batch *batch, double *loss, covey_error *error);
/* The scalars of all steps so far: *count float32 values, the `scalars` of a report. Valid until the next step. */
COVEY_API const float *covey_round_scalars(const covey_round *round, uint64_t *count);
COVEY_API void covey_round_passes(const covey_round *round, uint64_t *front_passes, uint64_t *back_passes);
/* Writes the local model to out, front_size + back_size floats; out must not be theta. */
COVEY_API void covey_round_local_model(const covey_round *round, float *out);

/* ---- Replay ------------------------------------------------------------------------------------------------------ */

/* Replays a chain of logs (the bytes of the plan's adapter.log) from one adapter file to a new one, with 4 MiB of it in
 * memory at a time. Renames the new file to `out` only after its hash was found to be the last log's.
 *
 * adapter: the file to start from. previous: the file of the adapter before it, needed where the first log has
 * momentum; otherwise NULL. before: the file for the adapter before the last round; NULL: it is not kept. sha256:
 * receives the new adapter's hash, 65 characters with the final zero; may be NULL. */
COVEY_API int32_t covey_replay(const void *log, size_t size, const char *adapter, const char *previous, const char *out,
                               const char *before, char *sha256, covey_error *error);

#ifdef __cplusplus
}
#endif

#endif
