// Winograd convolutions of stride 1 on NHWC (channels_last) feature maps, and the gradient of their
// weight.
//
// Blocks of tiles are transformed, multiplied over channels (a GEMM for each position of a tile) and
// transformed back, so that intermediate results stay in the processor's cache.  Results do not depend
// on the number of threads.
//
// Before this text stand vectors.hpp, with the types Stored (in memory) and Real (in registers, and of
// sums); Factor, the type of the factors of products; SIDE, of a kernel; OUTPUT_TILE, the side of a tile
// of outputs; TILES_PER_BLOCK, tiles that a thread convolves at a time; TILES_PER_SUM, tiles that are
// summed to a weight's gradient at a time; and for each transform a struct with the sides of its matrix
// (OUT rows, IN columns) and its product with IN vectors.

constexpr int ROWS = VECTOR_BYTES / 8;  // of a product in registers (register blocking)
constexpr int MAX_PANEL_VECTORS = 3;    // columns of a product in registers, of ROWS rows
constexpr bool IN_PAIRS = std::is_same_v<Factor, bfloat16>;
constexpr int GROUP = IN_PAIRS ? 2 : 1;  // factors that one instruction multiplies and sums
constexpr int INPUT_TILE = OUTPUT_TILE + SIDE - 1, TILE_SIZE = INPUT_TILE * INPUT_TILE;

struct Sizes {
    long images, height, width, channels;  // of the input
    long out_height, out_width, outputs;
    long padding_top, padding_left;
    long output_stride, channel_stride, row_stride, column_stride;  // of the weight
    long offset;                                                    // of the weight's first tap
    long has_relu;                                                  // the output's negative numbers are 0

    long tile_rows() const { return (out_height + OUTPUT_TILE - 1) / OUTPUT_TILE; }
    long tile_columns() const { return (out_width + OUTPUT_TILE - 1) / OUTPUT_TILE; }
    long tiles() const { return images * tile_rows() * tile_columns(); }
};

// Numbers in a cache line.  Consecutive matrices are set apart by one, so that they don't compete for the
// same part of the cache.
template <class T>
constexpr long CACHE_LINE = 64 / sizeof(T);

static inline long vectors_of(long channels) { return (channels + LANES - 1) / LANES; }

// The transform P x Pᵀ.  `get(i)` returns an element of x; `put(i, y)` takes one of the result, row by
// row, so that little goes through memory.
template <class Matrix, class Get, class Put>
static inline void transform(Get get, Put put) {
    constexpr int OUT = Matrix::OUT, IN = Matrix::IN;
    Vector half[OUT * IN];
    for (int j = 0; j < IN; ++j) {
        Vector x[IN];
        for (int i = 0; i < IN; ++i) x[i] = get(i * IN + j);
        Matrix::times(x, 1, half + j, IN);
    }
    for (int i = 0; i < OUT; ++i) {
        Vector y[OUT];
        Matrix::times(half + i * IN, 1, y, 1);
        for (int j = 0; j < OUT; ++j) put(i * OUT + j, y[j]);
    }
}

// The image of a tile, and the upper left corner of its outputs.
struct TilePosition {
    long image, top, left;
    TilePosition(const Sizes& s, long tile)
        : image(tile / (s.tile_rows() * s.tile_columns())),
          top(tile / s.tile_columns() % s.tile_rows() * OUTPUT_TILE),
          left(tile % s.tile_columns() * OUTPUT_TILE) {}
};

// The pixels of an N×N square of a feature map; `zeros` where it leaves the map.
template <int N>
struct Pixels {
    const Stored* at[N * N];
    Pixels(const Stored* image, long height, long width, long channels, long top, long left,
           const Stored* zeros) {
        for (int i = 0; i < N * N; ++i) {
            const long y = top + i / N, x = left + i % N;
            const bool inside = 0 <= y && y < height && 0 <= x && x < width;
            at[i] = inside ? image + (y * width + x) * channels : zeros;
        }
    }
};

// The pixels of the input that a tile of outputs depends on.
static Pixels<INPUT_TILE> input_pixels(const Stored* x, const Sizes& s, long tile,
                                       const Stored* zeros) {
    const TilePosition position(s, tile);
    const Stored* image = x + position.image * s.height * s.width * s.channels;
    const long top = position.top - s.padding_top, left = position.left - s.padding_left;
    return {image, s.height, s.width, s.channels, top, left, zeros};
}

// The pixels of a tile of outputs.
static Pixels<OUTPUT_TILE> output_pixels(const Stored* y, const Sizes& s, long tile,
                                         const Stored* zeros) {
    const TilePosition position(s, tile);
    const Stored* map = y + position.image * s.out_height * s.out_width * s.outputs;
    return {map, s.out_height, s.out_width, s.outputs, position.top, position.left, zeros};
}

