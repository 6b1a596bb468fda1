/* A C interface over ExecuTorch's Module: open a graph (.pte), bind inputs where they lie, run, read outputs.
 *
 * Used from Python by ctypes (edge_runtime/engines/executorch_library.py) and linked by apps. Plain C11; the
 * implementation, covey_executorch.cpp, needs the C++ parts of ExecuTorch's wheel, and no torch.
 *
 * Every function that can fail returns a code: 0, one of ExecuTorch's (executorch/runtime/core/error.h), or one of
 * those below; covey_executorch_error() then says what happened on this thread. A graph is used by one thread at a
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
    /* A wrong argument, found before ExecuTorch was asked; also ExecuTorch's own code for such. */
    COVEY_EXECUTORCH_INVALID_ARGUMENT = 0x12,
    /* ExecuTorch wanted to end the process; instead the graph can be used no more, only closed. */
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
    /* Inputs, and outputs before a run: the largest sizes allowed. Outputs after a run: their sizes. */
    int64_t sizes[COVEY_EXECUTORCH_MAX_RANK];
} covey_executorch_tensor;

/* level: D, I, E or F. Called on whichever thread logs. */
typedef void (*covey_executorch_log)(char level, const char *where, const char *message);

/* COVEY_EXECUTORCH_ABI of the library, to compare with the header's. */
uint32_t covey_executorch_abi(void);

/* Where ExecuTorch's log lines go; NULL drops them. Before this is called they are dropped, too. */
void covey_executorch_set_log(covey_executorch_log log);

/* What the last failed call on this thread was about: never NULL, valid until the thread's next call. */
const char *covey_executorch_error(void);

/* The name of a code, as in "InvalidProgram". */
const char *covey_executorch_code_name(int32_t code);

/* Threads of one operator, for the whole process; 0: one for each fast core. Fails while graphs are open, as they hold
 * on to the threads they were opened with, unless the number stays what it is. */
int32_t covey_executorch_set_threads(uint32_t threads);
uint32_t covey_executorch_threads(void);

/* Whether a delegate, as "XnnpackBackend", is there: 1 or 0. */
int32_t covey_executorch_has_backend(const char *name);

/* Open a graph: its one method, "forward". Check its hash first: ExecuTorch trusts what it is given.
 *
 * open_file maps the file. open_bytes takes bytes that stay where they are, aligned to 16, until the graph is closed.
 */
int32_t covey_executorch_open_file(const char *path, covey_executorch_graph **graph);
int32_t covey_executorch_open_bytes(const void *data, size_t size, covey_executorch_graph **graph);
void covey_executorch_close(covey_executorch_graph *graph);

uint32_t covey_executorch_inputs(const covey_executorch_graph *graph);
uint32_t covey_executorch_outputs(const covey_executorch_graph *graph);
int32_t covey_executorch_input(const covey_executorch_graph *graph, uint32_t index, covey_executorch_tensor *tensor);

/* Bind an input to memory: read in every run from now on, not copied, contiguous (row-major) and of the input's element
 * type. It must stay there until another is bound or the graph is closed. Sizes may differ from run to run where the
 * graph's are dynamic. */
int32_t covey_executorch_bind(covey_executorch_graph *graph, uint32_t index, const void *data, const int64_t *sizes,
                              uint32_t rank);

/* Run the graph; every input must have been bound. */
int32_t covey_executorch_run(covey_executorch_graph *graph);

/* An output of the last run; data is the graph's own, and valid until its next run or its end. */
int32_t covey_executorch_output(const covey_executorch_graph *graph, uint32_t index, covey_executorch_tensor *tensor,
                                const void **data);

#ifdef __cplusplus
}
#endif
#endif
