// AVX2, with the conversions of F16C: nearly every x86 processor since 2013.
//
// Quantization ranks eight weights at once by bisection. Dequantization splits the products of a
// block into planes of bytes, so that one byte shuffle looks up 32 codes in each.

#include "attention.h"
#include "serving.h"
#include "avx2_gemv.h"
#include "training_set.h"

namespace ince {
namespace {

// ------------------------------------------------------------------------------ quantization

template <DType dtype>
inline __m256 load_weights(const void* weights, int64_t index) {
  if constexpr (dtype == kFloat32) {
    return _mm256_loadu_ps(static_cast<const float*>(weights) + index);
  } else {
    const uint16_t* halves = static_cast<const uint16_t*>(weights) + index;
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(halves));
    if constexpr (dtype == kBFloat16) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
    } else {
      return _mm256_cvtph_ps(raw);
    }
  }
}

struct Ranks {
  __m256 half, quarters, eighths, sixteenths, lower_values, upper_values;
  __m128i by_rank;

  explicit Ranks(const Code& code) {
    const float* t = code.thresholds;
    half = _mm256_set1_ps(t[7]);
    quarters = _mm256_setr_ps(t[3], t[11], 0, 0, 0, 0, 0, 0);
    eighths = _mm256_setr_ps(t[1], t[5], t[9], t[13], 0, 0, 0, 0);
    sixteenths = _mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]);
    by_rank = _mm_loadu_si128(reinterpret_cast<const __m128i*>(code.by_rank));
    float values[16];
    for (int rank = 0; rank < 16; ++rank) values[rank] = code.values[code.by_rank[rank]];
    lower_values = _mm256_loadu_ps(values);
    upper_values = _mm256_loadu_ps(values + 8);
  }

  // What is nearest to each of eight values.
  __m256 nearest(__m256 values) const {
    const __m256i rank = of(values);
    // The highest of four bits says which half; a permutation looks at three.
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(lower_values, rank),
                            _mm256_permutevar8x32_ps(upper_values, rank),
                            _mm256_castsi256_ps(_mm256_slli_epi32(rank, 28)));
  }

  // Ranks of eight values, one in 32 bits, found bit by bit from the highest.
  __m256i of(__m256 values) const {
    __m256i rank = _mm256_setzero_si256();
    const auto step = [&](__m256 thresholds) {
      const __m256 above = _mm256_cmp_ps(values, thresholds, _CMP_GT_OQ);  // -1 where it holds
      rank = _mm256_sub_epi32(_mm256_add_epi32(rank, rank), _mm256_castps_si256(above));
    };
    step(half);
    step(_mm256_permutevar8x32_ps(quarters, rank));
    step(_mm256_permutevar8x32_ps(eighths, rank));
    step(_mm256_permutevar8x32_ps(sixteenths, rank));
    return rank;
  }
};

// The factor of a full block's scale.
template <DType dtype>
float searched_factor(const QuantizeArgs& args, const Ranks& ranks, int64_t start, float scale) {
  const __m256 inverse = _mm256_set1_ps(1.0f / scale);
  const __m256 one = _mm256_set1_ps(1.0f);
  alignas(64) float normalized[kMaxBlocksize];
  for (int64_t i = 0; i < args.blocksize; i += 8) {
    const __m256 value = _mm256_mul_ps(load_weights<dtype>(args.weight, start + i), inverse);
    _mm256_store_ps(normalized + i,
                    _mm256_max_ps(_mm256_min_ps(value, one), _mm256_set1_ps(-1.0f)));
  }
  return best_factor(args, [&](float factor) {
    alignas(32) float products[kMaxBlocksize];
    alignas(32) float squares[kMaxBlocksize];
    for (int64_t i = 0; i < args.blocksize; i += 8) {
      const __m256 value = _mm256_load_ps(normalized + i);
      const __m256 nearest = ranks.nearest(_mm256_mul_ps(value, _mm256_set1_ps(factor)));
      _mm256_store_ps(products + i, _mm256_mul_ps(value, nearest));
      _mm256_store_ps(squares + i, _mm256_mul_ps(nearest, nearest));
    }
    return Sums{sum_by_halves(products, args.blocksize), sum_by_halves(squares, args.blocksize)};
  });
}

template <DType dtype>
bool quantize_blocks(const QuantizeArgs& args, int64_t first, int64_t last) {
  const Ranks ranks(*args.code);
  const __m256i magnitude_bits = _mm256_set1_epi32(0x7fffffff);
  const __m128i weights_of_nibbles = _mm_set1_epi16(0x0110);  // byte 0 times 16, byte 1 times 1
  const int64_t size = args.blocksize;
  for (int64_t block = first; block < last; ++block) {
    const int64_t start = block * size;
    if (start + size > args.num_weights) return quantize_block(args, block);
    // Magnitudes are compared as integers: these order NaN above infinity.
    __m256i largest = _mm256_setzero_si256();
    for (int64_t i = 0; i < size; i += 8) {
      const __m256 weights = load_weights<dtype>(args.weight, start + i);
      largest = _mm256_max_epi32(
          largest, _mm256_and_si256(_mm256_castps_si256(weights), magnitude_bits));
    }
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest),
                                 _mm256_extracti128_si256(largest, 1));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    const uint32_t bits = uint32_t(_mm_cvtsi128_si32(four));
    if (bits >= kInfinityBits) return false;
    float scale = float_of(bits);
    if (is_searched(args, scale)) scale *= searched_factor<dtype>(args, ranks, start, scale);
    args.absmax[block] = scale;
    const __m256 inverse = _mm256_set1_ps(1.0f / (scale < kLeastScale ? kLeastScale : scale));
    uint8_t* packed = args.packed + start / 2;
    for (int64_t i = 0; i < size; i += 16) {
      const __m256i low =
          ranks.of(_mm256_mul_ps(load_weights<dtype>(args.weight, start + i), inverse));
      const __m256i high =
          ranks.of(_mm256_mul_ps(load_weights<dtype>(args.weight, start + i + 8), inverse));
      const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
      const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(words),
                                             _mm256_extracti128_si256(words, 1));
      const __m128i codes = _mm_shuffle_epi8(ranks.by_rank, bytes);
      const __m128i pairs = _mm_maddubs_epi16(codes, weights_of_nibbles);
      _mm_storel_epi64(reinterpret_cast<__m128i*>(packed + i / 2),
                       _mm_packus_epi16(pairs, pairs));
    }
  }
  return true;
}

