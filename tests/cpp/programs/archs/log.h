#pragma once

#include <cstdio>

#define LOG(...) printf(__VA_ARGS__)
#define LOG_INF(...) printf(__VA_ARGS__)
#define LOG_ERR(...) printf(__VA_ARGS__)

enum { LOG_LEVEL_DEBUG, LOG_LEVEL_ERROR };

inline void common_log_set_verbosity_thold(int) {
}
inline int common_log_get_verbosity(int) {
    return 0;
}
inline void * common_log_main() {
    return nullptr;
}
inline void common_log_flush(void *) {
}
