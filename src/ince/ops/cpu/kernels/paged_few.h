// Few queries of a sequence, as where an answer goes on: keys and values are read where they lie,
// block by block, once for all heads. It takes the time of reading them.

#pragma once

#include "paged_rows.h"

namespace ince {
namespace {

#define INCE_UNROLLED(i) [&](auto i) __attribute__((always_inline))

// Rows of keys or values of one head in a block.
struct PlaceRows {
  const void* data;
  int64_t index;
  int64_t stride;
};

// Scores of `rows` queries and `keys` keys.
template <class V, DType dtype, int rows, int keys>
inline void score(const float* queries, const PlaceRows& k, int64_t key, int64_t padded,
                  float* out, int64_t stride) {
  using Vec = typename V::Vec;
  Vec sums[rows * keys];
  unrolled<rows * keys>(INCE_UNROLLED(i) { sums[i] = V::zero(); });
  const int64_t index = k.index + key * k.stride;
  for (int64_t d = 0; d < padded; d += V::lanes) {
    Vec left[rows];
    unrolled<rows>(INCE_UNROLLED(i) { left[i] = V::load(queries + i * padded + d); });
    unrolled<keys>(INCE_UNROLLED(j) {
      const Vec right = V::template load_from<dtype>(k.data, index + j * k.stride + d);
      unrolled<rows>(INCE_UNROLLED(i) {
        sums[i * keys + j] = V::fma(left[i], right, sums[i * keys + j]);
      });
    });
  }
  unrolled<rows>(INCE_UNROLLED(i) {
    if constexpr (keys == 4) {
      V::four_sums(sums[i * 4], sums[i * 4 + 1], sums[i * 4 + 2], sums[i * 4 + 3],
                   out + i * stride + key);
    } else {
      out[i * stride + key] = V::sum(sums[i]);
    }
  });
}

template <class V, DType dtype, int rows>
inline void score_keys(const float* queries, const PlaceRows& k, int64_t num_keys, int64_t padded,
                       float* out, int64_t stride) {
  int64_t key = 0;
  for (; key + 4 <= num_keys; key += 4) {
    score<V, dtype, rows, 4>(queries, k, key, padded, out, stride);
  }
  for (; key < num_keys; ++key) score<V, dtype, rows, 1>(queries, k, key, padded, out, stride);
}

// sums[i] += Σ weights[i][key] · v[key], a part of `columns` registers.
template <class V, DType dtype, int rows, int columns>
inline void weigh(const float* weights, int64_t stride, const PlaceRows& v, int64_t column,
                  int64_t num_keys, float* sums, int64_t sums_stride) {
  using Vec = typename V::Vec;
  Vec held[rows * columns];
  unrolled<rows>(INCE_UNROLLED(i) {
    unrolled<columns>(INCE_UNROLLED(j) {
      held[i * columns + j] = V::load(sums + i * sums_stride + column + j * V::lanes);
    });
  });
  for (int64_t key = 0; key < num_keys; ++key) {
    Vec left[rows];
    unrolled<rows>(INCE_UNROLLED(i) { left[i] = V::broadcast(weights + i * stride + key); });
    unrolled<columns>(INCE_UNROLLED(j) {
      const Vec right =
          V::template load_from<dtype>(v.data, v.index + key * v.stride + column + j * V::lanes);
      unrolled<rows>(INCE_UNROLLED(i) {
        held[i * columns + j] = V::fma(left[i], right, held[i * columns + j]);
      });
    });
  }
  unrolled<rows>(INCE_UNROLLED(i) {
    unrolled<columns>(INCE_UNROLLED(j) {
      V::store(sums + i * sums_stride + column + j * V::lanes, held[i * columns + j]);
    });
  });
}

#undef INCE_UNROLLED

template <class V, DType dtype, int rows>
inline void weigh_values(const float* weights, int64_t stride, const PlaceRows& v,
                         int64_t num_keys, int64_t padded, float* sums, int64_t sums_stride) {
  constexpr int columns = V::lanes == 16 ? 2 : 4;
  int64_t column = 0;
  for (; column + columns * V::lanes <= padded; column += columns * V::lanes) {
    weigh<V, dtype, rows, columns>(weights, stride, v, column, num_keys, sums, sums_stride);
  }
  for (; column < padded; column += V::lanes) {
    weigh<V, dtype, rows, 1>(weights, stride, v, column, num_keys, sums, sums_stride);
  }
}

// Calls use(row, integral_constant) for groups of up to three rows.
template <typename Use>
inline void for_row_groups(int64_t num_rows, const Use& use) {
  for (int64_t row = 0; row < num_rows;) {
    const int64_t left = num_rows - row;
    if (left == 3 || left > 4) {
      use(row, std::integral_constant<int, 3>{});
      row += 3;
    } else if (left >= 2) {
      use(row, std::integral_constant<int, 2>{});
      row += 2;
    } else {
      use(row, std::integral_constant<int, 1>{});
      row += 1;
    }
  }
}

inline int64_t score_stride(const PagedArgs& args) {
  const int64_t blocks = kPieceKeys / args.block_size;
  return ((blocks < 1 ? 1 : blocks) * args.block_size + 15) / 16 * 16;
}

// Of sums: the numbers of a head, then the largest score and the sum of powers.
template <class V>
int64_t sums_width(const PagedArgs& args) {
  return PagedSizes(args).padded + 16;
}

template <class V>
int64_t few_bytes(const PagedArgs& args, int64_t num_queries) {
  const PagedSizes sizes(args);
  const int64_t rows = num_queries * args.num_heads;
  const int64_t numbers =
      rows * (sizes.padded + score_stride(args)) + args.block_size * sizes.padded;
  return numbers * int64_t(sizeof(float));
}

template <class V, DType dtype>
void attend_few_of(const PagedArgs& args, int64_t index, int64_t first, int64_t last, float* sums,
                   float* scratch) {
  const PagedSizes sizes(args);
  const Sequence sequence(args, index);
  const int64_t padded = sizes.padded, stride = score_stride(args), width = padded + 16;
  const int64_t of_key_head = sizes.group * sequence.num_queries;
  const int64_t num_rows = args.num_key_heads * of_key_head;
  const int64_t start = first * args.block_size, most = last * args.block_size;
  const int64_t end = most < sequence.length ? most : sequence.length;
  const int64_t number_bytes = dtype == kFloat32 ? 4 : 2;
  float* queries = scratch;
  float* scores = queries + num_rows * padded;
  float* filled = scores + num_rows * stride;
  for (int64_t row = 0; row < num_rows; ++row) {
    read_query<V>(args, sizes, sequence.first_token + row % sequence.num_queries,
                  row / sequence.num_queries, queries + row * padded);
    std::memset(sums + row * width, 0, std::size_t(padded) * sizeof(float));
  }
  // use(type, rows of a head of the pool, how many, key head, first key) in order of memory, so
  // many places at a time. The same places of the next block are asked for meanwhile.
  const auto for_places = [&](const void* pool, int64_t step, const auto& use) {
    for (int64_t key = first * args.block_size; key < end;) {
      const int64_t block = key / args.block_size, place = key % args.block_size;
      int64_t count = args.block_size - place;
      count = count < step ? count : step;
      count = count < end - key ? count : end - key;
      const int64_t after = block + 1 < last ? sequence.blocks[block + 1] : -1;
      for (int64_t head = 0; head < args.num_key_heads; ++head) {
        const auto index_in = [&](int64_t of_block) {
          return (of_block * args.block_size + place) * sizes.token + head * args.width;
        };
        if (after >= 0) {
          expect_rows(pool, index_in(after), sizes.token, count, args.width, number_bytes);
        }
        const PlaceRows rows{pool, index_in(sequence.blocks[block]), sizes.token};
        if (args.width == padded) {
          use(std::integral_constant<DType, dtype>{}, rows, count, head, key);
          continue;
        }
        for (int64_t i = 0; i < count; ++i) {
          read_row<V>(pool, dtype, rows.index + i * rows.stride, args.width, padded,
                      filled + i * padded);
        }
        use(std::integral_constant<DType, kFloat32>{}, PlaceRows{filled, 0, padded}, count, head,
            key);
      }
      key += count;
    }
  };
  for_places(args.k_pool, 4, [&](auto type, const PlaceRows& k, int64_t count, int64_t head,
                                 int64_t key) {
    for_row_groups(of_key_head, [&](int64_t row, auto rows) {
      row += head * of_key_head;
      score_keys<V, type, rows>(queries + row * padded, k, count, padded,
                                scores + row * stride + key - start, stride);
    });
  });
  const int64_t held = ((last - first) * args.block_size + 15) / 16 * 16;
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t position = sequence.position(row % sequence.num_queries);
    float* of_row = sums + row * width + padded;
    of_row[0] = -kInfinity;
    of_row[1] = 0;
    add_scores<V>(args, scores + row * stride, held, first_key_of(args, position) - start,
                  position + 1 - start, of_row[0], of_row[1]);
  }
  for_places(args.v_pool, 8, [&](auto type, const PlaceRows& v, int64_t count, int64_t head,
                                 int64_t key) {
    for_row_groups(of_key_head, [&](int64_t row, auto rows) {
      row += head * of_key_head;
      weigh_values<V, type, rows>(scores + row * stride + key - start, stride, v, count, padded,
                                  sums + row * width, width);
    });
  });
}

template <class V>
void attend_few(const PagedArgs& args, int64_t sequence, int64_t first, int64_t last, float* sums,
                void* scratch) {
  const auto run = args.dtype == kFloat32    ? attend_few_of<V, kFloat32>
                   : args.dtype == kBFloat16 ? attend_few_of<V, kBFloat16>
                                             : attend_few_of<V, kFloat16>;
  run(args, sequence, first, last, sums, static_cast<float*>(scratch));
}

template <class V>
void join_sums(const PagedArgs& args, int64_t index, const float* sums, int64_t num_pieces) {
  using Vec = typename V::Vec;
  const PagedSizes sizes(args);
  const Sequence sequence(args, index);
  const int64_t padded = sizes.padded, width = padded + 16;
  const int64_t num_rows = args.num_heads * sequence.num_queries, of_piece = num_rows * width;
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* of_row = sums + row * width;
    float largest = -kInfinity;
    for (int64_t i = 0; i < num_pieces; ++i) {
      const float of_this = of_row[i * of_piece + padded];
      if (of_this > largest) largest = of_this;
    }
    float total = 0;
    for (int64_t i = 0; i < num_pieces; ++i) {
      const float* end = of_row + i * of_piece + padded;
      total += end[1] * std::exp2(end[0] - largest);
    }
    const int64_t token = sequence.first_token + row % sequence.num_queries;
    const int64_t at = (token * args.num_heads + row / sequence.num_queries) * args.width;
    float part[16];
    for (int64_t column = 0; column < args.width; column += 16) {
      for (int64_t j = 0; j < 16; j += V::lanes) {
        Vec sum = V::zero();
        for (int64_t i = 0; i < num_pieces; ++i) {
          const float* piece = of_row + i * of_piece;
          const float weight = std::exp2(piece[padded] - largest);
          sum = V::fma(V::load(piece + column + j), V::all(weight), sum);
        }
        V::store(part + j, sum);
      }
      const int64_t left = args.width - column;
      write_row<V>(part, 1.0f / total, args.out, DType(args.dtype), at + column,
                   left < 16 ? left : 16);
    }
  }
}

}  // namespace
}  // namespace ince
