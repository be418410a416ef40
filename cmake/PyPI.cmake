# calandra_pypi_source(NAME VERSION OUT): sets OUT to the unpacked source distribution NAME-VERSION. It is fetched once for all
# presets into build/pypi, by the hash in cmake/pypi-sources.txt, which pip checks before it opens the archive, and patched by
# cmake/patches/NAME-VERSION.patch.
function(calandra_pypi_source name version out)
  set(folder ${PROJECT_SOURCE_DIR}/build/pypi)
  set(source ${folder}/${name}-${version})
  set(patch ${PROJECT_SOURCE_DIR}/cmake/patches/${name}-${version}.patch)
  set(${out} ${source} PARENT_SCOPE)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${patch})
  file(SHA256 ${patch} hash)
  set(applied ${source}/patched-${hash})
  if(EXISTS ${applied})
    return()
  endif()
  message(STATUS "Fetching ${name} ${version}")
  file(STRINGS ${PROJECT_SOURCE_DIR}/cmake/pypi-sources.txt line REGEX "^${name}==")
  string(RANDOM LENGTH 8 suffix)
  set(fresh ${folder}/fresh-${suffix})
  file(MAKE_DIRECTORY ${fresh})
  file(WRITE ${fresh}/requirements.txt "${line}\n")
  find_program(CALANDRA_PYTHON3 python3 REQUIRED)
  execute_process(
    COMMAND ${CALANDRA_PYTHON3} -m pip download -q --disable-pip-version-check --no-deps --no-binary=${name} --require-hashes
            -r ${fresh}/requirements.txt -d ${fresh}
    RESULT_VARIABLE failed ERROR_VARIABLE why OUTPUT_VARIABLE why)
  if(failed)
    file(REMOVE_RECURSE ${fresh})
    message(FATAL_ERROR "${name} ${version} could not be fetched from the Python package index; on a machine without it, unpack "
                        "the source distribution to ${source}, apply ${patch}, and make the file ${applied}. pip said:\n${why}")
  endif()
  file(ARCHIVE_EXTRACT INPUT ${fresh}/${name}-${version}.tar.gz DESTINATION ${fresh})
  execute_process(COMMAND patch -s -p1 -i ${patch} WORKING_DIRECTORY ${fresh}/${name}-${version} COMMAND_ERROR_IS_FATAL ANY)
  file(REMOVE_RECURSE ${source})
  file(RENAME ${fresh}/${name}-${version} ${source})
  file(TOUCH ${applied})
  file(REMOVE_RECURSE ${fresh})
endfunction()
