// Lets programs that run on different libraries take turns. benchmarks/paired.py writes a line to each in turn, and the
// program answers with one round of measurements.
#pragma once

#include <chrono>
#include <cstdio>
#include <functional>
#include <string>

inline double seconds_now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Prints one line of a round.
inline void report(const std::string & name, double value) {
    printf("%s\t%.9g\n", name.c_str(), value);
}

// Runs a round for each line of standard input. Returns after the last line, or when a round returns false: no more.
inline void take_turns(const std::function<bool()> & round) {
    bool goes_on = true;
    for (int c; goes_on && (c = getchar()) != EOF;) {
        if (c == '\n') {
            goes_on = round();
            printf("%s\n", goes_on ? "done" : "end");
            fflush(stdout);
        }
    }
}
