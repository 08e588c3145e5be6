# Reads the pin and fetches the llama.cpp tree that it names.

# Sets PIN_<key> in the caller for each line key=value of the file.
function(yarn_gguf_read_pin file)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
    file(STRINGS "${file}" lines REGEX "^[a-z0-9_]+=")
    foreach(line IN LISTS lines)
        string(REGEX MATCH "^([a-z0-9_]+)=(.*)$" _ "${line}")
        set(PIN_${CMAKE_MATCH_1} "${CMAKE_MATCH_2}" PARENT_SCOPE)
    endforeach()
endfunction()

# Downloads the pinned sdist with pip, by name and hash, and unpacks the parts of its llama.cpp that a build
# needs. Sets <result> to the folder of that llama.cpp. All build folders share one download.
function(yarn_gguf_fetch_llama_cpp result)
    set(download "${CMAKE_CURRENT_SOURCE_DIR}/build/download")
    set(sdist "${download}/llama_cpp_python-${PIN_version}.tar.gz")
    set(tree "${download}/llama_cpp_python-${PIN_version}/vendor/llama.cpp")
    set(stamp "${download}/${PIN_sdist_sha256}")
    set(${result} "${tree}" PARENT_SCOPE)
    if(EXISTS "${stamp}")
        return()
    endif()

    find_package(Python REQUIRED COMPONENTS Interpreter)
    message(STATUS "Fetching ${PIN_package} ${PIN_version} for its llama.cpp")
    file(WRITE "${download}/requirements.txt" "${PIN_package}==${PIN_version} --hash=sha256:${PIN_sdist_sha256}\n")
    execute_process(
        COMMAND "${Python_EXECUTABLE}" -m pip download --quiet --no-deps --no-binary ${PIN_package}
            --require-hashes --requirement "${download}/requirements.txt" --dest "${download}"
        RESULT_VARIABLE failed)
    if(failed OR NOT EXISTS "${sdist}")
        message(FATAL_ERROR
            "pip could not fetch the source of ${PIN_package} ${PIN_version} (see above). Without a network, "
            "give the tree yourself: -DLLAMA_CPP_SOURCE_DIR=/path/to/llama.cpp")
    endif()
    set(vendored "*/vendor/llama.cpp")
    file(ARCHIVE_EXTRACT INPUT "${sdist}" DESTINATION "${download}" PATTERNS
        "${vendored}/CMakeLists.txt" "${vendored}/LICENSE" "${vendored}/cmake/*" "${vendored}/common/*"
        "${vendored}/ggml/*" "${vendored}/include/*" "${vendored}/src/*" "${vendored}/tests/*" "${vendored}/vendor/*")
    file(TOUCH "${stamp}")
endfunction()
