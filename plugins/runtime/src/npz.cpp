#include "npz.h"

#include <cctype>
#include <cstring>
#include <stdexcept>

#ifdef DYNDEPLOY_ZLIB
#include <zlib.h>
#endif

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::uint64_t kMostInflated = std::uint64_t{1} << 31;

[[noreturn]] void damaged(const char* what) {
  throw std::runtime_error(std::string("it is no whole .npz archive: ") + what);
}

// Little-endian numbers of an archive, within its bounds.
class Reader {
 public:
  explicit Reader(const std::string& bytes) : bytes_(bytes) {}

  std::uint64_t number(std::uint64_t at, int size) const {
    require(at, static_cast<std::uint64_t>(size));
    std::uint64_t value = 0;
    for (int i = size - 1; i >= 0; --i)
      value = value << 8 | static_cast<unsigned char>(bytes_[at + static_cast<std::size_t>(i)]);
    return value;
  }
  std::string part(std::uint64_t at, std::uint64_t size) const {
    require(at, size);
    return bytes_.substr(at, size);
  }
  void require(std::uint64_t at, std::uint64_t size) const {
    if (at > bytes_.size() || size > bytes_.size() - at) damaged("a part lies behind its end");
  }

 private:
  const std::string& bytes_;
};

struct Entry {
  std::string name;
  int method;
  std::uint64_t packed, size, offset;
};

// Sizes that do not fit into 32 bits stand in a field of their own (zip64), in this order.
void read_wide(const Reader& reader, std::uint64_t extra, std::uint64_t length, Entry& entry) {
  for (std::uint64_t at = extra; at + 4 <= extra + length;) {
    const std::uint64_t size = reader.number(at + 2, 2);
    if (reader.number(at, 2) == 1) {
      std::uint64_t place = at + 4;
      for (std::uint64_t* field : {&entry.size, &entry.packed, &entry.offset})
        if (*field == 0xffffffffu) {
          *field = reader.number(place, 8);
          place += 8;
        }
    }
    at += 4 + size;
  }
}

std::uint64_t directory_end(const std::string& bytes) {
  constexpr std::size_t kSize = 22;
  if (bytes.size() < kSize) damaged("it is too short");
  const std::size_t found = bytes.rfind(std::string("PK\5\6"), bytes.size() - kSize);
  if (found == std::string::npos) damaged("its directory is missing");
  return found;
}

std::string inflated(const std::string& packed, std::uint64_t size) {
#ifdef DYNDEPLOY_ZLIB
  if (size > kMostInflated) damaged("an array is too large");
  std::string out(size, '\0');
  z_stream stream;
  std::memset(&stream, 0, sizeof stream);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(&out[0]);
  stream.avail_out = static_cast<uInt>(size);
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::runtime_error("zlib cannot start");
  const int said = inflate(&stream, Z_FINISH);
  const bool whole = said == Z_STREAM_END && stream.avail_out == 0;
  inflateEnd(&stream);
  if (!whole) damaged("an array cannot be unpacked");
  return out;
#else
  (void)packed, (void)size, (void)kMostInflated;
  throw std::runtime_error("it is compressed, and this build has no zlib");
#endif
}

std::string content(const Reader& reader, const Entry& entry) {
  if (reader.number(entry.offset, 4) != 0x04034b50u) damaged("an entry is missing");
  const std::uint64_t start =
      entry.offset + 30 + reader.number(entry.offset + 26, 2) + reader.number(entry.offset + 28, 2);
  const std::string packed = reader.part(start, entry.packed);
  if (entry.method == 8) return inflated(packed, entry.size);
  if (entry.method != 0 || entry.packed != entry.size) damaged("an array is packed in an unknown way");
  return packed;
}

// What stands behind a key of the header, which is a Python dictionary.
std::string value_of(const std::string& header, const char* key) {
  const std::size_t found = header.find(std::string("'") + key + "':");
  if (found == std::string::npos) damaged("an array has no header");
  std::size_t at = found + std::strlen(key) + 3;
  while (at < header.size() && header[at] == ' ') ++at;
  return header.substr(at);
}

int type_of_code(const std::string& code) {
  const struct {
    const char* code;
    int type;
  } known[] = {{"'<f4'", DYNDEPLOY_FLOAT32}, {"'<f8'", DYNDEPLOY_FLOAT64}, {"'<f2'", DYNDEPLOY_FLOAT16},
               {"'<i8'", DYNDEPLOY_INT64},   {"'<i4'", DYNDEPLOY_INT32},   {"'|i1'", DYNDEPLOY_INT8},
               {"'|u1'", DYNDEPLOY_UINT8},   {"'|b1'", DYNDEPLOY_BOOL}};
  for (const auto& entry : known)
    if (code.compare(0, std::strlen(entry.code), entry.code) == 0) return entry.type;
  damaged("an array has an unknown type");
}

Shape shape_of(const std::string& text) {
  Shape shape;
  if (text.empty() || text[0] != '(') damaged("an array has no shape");
  for (std::size_t at = 1; at < text.size() && text[at] != ')';) {
    if (!std::isdigit(static_cast<unsigned char>(text[at]))) {
      ++at;
      continue;
    }
    std::int64_t size = 0;
    for (; at < text.size() && std::isdigit(static_cast<unsigned char>(text[at])); ++at) {
      size = 10 * size + (text[at] - '0');
      if (size > std::int64_t{1} << 40) damaged("an array is too large");
    }
    shape.push_back(size);
  }
  return shape;
}

Array parse_npy(const std::string& bytes) {
  const Reader reader(bytes);
  if (reader.part(0, 6) != "\x93NUMPY") damaged("an entry is no array");
  const bool old = reader.number(6, 1) == 1;
  const std::uint64_t length = reader.number(8, old ? 2 : 4), start = (old ? 10 : 12) + length;
  const std::string header = reader.part(old ? 10 : 12, length);
  if (value_of(header, "fortran_order").compare(0, 5, "False") != 0)
    damaged("an array is in Fortran's order");
  Array array{type_of_code(value_of(header, "descr")), shape_of(value_of(header, "shape")), ""};
  try {
    if (bytes.size() - start != array.count() * element_bytes(array.type))
      damaged("an array has another size than it says");
  } catch (const std::overflow_error&) {
    damaged("an array is too large");
  }
  array.bytes = bytes.substr(start);
  return array;
}

}  // namespace

std::map<std::string, Array> parse_npz(const std::string& bytes) {
  const Reader reader(bytes);
  const std::uint64_t end = directory_end(bytes);
  const std::uint64_t count = reader.number(end + 10, 2);
  std::uint64_t at = reader.number(end + 16, 4);
  std::map<std::string, Array> arrays;
  for (std::uint64_t i = 0; i < count; ++i) {
    if (reader.number(at, 4) != 0x02014b50u) damaged("its directory is damaged");
    const std::uint64_t name = reader.number(at + 28, 2), extra = reader.number(at + 30, 2);
    Entry entry{reader.part(at + 46, name), static_cast<int>(reader.number(at + 10, 2)),
                reader.number(at + 20, 4), reader.number(at + 24, 4), reader.number(at + 42, 4)};
    read_wide(reader, at + 46 + name, extra, entry);
    const std::size_t ending = entry.name.rfind(".npy");
    if (ending != std::string::npos && ending + 4 == entry.name.size()) entry.name.resize(ending);
    arrays[entry.name] = parse_npy(content(reader, entry));
    at += 46 + name + extra + reader.number(at + 32, 2);
  }
  return arrays;
}

}  // namespace runtime
}  // namespace dyndeploy
