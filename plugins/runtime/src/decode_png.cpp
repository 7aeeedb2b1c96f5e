// PNG through libpng; 16 bits become 8 as Pillow and dyndeploy/data.py do it.

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <stdexcept>

#include "decode.h"

namespace dyndeploy {
namespace runtime {
namespace {

struct Source {
  const std::string* bytes;
  std::size_t place;
  char text[128];
};

void on_error(png_structp png, png_const_charp message) {
  Source* source = static_cast<Source*>(png_get_error_ptr(png));
  std::strncpy(source->text, message, sizeof source->text - 1);
  std::longjmp(png_jmpbuf(png), 1);
}
void on_warning(png_structp, png_const_charp) {}

void read_bytes(png_structp png, png_bytep to, png_size_t size) {
  Source* source = static_cast<Source*>(png_get_io_ptr(png));
  if (source->bytes->size() - source->place < size) png_error(png, "the file is truncated");
  std::memcpy(to, source->bytes->data() + source->place, size);
  source->place += size;
}

// What is read of a file, with memory that outlives a jump out of libpng.
struct Read {
  Raster raster;
  std::vector<std::uint8_t> samples;  // rows as libpng gives them
  std::vector<png_bytep> rows;
  png_uint_32 height = 0, width = 0;
  int depth = 0, color = 0;
  bool whole = false;        // every pixel is there
  bool transparent = false;  // a tRNS chunk makes one colour transparent
  png_color_16 clear = {};   // that colour
  std::size_t pitch = 0;
};

bool read(png_structp png, png_infop info, Read& out) {
  // What lies behind the pixels may be damaged: Pillow shows such files as well.
  if (setjmp(png_jmpbuf(png))) return out.whole;
  png_read_info(png, info);
  png_get_IHDR(png, info, &out.width, &out.height, &out.depth, &out.color, nullptr, nullptr, nullptr);
  if (static_cast<std::int64_t>(out.height) > kMostPixels / static_cast<std::int64_t>(out.width))
    png_error(png, "it has too many pixels");
  png_color_16p clear = nullptr;
  out.transparent = png_get_valid(png, info, PNG_INFO_tRNS) != 0;
  if (out.transparent && out.color != PNG_COLOR_TYPE_PALETTE) {
    png_get_tRNS(png, info, nullptr, nullptr, &clear);
    if (clear) out.clear = *clear;
  }
  if (out.color == PNG_COLOR_TYPE_PALETTE) {
    png_set_palette_to_rgb(png);
    if (out.transparent) png_set_tRNS_to_alpha(png);
  }
  if (out.color == PNG_COLOR_TYPE_GRAY && out.depth < 8) png_set_expand_gray_1_2_4_to_8(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  out.pitch = png_get_rowbytes(png, info);
  out.samples.resize(out.pitch * out.height);
  out.rows.resize(out.height);
  for (std::size_t y = 0; y < out.height; ++y) out.rows[y] = &out.samples[y * out.pitch];
  png_read_image(png, out.rows.data());
  out.whole = true;
  png_read_end(png, info);
#ifdef PNG_eXIf_SUPPORTED
  png_bytep exif = nullptr;
  png_uint_32 size = 0;
  if (png_get_eXIf_1(png, info, &size, &exif) && exif) out.raster.orientation = exif_orientation(exif, size);
#endif
  return true;
}

// A colour that is transparent becomes a fourth channel. Pillow compares what is left of 16 bits with the low
// byte of the colour, and grey of fewer than 8 bits with its value before it is scaled.
bool is_clear(const Read& found, const std::uint8_t* pixel) {
  if (found.color == PNG_COLOR_TYPE_GRAY) {
    if (found.depth == 1) return pixel[0] == (found.clear.gray ? 255 : 0);
    return pixel[0] == found.clear.gray;
  }
  return pixel[0] == found.clear.red && pixel[1] == found.clear.green && pixel[2] == found.clear.blue;
}

void to_raster(Read& found) {
  Raster& raster = found.raster;
  raster.height = found.height;
  raster.width = found.width;
  const bool grey = !(found.color & PNG_COLOR_MASK_COLOR);
  const bool palette = found.color == PNG_COLOR_TYPE_PALETTE;
  const bool alpha = (found.color & PNG_COLOR_MASK_ALPHA) != 0 || (palette && found.transparent);
  const int bytes = found.depth == 16 ? 2 : 1, count = (grey ? 1 : 3) + (alpha ? 1 : 0);
  // 16 bit grey is scaled and loses the transparent colour, others lose their low bytes.
  const bool scaled = grey && !alpha && found.depth == 16;
  const bool cleared = found.transparent && !palette && !alpha && !scaled;
  const int kept = count + (cleared ? 1 : 0);
  raster.kind = grey ? (kept == 2 ? Raster::Kind::kGreyAlpha : Raster::Kind::kGrey)
                     : (kept == 4 ? Raster::Kind::kRgba : Raster::Kind::kRgb);
  raster.samples.resize(static_cast<std::size_t>(found.height) * found.width *
                        static_cast<std::size_t>(kept));
  std::uint8_t* to = raster.samples.data();
  for (std::size_t y = 0; y < found.height; ++y) {
    const std::uint8_t* from = &found.samples[y * found.pitch];
    for (std::size_t x = 0; x < found.width; ++x, to += kept) {
      for (int i = 0; i < count; ++i, from += bytes)
        to[i] = scaled ? static_cast<std::uint8_t>((from[0] << 8 | from[1]) / 257) : from[0];
      if (cleared) to[count] = is_clear(found, to) ? 0 : 255;
    }
  }
  found.samples = std::vector<std::uint8_t>();
}

}  // namespace

Raster decode_png(const std::string& bytes) {
  Source source = {&bytes, 0, {}};
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source, on_error, on_warning);
  png_infop info = png ? png_create_info_struct(png) : nullptr;
  Read found;
  bool done = false;
  try {
    if (info) {
      png_set_read_fn(png, &source, read_bytes);
      png_set_user_limits(png, 0x7fffffff, 0x7fffffff);
      done = read(png, info, found);
    }
  } catch (...) {
    png_destroy_read_struct(&png, &info, nullptr);
    throw;
  }
  png_destroy_read_struct(&png, &info, nullptr);
  if (!done) throw std::runtime_error(source.text[0] ? source.text : "no memory");
  to_raster(found);
  return std::move(found.raster);
}

}  // namespace runtime
}  // namespace dyndeploy
