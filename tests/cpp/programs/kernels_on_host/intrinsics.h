// Keywords and intrinsics of a CUDA device, on the host. They are exact, whatever flags the rest is compiled with.
#pragma once

#include <cmath>
#include <cstdint>

#define __CUDACC__
#define __CUDA_ARCH__ 900
#define __host__
#define __device__
#define EXACTLY __attribute__((noinline, optimize("no-fast-math", "fp-contract=off")))

EXACTLY static float __fadd_rn(float a, float b) {
    return a + b;
}

EXACTLY static float __fmul_rn(float a, float b) {
    return a * b;
}

EXACTLY static float __fdiv_rn(float a, float b) {
    return a / b;
}

EXACTLY static float __fmaf_rn(float a, float b, float c) {
    return std::fma(a, b, c);
}

EXACTLY static int32_t __float2int_rn(float a) {
    return a >= 2147483648.0f ? INT32_MAX : (int32_t)std::nearbyint(a); // saturates, as on a device
}

EXACTLY static uint32_t __umulhi(uint32_t a, uint32_t b) {
    return (uint32_t)(((uint64_t)a * b) >> 32);
}
