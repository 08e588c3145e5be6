"""The types that llama.cpp's tools allow for a KV cache. Loads nothing of the native library."""

# name: number in enum ggml_type (ggml.h); the most precise first
CACHE_TYPES = {
    "f32": 0,
    "f16": 1,
    "bf16": 30,
    "q8_0": 8,
    "q5_1": 7,
    "q5_0": 6,
    "q4_1": 3,
    "q4_0": 2,
    "iq4_nl": 20,
}
