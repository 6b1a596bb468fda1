/* A C interface over ExecuTorch's Module: open a graph (.pte), bind inputs where they lie, run, read outputs.
 *
 * Python calls it through ctypes (edge_runtime/engines/executorch_library.py); apps link it. The header is plain C11;
 * the implementation, covey_executorch.cpp, needs the C++ parts of ExecuTorch's wheel, but not torch.
 *
 * Every function that can fail returns a code: 0, one of ExecuTorch's (executorch/runtime/core/error.h), or one of
 * those below. covey_executorch_error() then tells what went wrong on this thread. Use a graph from one thread at a
 * time.
 */
#ifndef COVEY_EXECUTORCH_H
#define COVEY_EXECUTORCH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COVEY_EXECUTORCH_ABI 1
#define COVEY_EXECUTORCH_MAX_RANK 16

enum covey_executorch_code {
    COVEY_EXECUTORCH_OK = 0,
    /* A wrong argument, found before ExecuTorch was called; ExecuTorch has the same code for wrong arguments. */
    COVEY_EXECUTORCH_INVALID_ARGUMENT = 0x12,
    /* ExecuTorch asked to end the process. The graph can only be closed after that. */
    COVEY_EXECUTORCH_ABORTED = 1000
};

/* Element types, as ExecuTorch numbers them. */
enum covey_executorch_dtype {
    COVEY_EXECUTORCH_INT32 = 3,
    COVEY_EXECUTORCH_INT64 = 4,
    COVEY_EXECUTORCH_FLOAT32 = 6,
    COVEY_EXECUTORCH_BOOL = 11
};

typedef struct covey_executorch_graph covey_executorch_graph;

typedef struct {
    int32_t dtype;
    uint32_t rank;
    /* For inputs the largest sizes allowed, for outputs the sizes that the last run gave. */
    int64_t sizes[COVEY_EXECUTORCH_MAX_RANK];
} covey_executorch_tensor;

/* level: D, I, E or F. Called on the thread that logs. */
typedef void (*covey_executorch_log)(char level, const char *where, const char *message);

/* COVEY_EXECUTORCH_ABI of the library; compare it with the header's. */
uint32_t covey_executorch_abi(void);

/* Sets the function that receives ExecuTorch's log lines; NULL, as at the start, drops them. */
void covey_executorch_set_log(covey_executorch_log log);

/* Tells why the last call on this thread failed. Never NULL; valid until the thread's next call. */
const char *covey_executorch_error(void);

/* The name of a code, for example "InvalidProgram". */
const char *covey_executorch_code_name(int32_t code);

/* Sets the number of threads of one operator, for the whole process; 0: one per fast core. Fails where the number would
 * change while graphs are open, because they keep using the threads they were opened with. */
int32_t covey_executorch_set_threads(uint32_t threads);
uint32_t covey_executorch_threads(void);

/* Returns 1 where the library has a delegate, for example "XnnpackBackend", otherwise 0. */
int32_t covey_executorch_has_backend(const char *name);

/* Opens a graph with its one method, "forward". Check its hash first: ExecuTorch trusts what it is given.
 *
 * open_file maps the file. open_bytes takes bytes that are aligned to 16 and stay unchanged until the graph is closed.
 */
int32_t covey_executorch_open_file(const char *path, covey_executorch_graph **graph);
int32_t covey_executorch_open_bytes(const void *data, size_t size, covey_executorch_graph **graph);
void covey_executorch_close(covey_executorch_graph *graph);

uint32_t covey_executorch_inputs(const covey_executorch_graph *graph);
uint32_t covey_executorch_outputs(const covey_executorch_graph *graph);
int32_t covey_executorch_input(const covey_executorch_graph *graph, uint32_t index, covey_executorch_tensor *tensor);

/* Binds an input to memory that every run reads from now on. The memory is not copied; it must be contiguous
 * (row-major), have the input's element type, and stay valid until the input is bound again or the graph is closed.
 * Where the graph's sizes are dynamic, sizes may differ from run to run. */
int32_t covey_executorch_bind(covey_executorch_graph *graph, uint32_t index, const void *data, const int64_t *sizes,
                              uint32_t rank);

/* Runs the graph; every input must be bound. */
int32_t covey_executorch_run(covey_executorch_graph *graph);

/* Returns an output of the last run. *data belongs to the graph; it is valid until the next run or the graph's close.
 */
int32_t covey_executorch_output(const covey_executorch_graph *graph, uint32_t index, covey_executorch_tensor *tensor,
                                const void **data);

#ifdef __cplusplus
}
#endif
#endif