// Transformed tiles: for each of TILE_SIZE positions, (vectors of channels, tiles, LANES).
struct Factors {
    const long channels, tiles, stride;  // from one position to the next
    Buffer<Factor> buffer;
    Factors(long channels, long tiles)
        : channels(channels),
          tiles(tiles),
          stride(vectors_of(channels) * tiles * LANES + CACHE_LINE<Factor>),
          buffer(stride * TILE_SIZE) {}
    Factor* at(int position, long vector, long tile) const {
        return buffer.data + position * stride + (vector * tiles + tile) * LANES;
    }
};

// Transforms the v-th vector of channels of a tile.
template <class Matrix, int N, class Put>
static inline void transform(const Pixels<N>& pixels, long channels, long v, Put put) {
    const long first = v * LANES;
    const auto get = [&](int i) { return load(pixels.at[i] + first, channels - first); };
    transform<Matrix>(get, put);
}

// Transforms a tile whose products are summed over channels: pairs of factors are pairs of channels.
template <class Matrix, int N>
static void transform_tile(const Pixels<N>& pixels, const Factors& to, long tile) {
    for (long v = 0; v < vectors_of(to.channels); ++v)
        transform<Matrix>(pixels, to.channels, v, [&](int k, Vector y) {
            if constexpr (IN_PAIRS) store_lanes(to.at(k, v, tile), to_bfloat16(y));
            else store_lanes(to.at(k, v, tile), y);
        });
}

// Transforms GROUP neighbouring tiles whose products are summed over tiles: pairs of factors are pairs of
// tiles.  The last tile of an odd number is paired with zeros.
template <class Matrix, class PixelsOf>
static void transform_group(PixelsOf pixels, const Factors& to, long tile, long tiles) {
    const auto first = pixels(tile);
    if constexpr (!IN_PAIRS) {
        transform_tile<Matrix>(first, to, tile);
    } else {
        const bool is_odd = tile + 1 == tiles;
        const auto second = pixels(is_odd ? tile : tile + 1);
        for (long v = 0; v < vectors_of(to.channels); ++v) {
            Bfloat16Vector half[TILE_SIZE];
            transform<Matrix>(first, to.channels, v,
                              [&](int k, Vector y) { half[k] = to_bfloat16(y); });
            transform<Matrix>(second, to.channels, v, [&](int k, Vector y) {
                const BitsVector low = to_bits(half[k]);
                const BitsVector high = to_bits(to_bfloat16(y)) << 16;
                store_lanes(to.at(k, v, tile), is_odd ? low : low | high);
            });
        }
    }
}

// Adds to each lane the product of a factor (or the products of a pair) with the lane's own.
static inline void multiply_add(Vector& sum, const Factor* scalar, const Factor* lanes) {
    if constexpr (!IN_PAIRS) {
        sum += *scalar * load_lanes<Vector>(lanes);
    } else {
        const BitsVector pair = BitsVector{} + load_lanes<std::uint32_t>(scalar);
        const BitsVector pairs = load_lanes<BitsVector>(lanes);
#ifdef HAS_BFLOAT16
        sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pair, (__m512bh)pairs);
#else
        sum += (Vector)(pair << 16) * (Vector)(pairs << 16);
        sum += (Vector)(pair >> 16 << 16) * (Vector)(pairs >> 16 << 16);
#endif
    }
}

// The products of ROWS tiles with VECTORS vectors of outputs, summed over channels.  `kernels` are
// (channels / GROUP, VECTORS, LANES, GROUP); the result is (tiles, VECTORS, LANES).
template <int VECTORS>
static void sum_over_channels(const Factors& inputs, int position, long tile, const Factor* kernels,
                              Real* result) {
    Vector sum[ROWS][VECTORS] = {};
    for (long v = 0; v < vectors_of(inputs.channels); ++v) {
        const Factor* tiles = inputs.at(position, v, tile);
        const long depth = min<long>(LANES, inputs.channels - v * LANES);
        for (long c = 0; c < depth; c += GROUP, kernels += VECTORS * LANES * GROUP)
#pragma GCC unroll 8
            for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
                for (int w = 0; w < VECTORS; ++w)
                    multiply_add(sum[row][w], tiles + row * LANES + c, kernels + w * LANES * GROUP);
    }
    std::memcpy(result, sum, sizeof sum);
}

