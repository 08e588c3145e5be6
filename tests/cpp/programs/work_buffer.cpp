// Shows which allocator gives the CPU backend its work buffer, by replacing both allocators with our own. Prints the
// largest array from operator new[] and from ggml_aligned_malloc while graphs run, in bytes, and the address of the
// second modulo 64.
#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"

static bool is_counting     = false;
static size_t largest_array = 0;
static size_t largest_block = 0;
static uintptr_t at         = 0;

void * operator new[](size_t size) {
    largest_array = is_counting ? std::max(largest_array, size) : 0;
    return malloc(size);
}

void operator delete[](void * pointer) noexcept {
    free(pointer);
}

void operator delete[](void * pointer, size_t) noexcept {
    free(pointer);
}

extern "C" void * ggml_aligned_malloc(size_t size) {
    static const auto next = (void * (*)(size_t))dlsym(RTLD_NEXT, "ggml_aligned_malloc");
    void * pointer         = next(size);
    if (is_counting && size > largest_block) {
        largest_block = size;
        at            = (uintptr_t)pointer % 64;
    }
    return pointer;
}

// Runs flash attention, whose tiles lie in the work buffer, first over few keys, then over more.
int main() {
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, 2);
    for (const int64_t n_kv : {64, 1024}) {
        ggml_context * ctx  = ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true});
        ggml_tensor * q     = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 128, 256, 4);
        ggml_tensor * k     = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, 128, n_kv, 4);
        ggml_tensor * v     = ggml_new_tensor_3d(ctx, GGML_TYPE_F16, 128, n_kv, 4);
        ggml_tensor * out   = ggml_flash_attn_ext(ctx, q, k, v, nullptr, 1.0f, 0.0f, 0.0f);
        ggml_cgraph * graph = ggml_new_graph(ctx);
        ggml_build_forward_expand(graph, out);
        ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(ctx, backend);
        ggml_backend_buffer_clear(buffer, 0);
        is_counting            = true;
        const ggml_status done = ggml_backend_graph_compute(backend, graph);
        is_counting            = false;
        if (done != GGML_STATUS_SUCCESS) {
            return 1;
        }
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
    }
    ggml_backend_free(backend);
    printf("%zu %zu %zu\n", largest_array, largest_block, (size_t)at);
}
