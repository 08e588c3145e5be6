# Makes the patched llama.cpp tree of a build folder.

# Copies <pristine> to <patched> and applies the series there, with zero fuzz. Does nothing if the pin, the
# tree, the series and the patches have not changed. Otherwise a file whose content stays the same keeps its
# time stamp, so that a changed patch recompiles only the files that it touches. Never writes to <pristine>.
# Sets YARN_GGUF_BINDINGS_VERSION in the caller.
function(yarn_gguf_apply_series pristine patched)
    set(folder "${CMAKE_CURRENT_SOURCE_DIR}/cpp_patches")
    _yarn_gguf_bindings_version("${pristine}")
    set(YARN_GGUF_BINDINGS_VERSION "${YARN_GGUF_BINDINGS_VERSION}" PARENT_SCOPE)

    file(STRINGS "${folder}/series" names REGEX "^[^#]")
    if(NOT YARN_GGUF_PATCHED)
        set(names "")
    endif()
    list(TRANSFORM names PREPEND "${folder}/patches/" OUTPUT_VARIABLE patches)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${folder}/series" ${patches})

    set(identity "${pristine} ${PIN_sdist_sha256}")
    foreach(patch IN LISTS patches)
        file(SHA256 "${patch}" hash)
        string(APPEND identity " ${hash}")
    endforeach()
    set(stamp "${patched}.stamp")
    if(EXISTS "${stamp}")
        file(READ "${stamp}" previous)
        if(previous STREQUAL identity)
            return()
        endif()
    endif()

    set(scratch "${patched}.new")
    file(REMOVE_RECURSE "${scratch}")
    file(COPY "${pristine}/" DESTINATION "${scratch}" PATTERN ".git" EXCLUDE PATTERN "build" EXCLUDE)
    foreach(patch IN LISTS patches)
        _yarn_gguf_apply("${patch}" "${scratch}")
    endforeach()
    _yarn_gguf_mirror("${scratch}" "${patched}")
    file(REMOVE_RECURSE "${scratch}")
    file(WRITE "${stamp}" "${identity}")
    list(LENGTH patches count)
    message(STATUS "Applied ${count} patches to llama.cpp")
endfunction()

# Sets YARN_GGUF_BINDINGS_VERSION in the caller: the bindings fit a tree whose llama.h is the pinned one.
function(_yarn_gguf_bindings_version pristine)
    if(NOT EXISTS "${pristine}/include/llama.h")
        message(FATAL_ERROR "${pristine} is not a llama.cpp tree: it has no include/llama.h")
    endif()
    file(SHA256 "${pristine}/include/llama.h" hash)
    set(YARN_GGUF_BINDINGS_VERSION "unknown" PARENT_SCOPE)
    if(hash STREQUAL PIN_llama_h_sha256)
        set(YARN_GGUF_BINDINGS_VERSION "${PIN_version}" PARENT_SCOPE)
    else()
        message(WARNING "The C API of ${pristine} is not that of ${PIN_package} ${PIN_version}: "
            "yarn_gguf will refuse to load the library")
    endif()
endfunction()

function(_yarn_gguf_apply patch tree)
    find_program(GIT git REQUIRED)
    get_filename_component(parent "${tree}" DIRECTORY)
    # Without a ceiling, git takes the tree for a part of the repository around it, and skips every file.
    execute_process(
        COMMAND ${CMAKE_COMMAND} -E env "GIT_CEILING_DIRECTORIES=${parent}" "${GIT}" apply --verbose "${patch}"
        WORKING_DIRECTORY "${tree}" RESULT_VARIABLE failed ERROR_VARIABLE reason OUTPUT_QUIET)
    if(failed)
        get_filename_component(name "${patch}" NAME)
        message(FATAL_ERROR "The patch ${name} does not apply to this llama.cpp:\n${reason}"
            "cpp_patches/README.md says how to refresh the series.")
    endif()
endfunction()

# Makes the folder <to> equal to <from>. Does not write to files that are equal already.
function(_yarn_gguf_mirror from to)
    file(GLOB_RECURSE wanted RELATIVE "${from}" "${from}/*")
    file(GLOB_RECURSE present RELATIVE "${to}" "${to}/*")
    list(APPEND present "") # REMOVE_ITEM wants a list
    list(REMOVE_ITEM present ${wanted} "")
    foreach(name IN LISTS present)
        file(REMOVE "${to}/${name}")
    endforeach()
    foreach(name IN LISTS wanted)
        get_filename_component(folder "${to}/${name}" DIRECTORY)
        file(MAKE_DIRECTORY "${folder}")
        file(COPY_FILE "${from}/${name}" "${to}/${name}" ONLY_IF_DIFFERENT)
    endforeach()
endfunction()
