# Makes a C++ source of files, as byte arrays:
#   cmake -DOUTPUT=web_files.cc -DFOLDER=web "-DFILES=index.html style.css" -P EmbedFiles.cmake
# It defines what apps/api/web_page.h declares.
separate_arguments(FILES)
set(arrays "")
set(table "")
foreach(name ${FILES})
  file(READ "${FOLDER}/${name}" hex HEX)
  file(SHA256 "${FOLDER}/${name}" hash)
  string(SUBSTRING "${hash}" 0 16 hash)
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(MAKE_C_IDENTIFIER "k_${name}" array)
  string(APPEND arrays "constexpr unsigned char ${array}[] = {${bytes}};\n")
  string(APPEND table "    {\"${name}\", \"\\\"${hash}\\\"\", {reinterpret_cast<const char*>(${array}), sizeof ${array}}},\n")
endforeach()
file(WRITE "${OUTPUT}" "#include \"apps/api/web_page.h\"

namespace calandra::apps {
namespace {

${arrays}
const WebFile kFiles[] = {
${table}};

}  // namespace

std::span<const WebFile> web_files() { return kFiles; }

}  // namespace calandra::apps
")
