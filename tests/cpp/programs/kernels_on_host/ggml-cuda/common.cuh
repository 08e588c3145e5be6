// The part of CUDA and of ggml's common.cuh that is needed to run kernels on the host, one block at a time. The threads
// of a block are fibers. They take turns, and each runs to the next barrier.
#pragma once

#include "../intrinsics.h"

#include "ggml.h"

#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define __global__
#define __shared__
#define WARP_SIZE 32
#define CUDA_CHECK(call) (call)

struct dim3 {
    unsigned x, y, z;

    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

typedef _Float16 half;
typedef int cudaStream_t;
enum { cudaStreamNonBlocking, cudaMemcpyHostToDevice };

struct ggml_cuda_kernel_launch_params {
    dim3 grid;
    dim3 block;
    size_t n_shared;
    cudaStream_t stream;
};

struct ggml_backend_cuda_context {
    int device = 0;

    cudaStream_t stream() const {
        return 0;
    }
};

static int cudaStreamCreateWithFlags(cudaStream_t *, int) {
    return 0;
}

static int cudaStreamSynchronize(cudaStream_t) {
    return 0;
}

static int cudaStreamDestroy(cudaStream_t) {
    return 0;
}

template <typename T> static int cudaMalloc(T ** data, size_t size) {
    *data = (T *)malloc(size);
    return 0;
}

static int cudaMemcpyAsync(void * to, const void * from, size_t size, int, cudaStream_t) {
    memcpy(to, from, size);
    return 0;
}

// ---- threads ---------------------------------------------------------------------------------------

static dim3 threadIdx, blockIdx, blockDim, gridDim;
float rotations[4096]; // the shared memory of rope_rows

struct fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 << 10);
    bool is_done            = false;
};

static std::vector<fiber> fibers(1024);
static ucontext_t scheduler;
static size_t current;
static std::function<void()> body;

static void run_fiber() {
    body();
    fibers[current].is_done = true;
}

static void __syncthreads() {
    swapcontext(&fibers[current].context, &scheduler);
}

static void run_block(size_t n_threads) {
    for (size_t i = 0; i < n_threads; ++i) {
        fiber & f = fibers.at(i);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp   = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link          = &scheduler;
        f.is_done                  = false;
        makecontext(&f.context, run_fiber, 0);
    }
    for (bool is_running = true; is_running;) {
        is_running = false;
        for (current = 0; current < n_threads; ++current) {
            if (!fibers[current].is_done) {
                threadIdx  = dim3((unsigned)current % blockDim.x, (unsigned)current / blockDim.x, 0);
                is_running = true;
                swapcontext(&scheduler, &fibers[current].context);
            }
        }
    }
}

template <typename... Parameters, typename... Arguments>
static void ggml_cuda_kernel_launch(void (*kernel)(Parameters...), const ggml_cuda_kernel_launch_params & params,
                                    Arguments... arguments) {
    gridDim  = params.grid;
    blockDim = params.block;
    body     = [=] { kernel(arguments...); };
    GGML_ASSERT(params.n_shared <= sizeof(rotations));
    for (unsigned y = 0; y < gridDim.y; ++y) {
        for (unsigned x = 0; x < gridDim.x; ++x) {
            blockIdx = dim3(x, y, 0);
            run_block(blockDim.x * blockDim.y);
        }
    }
}

static void ggml_cuda_pdl_lc() {}

static void ggml_cuda_pdl_sync() {}

static float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}

static float warp_reduce_sum(float x) {
    static float values[1024];
    values[current] = x;
    __syncthreads();
    float sum = 0.0f;
    for (size_t lane = 0; lane < WARP_SIZE; ++lane) {
        sum += values[current / WARP_SIZE * WARP_SIZE + lane];
    }
    __syncthreads();
    return sum;
}

template <typename To, typename From> static To ggml_cuda_cast(From x) {
    return (To)x;
}