// The products of ROWS output channels (from `output` on) with VECTORS vectors of input channels, summed
// over tiles and added to the rows of `result`, or written to it where `is_first`.
template <int VECTORS>
static void sum_over_tiles(const Factors& outputs, long output, const Factors& inputs, long vector,
                           int position, long tiles, Real* result, long row_length, bool is_first) {
    Vector sum[ROWS][VECTORS] = {};
    const Factor* scalars = outputs.at(position, output / LANES, 0) + output % LANES * GROUP;
    const Factor* lanes = inputs.at(position, vector, 0);
    const long vector_stride = inputs.tiles * LANES;
    for (long t = 0; t < tiles; t += GROUP, scalars += LANES * GROUP, lanes += LANES * GROUP)
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
            for (int w = 0; w < VECTORS; ++w)
                multiply_add(sum[row][w], scalars + row * GROUP, lanes + w * vector_stride);
    for (int row = 0; row < ROWS; ++row)
        for (int w = 0; w < VECTORS; ++w) {
            Real* to = result + row * row_length + w * LANES;
            store_lanes(to, is_first ? sum[row][w] : load_lanes<Vector>(to) + sum[row][w]);
        }
}

// Vectors of channels, divided as evenly as possible into panels of 1 to MAX_PANEL_VECTORS neighbours.
struct Panels {
    const long vectors, count;
    explicit Panels(long channels)
        : vectors(vectors_of(channels)),
          count((vectors + MAX_PANEL_VECTORS - 1) / MAX_PANEL_VECTORS) {}
    long begin(long panel) const { return panel * vectors / count; }
    int width(long panel) const { return begin(panel + 1) - begin(panel); }
};

// Calls `call` with the width of a panel as a constant.
template <class F>
static inline void with_constant(int width, F call) {
    if (width == 1) call(std::integral_constant<int, 1>());
    if (width == 2) call(std::integral_constant<int, 2>());
    if (width == 3) call(std::integral_constant<int, 3>());
}

// Transformed kernels: for each of TILE_SIZE positions and each panel as `sum_over_channels` reads them.
struct Kernels {
    const Panels panels;
    const long depth, stride;
    Buffer<Factor> buffer;
    Kernels(const Stored* weight, const Sizes& s)
        : panels(s.outputs),
          depth((s.channels + GROUP - 1) / GROUP * GROUP),
          stride(panels.vectors * LANES * depth + CACHE_LINE<Factor>),
          buffer(stride * TILE_SIZE) {
#pragma omp parallel for collapse(2)
        for (long p = 0; p < panels.count; ++p)
            for (long c = 0; c < depth; ++c)
                for (int w = 0; w < panels.width(p); ++w) transform_vector(weight, s, p, c, w);
    }
    Factor* at(int position, long panel) const {
        return buffer.data + position * stride + panels.begin(panel) * LANES * depth;
    }
    void transform_vector(const Stored* weight, const Sizes& s, long panel, long c, int w) const {
        const long first = (panels.begin(panel) + w) * LANES;
        const long count = c < s.channels ? min<long>(LANES, s.outputs - first) : 0;
        const long group = (c / GROUP * panels.width(panel) + w) * LANES * GROUP;
        const auto get = [&](int i) {
            const Stored* tap = weight + s.offset + c * s.channel_stride + i / SIDE * s.row_stride +
                                i % SIDE * s.column_stride;
            Stored taps[LANES] = {};
            for (long o = 0; o < count; ++o) taps[o] = tap[(first + o) * s.output_stride];
            return load(taps);
        };
        transform<KernelTransform>(get, [&](int k, Vector y) {
            Factor* to = at(k, panel) + group + c % GROUP;
            if constexpr (IN_PAIRS) {
                const Bfloat16Vector half = to_bfloat16(y);
                for (int lane = 0; lane < LANES; ++lane) to[lane * GROUP] = half[lane];
            } else {
                store_lanes(to, y);
            }
        });
    }
};

// Writes the outputs of a tile for the vector of output channels from `output` on, from TILE_SIZE products
// that are `stride` numbers apart.
static void write_outputs(const Real* products, long stride, const Stored* bias, Stored* y,
                          const Sizes& s, long tile, long output) {
    const TilePosition position(s, tile);
    const long count = s.outputs - output;
    const long rows = min<long>(OUTPUT_TILE, s.out_height - position.top);
    const long columns = min<long>(OUTPUT_TILE, s.out_width - position.left);
    const long first = (position.image * s.out_height + position.top) * s.out_width + position.left;
    const Vector shift = bias ? load(bias + output, count) : Vector{};
    const auto get = [&](int k) { return load_lanes<Vector>(products + k * stride); };
    transform<OutputTransform>(get, [&](int k, Vector result) {
        const long i = k / OUTPUT_TILE, j = k % OUTPUT_TILE;
        if (i >= rows || j >= columns) return;
        const Vector sum = result + shift, positive = sum < Vector{} ? Vector{} : sum;
        Stored* to = y + (first + i * s.out_width + j) * s.outputs + output;
        store(to, s.has_relu ? positive : sum, count);
    });
}

