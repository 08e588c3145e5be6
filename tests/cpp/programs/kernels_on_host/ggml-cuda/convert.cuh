// common.cuh has what ggml-rope-cuda.cu needs from this header.
#pragma once
