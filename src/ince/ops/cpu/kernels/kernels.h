// What an instruction set offers, and the arguments that every one of them takes.
//
// A kernel works on a range of blocks or of outputs in the calling thread; library.cpp divides
// the work. All files of instruction sets keep their own functions in unnamed namespaces: a
// function that two of them shared by name could be linked with instructions that the machine
// lacks.

#pragma once

#include <cstdint>

namespace ince {

enum DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A code of sixteen values, of which quantization needs the order and the thresholds.
struct Code {
  float values[16];      // by code
  float thresholds[15];  // ascending; a value's rank is how many lie strictly below it
  uint8_t by_rank[16];   // code of the value of each rank
  uint8_t zero;          // code of zero, which fills up an odd last byte
};

// Scales of blocks: float32, or 8-bit codes of double quantization.
struct Scales {
  const float* absmax;        // one a block, or null
  const uint8_t* codes;       // one a block
  const float* nested;        // one for 256 blocks
  const float* map;           // 256 values
  const float* offset;        // one, added to all
  int64_t first;              // which of them is that of block 0
};

struct QuantizeArgs {
  const void* weight;
  DType dtype;
  int64_t num_weights;
  int64_t blocksize;
  const Code* code;
  const float* factors;  // of the scale search: its candidates, in their order; or null
  int32_t num_factors;
  uint8_t* packed;
  float* absmax;
};

constexpr int64_t kMaxBlocksize = 4096;

struct DequantizeArgs {
  const uint8_t* packed;
  Scales scales;
  int64_t num_weights;
  int64_t blocksize;
  const Code* code;
  void* out;
  DType dtype;
};

// y = x Wᵀ + b, with W (num_out, num_in) packed.
struct ProductArgs {
  const void* x;  // (num_rows, num_in)
  DType dtype;    // of x, the bias and y
  int64_t num_rows;
  int64_t num_in;
  int64_t num_out;
  const uint8_t* packed;
  Scales scales;
  int64_t blocksize;
  const Code* code;
  const void* bias;  // (num_out,), or null
  void* y;           // (num_rows, num_out)
  void* arranged;    // x as the kernel wants it, 64-byte aligned
};

// A way to multiply without expanding the weight into memory.
struct Product {
  bool (*fits)(const ProductArgs& args);
  int64_t (*arranged_bytes)(const ProductArgs& args);
  // Parts first … last-1 of the num_in weights of a row, of `arrange_step` each.
  void (*arrange)(const ProductArgs& args, int64_t first, int64_t last);
  int64_t arrange_step;
  // Outputs first … last-1; ranges start at multiples of `out_step`.
  void (*multiply)(const ProductArgs& args, int64_t first, int64_t last);
  int64_t out_step;
};

struct Training;  // see training.h
struct Attention;  // see attention.h
struct Serving;  // see serving.h

struct Kernels {
  const char* name;
  // Blocks first … last-1; false when one of them holds a weight that is not finite.
  bool (*quantize)(const QuantizeArgs& args, int64_t first, int64_t last);
  void (*dequantize)(const DequantizeArgs& args, int64_t first, int64_t last);
  // The first that fits is taken; a null ends them.
  const Product* products[4];
  const Training* training;
  const Attention* attention;
  const Serving* serving;
};

// Those in use.
extern const Kernels* kernels;

extern const Kernels kPortable;
#if defined(INCE_AVX2)
extern const Kernels kAvx2;
#endif
#if defined(INCE_AVX512)
extern const Kernels kAvx512;
#endif
#if defined(INCE_AVX512BF16)
extern const Kernels kAvx512Bf16;
#endif

}  // namespace ince
