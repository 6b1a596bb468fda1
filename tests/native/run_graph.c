/* Opens a .pte, runs it on inputs that follow a pattern, and prints each output's first values. .ci/aarch64 compares
 * them between processors; they differ only by the order of sums. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../edge_runtime/native/executorch/covey_executorch.h"

static int fail(int32_t code)
{
    fprintf(stderr, "%s: %s\n", covey_executorch_code_name(code), covey_executorch_error());
    return 1;
}

int main(int argc, char **argv)
{
    covey_executorch_graph *graph = NULL;
    int32_t code = argc == 2 ? covey_executorch_open_file(argv[1], &graph) : COVEY_EXECUTORCH_INVALID_ARGUMENT;
    if (code != 0) {
        return fail(code);
    }
    for (uint32_t index = 0; index < covey_executorch_inputs(graph); ++index) {
        covey_executorch_tensor info;
        if ((code = covey_executorch_input(graph, index, &info)) != 0) {
            return fail(code);
        }
        size_t count = 1;
        for (uint32_t axis = 0; axis < info.rank; ++axis) {
            count *= (size_t)info.sizes[axis];
        }
        if (info.dtype != COVEY_EXECUTORCH_FLOAT32) {
            fprintf(stderr, "input %u is not float32\n", index);
            return 1;
        }
        float *data = malloc(count * sizeof *data);
        if (data == NULL) {
            return 1;
        }
        for (size_t n = 0; n < count; ++n) {
            data[n] = (float)((n * 37 + index * 11) % 64) / 64.0F - 0.5F;
        }
        if ((code = covey_executorch_bind(graph, index, data, info.sizes, info.rank)) != 0) {
            return fail(code);
        }
    }
    if ((code = covey_executorch_run(graph)) != 0) {
        return fail(code);
    }
    for (uint32_t index = 0; index < covey_executorch_outputs(graph); ++index) {
        covey_executorch_tensor info;
        const void *data = NULL;
        if ((code = covey_executorch_output(graph, index, &info, &data)) != 0) {
            return fail(code);
        }
        for (int n = 0; n < 8; ++n) {
            printf("%.5f\n", (double)((const float *)data)[n]);
        }
    }
    covey_executorch_close(graph);
    return 0;
}
