// What ggml-rope-cuda.cu takes of it is in common.cuh.
#pragma once
