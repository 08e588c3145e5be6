// A check of values that a caller gave.
#pragma once

#include <stdexcept>

// Throws std::invalid_argument, whose text is `reason`, unless the condition holds.
inline void require(bool holds, const char * reason) {
    if (!holds) {
        throw std::invalid_argument(reason);
    }
}
