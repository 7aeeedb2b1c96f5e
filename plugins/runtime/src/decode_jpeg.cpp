// JPEG through libjpeg, with its defaults, which are Pillow's.

// clang-format off: jpeglib.h needs what stands before it, and jerror.h needs jpeglib.h.
#include <cstddef>
#include <cstdio>
#include <jpeglib.h>
#include <jerror.h>
// clang-format on

#include <csetjmp>
#include <cstring>
#include <stdexcept>

#include "decode.h"

namespace dyndeploy {
namespace runtime {
namespace {

struct Errors {
  jpeg_error_mgr manager;
  std::jmp_buf back;
  char text[JMSG_LENGTH_MAX];
};

Errors* errors_of(j_common_ptr info) { return reinterpret_cast<Errors*>(info->err); }

void leave(j_common_ptr info) {
  info->err->format_message(info, errors_of(info)->text);
  std::longjmp(errors_of(info)->back, 1);
}

void on_message(j_common_ptr info, int level) {
  // A file that ends early would be filled up with grey. Other damage is decoded over, as Pillow does.
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) {
    std::strcpy(errors_of(info)->text, "the file is truncated");
    std::longjmp(errors_of(info)->back, 1);
  }
}

int orientation_of(const jpeg_decompress_struct& info) {
  for (jpeg_saved_marker_ptr marker = info.marker_list; marker; marker = marker->next)
    if (marker->marker == JPEG_APP0 + 1 && marker->data_length > 6 &&
        std::memcmp(marker->data, "Exif\0\0", 6) == 0)
      return exif_orientation(marker->data + 6, marker->data_length - 6);
  return 1;
}

Raster::Kind kind_of(const jpeg_decompress_struct& info) {
  if (info.num_components == 1) return Raster::Kind::kGrey;
  return info.num_components == 4 ? Raster::Kind::kInvertedCmyk : Raster::Kind::kRgb;
}

// Between setjmp and longjmp nothing has a destructor: what must be freed lies outside.
bool decode(jpeg_decompress_struct& info, Errors& errors, const std::string& bytes, Raster& raster) {
  if (setjmp(errors.back)) return false;
  jpeg_create_decompress(&info);
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
  jpeg_mem_src(&info, reinterpret_cast<unsigned char*>(const_cast<char*>(bytes.data())),
               static_cast<unsigned long>(bytes.size()));
  jpeg_read_header(&info, TRUE);
  if (info.num_components != 1 && info.num_components != 3 && info.num_components != 4) {
    std::strcpy(errors.text, "it has another number of colours than 1, 3 or 4");
    return false;
  }
  raster.kind = kind_of(info);
  info.out_color_space = info.num_components == 1   ? JCS_GRAYSCALE
                         : info.num_components == 4 ? JCS_CMYK
                                                    : JCS_RGB;
  if (static_cast<std::int64_t>(info.image_height) >
      kMostPixels / static_cast<std::int64_t>(info.image_width)) {
    std::strcpy(errors.text, "it has too many pixels");
    return false;
  }
  jpeg_start_decompress(&info);
  raster.height = info.output_height;
  raster.width = info.output_width;
  raster.orientation = orientation_of(info);
  raster.samples.resize(static_cast<std::size_t>(raster.height * raster.width * channels(raster.kind)));
  const std::size_t pitch = static_cast<std::size_t>(raster.width * channels(raster.kind));
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = &raster.samples[info.output_scanline * pitch];
    jpeg_read_scanlines(&info, &row, 1);
  }
  return true;
}

}  // namespace

Raster decode_jpeg(const std::string& bytes) {
  Raster raster;
  jpeg_decompress_struct info;
  std::memset(&info, 0, sizeof info);
  Errors errors;
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = leave;
  errors.manager.emit_message = on_message;
  errors.text[0] = '\0';
  bool done;
  try {
    done = decode(info, errors, bytes, raster);
  } catch (...) {
    jpeg_destroy_decompress(&info);
    throw;
  }
  jpeg_destroy_decompress(&info);
  if (!done) throw std::runtime_error(errors.text);
  return raster;
}

}  // namespace runtime
}  // namespace dyndeploy