extern "C" void convolution(const Stored* x, const Stored* weight, const Stored* bias, Stored* y,
                            const Sizes& s) {
    const Kernels kernels(weight, s);
    const Panels& panels = kernels.panels;
    const Buffer<Stored> zeros(s.channels, 0);
    const long stride = TILES_PER_BLOCK * MAX_PANEL_VECTORS * LANES + CACHE_LINE<Real>;
#pragma omp parallel
    {
        const Factors inputs(s.channels, TILES_PER_BLOCK);
        const Buffer<Real> products(stride * TILE_SIZE);
#pragma omp for schedule(dynamic)
        for (long first = 0; first < s.tiles(); first += TILES_PER_BLOCK) {
            const long tiles = min<long>(TILES_PER_BLOCK, s.tiles() - first);
            for (long t = 0; t < tiles; ++t)
                transform_tile<InputTransform>(input_pixels(x, s, first + t, zeros.data), inputs, t);
            for (long p = 0; p < panels.count; ++p) {
                const int width = panels.width(p);
                with_constant(width, [&](auto constant) {
                    for (int k = 0; k < TILE_SIZE; ++k)
                        for (long t = 0; t < tiles; t += ROWS)
                            sum_over_channels<constant()>(
                                inputs, k, t, kernels.at(k, p),
                                products.data + k * stride + t * width * LANES);
                });
                for (long t = 0; t < tiles; ++t)
                    for (int w = 0; w < width; ++w)
                        write_outputs(products.data + (t * width + w) * LANES, stride, bias, y, s,
                                      first + t, (panels.begin(p) + w) * LANES);
            }
        }
    }
}

// Writes the gradient of the weight from products (TILE_SIZE, outputs, row_length).
static void write_weight(const Buffer<Real>& products, long row_length, Stored* weight,
                         const Sizes& s) {
    const long stride = vectors_of(s.outputs) * LANES * row_length + CACHE_LINE<Real>;
#pragma omp parallel for collapse(2)
    for (long o = 0; o < s.outputs; ++o)
        for (long first = 0; first < s.channels; first += LANES) {
            const long count = min<long>(LANES, s.channels - first);
            const Real* from = products.data + o * row_length + first;
            const auto get = [&](int k) { return load_lanes<Vector>(from + k * stride); };
            transform<WeightTransform>(get, [&](int i, Vector y) {
                Stored taps[LANES], *tap = weight + o * s.output_stride + first * s.channel_stride +
                                           i / SIDE * s.row_stride + i % SIDE * s.column_stride;
                store(taps, y);
                for (long c = 0; c < count; ++c) tap[c * s.channel_stride] = taps[c];
            });
        }
}

extern "C" void weight_gradient(const Stored* grad, const Stored* x, Stored* weight,
                                const Sizes& s) {
    const Factors inputs(s.channels, TILES_PER_SUM), outputs(s.outputs, TILES_PER_SUM);
    const Panels panels(s.channels);
    const long row_length = panels.vectors * LANES, columns = vectors_of(s.outputs) * LANES;
    const long stride = columns * row_length + CACHE_LINE<Real>;
    const Buffer<Real> products(stride * TILE_SIZE);
    const Buffer<Stored> zeros(max(s.channels, s.outputs), 0);
#pragma omp parallel
    for (long first = 0; first < s.tiles(); first += TILES_PER_SUM) {
        const long tiles = min<long>(TILES_PER_SUM, s.tiles() - first);
#pragma omp for schedule(dynamic, 4)
        for (long t = 0; t < tiles; t += GROUP) {
            const auto input = [&](long tile) { return input_pixels(x, s, first + tile, zeros.data); };
            const auto output = [&](long tile) {
                return output_pixels(grad, s, first + tile, zeros.data);
            };
            transform_group<InputTransform>(input, inputs, t, tiles);
            transform_group<GradientTransform>(output, outputs, t, tiles);
        }
#pragma omp for collapse(2) schedule(dynamic)
        for (int k = 0; k < TILE_SIZE; ++k)
            for (long output = 0; output < columns; output += LANES)
                for (long p = 0; p < panels.count; ++p)
                    with_constant(panels.width(p), [&](auto constant) {
                        for (long o = output; o < output + LANES; o += ROWS)
                            sum_over_tiles<constant()>(
                                outputs, o, inputs, panels.begin(p), k, tiles,
                                products.data + k * stride + o * row_length + panels.begin(p) * LANES,
                                row_length, first == 0);
                    });
    }
    write_weight(products, row_length, weight, s);
}
