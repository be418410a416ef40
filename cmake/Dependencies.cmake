# External libraries, all from Debian packages (tools/install_deps.sh). Static archives, so that the program depends on libc and libm only.
set(Boost_USE_STATIC_LIBS ON)
find_package(Boost 1.81 REQUIRED COMPONENTS json)
find_package(fmt 9 CONFIG REQUIRED)        # headers; the rest of it is src/base/fmt_library.cc
find_package(spdlog 1.10 CONFIG REQUIRED)  # headers
find_package(CLI11 2.1 CONFIG REQUIRED)
find_package(Threads REQUIRED)
find_path(CURL_HEADERS curl/curl.h REQUIRED)  # of a library that is opened at run time (src/net/curl_library.cc)
set(OPENSSL_USE_STATIC_LIBS ON)
find_package(OpenSSL 3.0 REQUIRED)
if(CALANDRA_TESTS)
  find_package(GTest CONFIG REQUIRED)
endif()

find_package(PkgConfig REQUIRED)
# calandra_static(NAME pkg-config-module archive...): an imported target made of static archives.
function(calandra_static name module)
  pkg_check_modules(${name} REQUIRED QUIET ${module})
  add_library(calandra::${name} INTERFACE IMPORTED GLOBAL)
  target_include_directories(calandra::${name} INTERFACE ${${name}_INCLUDE_DIRS})
  foreach(archive ${ARGN})
    find_library(CALANDRA_${archive}_ARCHIVE NAMES ${archive} PATHS ${${name}_LIBRARY_DIRS} ${${name}_LIBDIR} REQUIRED)
    target_link_libraries(calandra::${name} INTERFACE ${CALANDRA_${archive}_ARCHIVE})
  endforeach()
endfunction()
calandra_static(pcre2 libpcre2-8 libpcre2-8.a)
calandra_static(utf8proc libutf8proc libutf8proc.a)
calandra_static(hwloc hwloc libhwloc.a)
add_library(hwloc_udev STATIC ${PROJECT_SOURCE_DIR}/src/base/hwloc_udev.cc)  # behind it, since it is what hwloc calls
target_link_libraries(calandra::hwloc INTERFACE hwloc_udev)
calandra_static(edit libedit libedit.a libtinfo.a libbsd.a libmd.a)
calandra_static(jpeg libjpeg libjpeg.a)
calandra_static(png libpng libpng16.a libz.a)
calandra_static(webp libwebpdemux libwebpdemux.a libwebp.a)
