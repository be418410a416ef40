# calandra_pypi_source(NAME VERSION OUT): sets OUT to the unpacked source distribution NAME-VERSION. It is fetched once for all
# presets into build/pypi, by the hash in cmake/pypi-sources.txt, which pip checks before it opens the archive.
function(calandra_pypi_source name version out)
  set(folder ${PROJECT_SOURCE_DIR}/build/pypi)
  set(source ${folder}/${name}-${version})
  set(${out} ${source} PARENT_SCOPE)
  if(EXISTS ${source})
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
                        "the source distribution to ${source}. pip said:\n${why}")
  endif()
  file(ARCHIVE_EXTRACT INPUT ${fresh}/${name}-${version}.tar.gz DESTINATION ${fresh})
  file(RENAME ${fresh}/${name}-${version} ${source})
  file(REMOVE_RECURSE ${fresh})
endfunction()
