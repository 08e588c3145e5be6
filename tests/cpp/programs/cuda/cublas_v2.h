// The part of cuBLAS that is needed to compile the rope kernels on a machine with CUDA's compiler but not its libraries.
#pragma once

#include <cstddef>
#include <cuda_runtime.h>
#include <library_types.h>

typedef void * cublasHandle_t;
typedef int cublasStatus_t;
typedef int cublasMath_t;
enum { CUBLAS_STATUS_SUCCESS = 0, CUBLAS_TF32_TENSOR_OP_MATH = 3 };

inline const char * cublasGetStatusString(cublasStatus_t) { return ""; }
inline cublasStatus_t cublasCreate(cublasHandle_t *) { return 0; }
inline cublasStatus_t cublasDestroy(cublasHandle_t) { return 0; }
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) { return 0; }
inline cublasStatus_t cublasSetStream(cublasHandle_t, cudaStream_t) { return 0; }
inline cublasStatus_t cublasSetWorkspace(cublasHandle_t, void *, size_t) { return 0; }
