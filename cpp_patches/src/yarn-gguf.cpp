#include "yarn-gguf.h"

const char * yarn_gguf_patch_version(void) {
    return YARN_GGUF_VERSION;
}

const char * yarn_gguf_bindings_version(void) {
    return YARN_GGUF_BINDINGS_VERSION;
}