bool quantize(const QuantizeArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return quantize_blocks<kFloat32>(args, first, last);
    case kBFloat16:
      return quantize_blocks<kBFloat16>(args, first, last);
    default:
      return quantize_blocks<kFloat16>(args, first, last);
  }
}

// ---------------------------------------------------------------------------- dequantization

template <DType dtype>
inline void product_table(const Code& code, float scale, void* table) {
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256 low = _mm256_mul_ps(_mm256_loadu_ps(code.values), factor);
  const __m256 high = _mm256_mul_ps(_mm256_loadu_ps(code.values + 8), factor);
  if constexpr (dtype == kFloat16) {
    __m128i* out = static_cast<__m128i*>(table);
    _mm_store_si128(out, _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_store_si128(out + 1,
                    _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else {
    alignas(32) float products[16];
    _mm256_store_ps(products, low);
    _mm256_store_ps(products + 8, high);
    if constexpr (dtype == kFloat32) {
      std::memcpy(table, products, sizeof products);
    } else {
      for (int i = 0; i < 16; ++i) static_cast<uint16_t*>(table)[i] = to_bfloat16(products[i]);
    }
  }
}

// Byte `plane` of each of the sixteen entries, in both halves.
template <int width>
inline __m256i plane_of(const uint8_t* table, int plane) {
  alignas(16) uint8_t bytes[16];
  for (int i = 0; i < 16; ++i) bytes[i] = table[i * width + plane];
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<__m128i*>(bytes)));
}

// Codes of 32 weights: those of 16 bytes' first half in the lower lane.
inline __m256i codes_of(const uint8_t* packed) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(packed));
  const __m128i low_bits = _mm_set1_epi8(15);
  const __m128i earlier = _mm_and_si128(_mm_srli_epi16(bytes, 4), low_bits);
  const __m128i later = _mm_and_si128(bytes, low_bits);
  return _mm256_set_m128i(_mm_unpackhi_epi8(earlier, later), _mm_unpacklo_epi8(earlier, later));
}

inline void store_lanes(uint8_t* out, __m256i earlier, __m256i later, int64_t distance) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(earlier));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm256_castsi256_si128(later));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + distance),
                   _mm256_extracti128_si256(earlier, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + distance + 16),
                   _mm256_extracti128_si256(later, 1));
}

template <DType dtype>
void dequantize_blocks(const DequantizeArgs& args, int64_t first, int64_t last) {
  constexpr int width = dtype == kFloat32 ? 4 : 2;  // bytes of a weight
  const int64_t size = args.blocksize;
  const int64_t num_full = args.num_weights / size;
  const int64_t last_full = last < num_full ? last : num_full;
  for (int64_t block = first; block < last_full; ++block) {
    alignas(32) uint8_t table[16 * width];
    product_table<dtype>(*args.code, scale_of(args.scales, block), table);
    __m256i planes[width];
    for (int plane = 0; plane < width; ++plane) planes[plane] = plane_of<width>(table, plane);
    const uint8_t* packed = args.packed + block * size / 2;
    uint8_t* out = static_cast<uint8_t*>(args.out) + block * size * width;
    for (int64_t i = 0; i < size; i += 32, packed += 16, out += 32 * width) {
      const __m256i codes = codes_of(packed);
      __m256i bytes[width];
      for (int plane = 0; plane < width; ++plane) {
        bytes[plane] = _mm256_shuffle_epi8(planes[plane], codes);
      }
      const __m256i words0 = _mm256_unpacklo_epi8(bytes[0], bytes[1]);
      const __m256i words1 = _mm256_unpackhi_epi8(bytes[0], bytes[1]);
      if constexpr (width == 2) {
        store_lanes(out, words0, words1, 32);
      } else {
        const __m256i words2 = _mm256_unpacklo_epi8(bytes[2], bytes[3]);
        const __m256i words3 = _mm256_unpackhi_epi8(bytes[2], bytes[3]);
        store_lanes(out, _mm256_unpacklo_epi16(words0, words2),
                    _mm256_unpackhi_epi16(words0, words2), 64);
        store_lanes(out + 32, _mm256_unpacklo_epi16(words1, words3),
                    _mm256_unpackhi_epi16(words1, words3), 64);
      }
    }
  }
  if (last > num_full) dequantize_block(args, num_full);
}

void dequantize(const DequantizeArgs& args, int64_t first, int64_t last) {
  switch (args.dtype) {
    case kFloat32:
      return dequantize_blocks<kFloat32>(args, first, last);
    case kBFloat16:
      return dequantize_blocks<kBFloat16>(args, first, last);
    default:
      return dequantize_blocks<kFloat16>(args, first, last);
  }
}

}  // namespace

const Kernels kAvx2 = {
    "avx2", quantize, dequantize, {&gemv::kProduct, nullptr}, &kTraining,
    &kAttentionAvx2, &kServingAvx2};

}  // namespace ince
